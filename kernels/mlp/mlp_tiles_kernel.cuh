// The MLP for many rows on Hopper. Forward: gate and up as one product of both weights, activated as its tiles finish.
// Backward: the product that gives the gradient of h = act(gate) * up, finished to those of gate and up.
// Device code, no Torch.
#pragma once

#include "kernels/common/sm90_gemm_handover.cuh"
#include "kernels/mlp/mlp_backward_kernel.cuh"

namespace graft_kernels::mlp {

// act(gate) * up, each step rounded to T; with kKeeps gate and up themselves too.
template <typename T, bool kKeeps>
struct GateUpEpilogue {
  sm90::ResultMatrix matrix, gate_matrix, up_matrix;
  T* out;
  T* gate;
  T* up;
  Function function;
  const T* gate_bias;  // [columns] or absent
  const T* up_bias;    // [columns] or absent

  using Pairs = uint32_t[sm90::kResultPairs];

  __device__ __forceinline__ void prepare(int64_t, int, int) const {}

  // A thread's sums of a box with their biases, rounded to T.
  __device__ __forceinline__ void round_sums(const float* sums, const T* bias, int column, int lane,
                                             Pairs& pairs) const {
    const sm90::BoxValues<T> offsets(bias, matrix.columns, column, lane);
#pragma unroll
    for (int index = 0; index < sm90::kResultPairs; ++index) {
      const float2 offset = offsets.of_pair(index);
      const int at = sm90::sum_of(index);
      pairs[index] = sm90::pack_pair<T>(sums[at] + offset.x, sums[at + 1] + offset.y);
    }
  }

  // gates = kFunction(gates) * ups
  template <Function kFunction>
  static __device__ __forceinline__ void activate_pairs(Pairs& gates, const Pairs& ups) {
#pragma unroll
    for (int index = 0; index < sm90::kResultPairs; ++index) {
      const float2 value = sm90::unpack_pair<T>(gates[index]);
      gates[index] = sm90::multiply_pairs<T>(
          sm90::pack_pair<T>(activate<T>(kFunction, value.x), activate<T>(kFunction, value.y)),
          ups[index]);
    }
  }

  __device__ __forceinline__ void activate_any(Pairs& gates, const Pairs& ups) const {
    switch (function) {
      case Function::kSilu:
        return activate_pairs<Function::kSilu>(gates, ups);
      case Function::kGelu:
        return activate_pairs<Function::kGelu>(gates, ups);
      case Function::kGeluTanh:
        return activate_pairs<Function::kGeluTanh>(gates, ups);
    }
  }

  __device__ __forceinline__ void finish(const float (&sum)[128], int64_t row, int column, int lane,
                                         unsigned char* results) const {
    // One box leaves while the next is filled.
    int turn = 0;
    const auto put = [&](const sm90::ResultMatrix& to, T* first, int at, const Pairs& pairs) {
      unsigned char* box = results + turn * sm90::kResultBytes;
      turn ^= 1;
      to.template wait_sent<1>(lane);
      sm90::fill_box(box, lane, pairs);
      to.send(first, box, row, at, lane);
    };
#pragma unroll
    for (int number = 0; number < 2; ++number) {
      const int at = column + number * sm90::kResultColumns;
      Pairs gates, ups;
      round_sums(sum + number * 32, gate_bias, at, lane, gates);
      round_sums(sum + 64 + number * 32, up_bias, at, lane, ups);
      if constexpr (kKeeps) {
        put(gate_matrix, gate, at, gates);
        put(up_matrix, up, at, ups);
      }
      activate_any(gates, ups);
      put(matrix, out, at, gates);
    }
  }
};

// What activate_backward_kernel() does, of sums that lie in shared memory. `columns` is a multiple of 8, all of `at`
// begins at multiples of 16 bytes.
template <typename T, Function kFunction>
struct GradientFinish {
  ActivationGradients<T> at;
  int64_t rows;
  int columns;

  static constexpr int kPieces = 4, kSize = 8;

  // Pairs of T.
  struct Fetched {
    uint4 gates[kPieces], ups[kPieces];
  };

  // What is not there is taken from where the matrix ends.
  __device__ __forceinline__ int64_t place(int64_t row, int column, int piece, int lane) const {
    return min(row + lane / 8 + piece * 4, rows - 1) * columns +
           min(column + lane % 8 * kSize, columns - kSize);
  }

  // A row of a box is 128 bytes of each product.
  __device__ __forceinline__ void prefetch(int64_t row, int column, int lane) const {
    const T* products = lane < 16 ? at.gate : at.up;
    if (row + lane % 16 < rows && column < columns) {
      sm90::prefetch_line(products + (row + lane % 16) * columns + column);
    }
  }

  __device__ __forceinline__ void fetch_piece(Fetched& fetched, int piece, int64_t row, int column,
                                              int lane) const {
    const int64_t from = place(row, column, piece, lane);
    fetched.gates[piece] = __ldcs(reinterpret_cast<const uint4*>(at.gate + from));
    fetched.ups[piece] = __ldcs(reinterpret_cast<const uint4*>(at.up + from));
  }

  __device__ __forceinline__ void fetch(Fetched& fetched, int64_t row, int column, int lane) const {
#pragma unroll
    for (int piece = 0; piece < kPieces; ++piece) {
      fetch_piece(fetched, piece, row, column, lane);
    }
  }

  // turn_into_gradients() for pairs.
  static __device__ __forceinline__ void turn_pair(uint32_t& gates, uint32_t& ups,
                                                   uint32_t& grads) {
    const float2 x = sm90::unpack_pair<T>(gates), factor = sm90::unpack_pair<T>(ups);
    const float2 incoming = sm90::unpack_pair<T>(grads);
    const Activated low = activate_with_slope<T>(kFunction, x.x);
    const Activated high = activate_with_slope<T>(kFunction, x.y);
    gates =
        sm90::pack_pair<T>(incoming.x * factor.x * low.slope, incoming.y * factor.y * high.slope);
    grads = sm90::multiply_pairs<T>(sm90::pack_pair<T>(low.value, high.value), ups);
    ups = sm90::pack_pair<T>(incoming.x * low.value, incoming.y * high.value);
  }

  __device__ __forceinline__ void finish_box(const unsigned char* box, Fetched& fetched,
                                             int64_t row, int column, int64_t next_row,
                                             int next_column, int lane) const {
    const int block = lane % 8;
#pragma unroll
    for (int piece = 0; piece < kPieces; ++piece) {
      const int own = lane / 8 + piece * 4;
      uint4 grads = *reinterpret_cast<const uint4*>(sm90::piece_of(box, own, block));
      uint4 &gates = fetched.gates[piece], &ups = fetched.ups[piece];
      turn_pair(gates.x, ups.x, grads.x);
      turn_pair(gates.y, ups.y, grads.y);
      turn_pair(gates.z, ups.z, grads.z);
      turn_pair(gates.w, ups.w, grads.w);
      if (row + own < rows && column + block * kSize < columns) {
        const int64_t to = place(row, column, piece, lane);
        __stcs(reinterpret_cast<uint4*>(at.grad_gate + to), gates);
        __stcs(reinterpret_cast<uint4*>(at.grad_up + to), ups);
        __stcs(reinterpret_cast<uint4*>(at.grad + to), grads);
      }
      fetch_piece(fetched, piece, next_row, next_column, lane);
    }
  }
};

}  // namespace graft_kernels::mlp
