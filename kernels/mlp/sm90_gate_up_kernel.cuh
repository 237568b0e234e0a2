// Gate and up of the MLP for many rows on Hopper: one product of both weights, activated as its tiles finish.
// Device code, no Torch.
#pragma once

#include "kernels/common/sm90_gemm_tile.cuh"
#include "kernels/mlp/mlp_kernel.cuh"

namespace graft_kernels::mlp {

// act(gate) * up, each step rounded to T.
template <typename T>
struct GateUpEpilogue {
  sm90::ResultMatrix matrix;
  T* out;
  Function function;
  const T* gate_bias;  // [columns] or absent
  const T* up_bias;    // [columns] or absent

  __device__ __forceinline__ void prepare(int64_t, int, int) const {}

  // Two columns of a bias; zeros beyond its end.
  __device__ __forceinline__ float2 bias_at(const T* bias, int column) const {
    const auto one = [&](int at) {
      return bias == nullptr || at >= matrix.columns ? 0.F : to_float(bias[at]);
    };
    return {one(column), one(column + 1)};
  }

  template <Function kFunction, bool kBiased>
  __device__ __forceinline__ void fill(const float (&sum)[128], int column, int lane,
                                       unsigned char* results) const {
#pragma unroll
    for (int box = 0; box < 2; ++box) {
      uint32_t pairs[sm90::kResultPairs];
#pragma unroll
      for (int index = 0; index < sm90::kResultPairs; ++index) {
        const int at = box * 32 + sm90::sum_of(index);
        float2 gate{sum[at], sum[at + 1]}, up{sum[64 + at], sum[64 + at + 1]};
        if constexpr (kBiased) {
          const int inside = column + box * sm90::kResultColumns + sm90::column_of(index, lane);
          const float2 of_gate = bias_at(gate_bias, inside), of_up = bias_at(up_bias, inside);
          gate = {gate.x + of_gate.x, gate.y + of_gate.y};
          up = {up.x + of_up.x, up.y + of_up.y};
        }
        const float2 rounded = sm90::unpack_pair<T>(sm90::pack_pair<T>(gate.x, gate.y));
        pairs[index] =
            sm90::multiply_pairs<T>(sm90::pack_pair<T>(activate<T>(kFunction, rounded.x),
                                                       activate<T>(kFunction, rounded.y)),
                                    sm90::pack_pair<T>(up.x, up.y));
      }
      sm90::fill_box(results + box * sm90::kResultBytes, lane, pairs);
    }
  }

  template <Function kFunction>
  __device__ __forceinline__ void fill_any(const float (&sum)[128], int column, int lane,
                                           unsigned char* results) const {
    gate_bias == nullptr&& up_bias == nullptr ? fill<kFunction, false>(sum, column, lane, results)
                                              : fill<kFunction, true>(sum, column, lane, results);
  }

  __device__ __forceinline__ void finish(const float (&sum)[128], int64_t row, int column, int lane,
                                         unsigned char* results) const {
    matrix.wait_sent(lane);
    switch (function) {
      case Function::kSilu:
        fill_any<Function::kSilu>(sum, column, lane, results);
        break;
      case Function::kGelu:
        fill_any<Function::kGelu>(sum, column, lane, results);
        break;
      case Function::kGeluTanh:
        fill_any<Function::kGeluTanh>(sum, column, lane, results);
        break;
    }
    for (int box = 0; box < 2; ++box) {
      matrix.send(out, results + box * sm90::kResultBytes, row, column + box * sm90::kResultColumns,
                  lane);
    }
  }
};

}  // namespace graft_kernels::mlp
