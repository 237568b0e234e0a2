// Gate and up of the MLP for many rows on Hopper: one product of both weights, activated as its tiles finish.
// Device code, no Torch.
#pragma once

#include "kernels/common/sm90_gemm_tile.cuh"
#include "kernels/mlp/mlp_kernel.cuh"

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

}  // namespace graft_kernels::mlp
