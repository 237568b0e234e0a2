// Activation and residual of linear_act: where our own products finish, and for products that ATen has finished.
// Device code, no Torch.
#pragma once

#include "kernels/common/activate.cuh"
#include "kernels/common/few_rows_linear.cuh"
#include "kernels/common/sm90_gemm_tile.cuh"
#include "kernels/linear/linear_act.h"

namespace graft_kernels::linear {

template <Activation kActivation, typename T>
__device__ __forceinline__ float activate(float x) {
  if constexpr (kActivation == Activation::kSilu) {
    return silu<T>(x);
  } else if constexpr (kActivation == Activation::kGelu) {
    return gelu<T>(x);
  } else if constexpr (kActivation == Activation::kGeluTanh) {
    return gelu_tanh<T>(x);
  } else if constexpr (kActivation == Activation::kGeluQuick) {
    return times_logistic<T>(x, kQuickScale * x);
  } else if constexpr (kActivation == Activation::kRelu) {
    return x < 0.F ? 0.F : x;
  } else {
    return x;
  }
}

// Calls body(std::integral_constant<Activation, activation>).
template <typename Body>
__device__ __forceinline__ void with_activation(Activation activation, const Body& body) {
  const auto call = [&]<Activation kActivation>() {
    body(std::integral_constant<Activation, kActivation>());
  };
  switch (activation) {
    case Activation::kNone:
      return call.template operator()<Activation::kNone>();
    case Activation::kSilu:
      return call.template operator()<Activation::kSilu>();
    case Activation::kGelu:
      return call.template operator()<Activation::kGelu>();
    case Activation::kGeluTanh:
      return call.template operator()<Activation::kGeluTanh>();
    case Activation::kGeluQuick:
      return call.template operator()<Activation::kGeluQuick>();
    case Activation::kRelu:
      return call.template operator()<Activation::kRelu>();
  }
}

// ---- few rows

struct FewRowsActProblem {
  few_rows::LinearProblem linear;  // of one weight
  Activation activation = Activation::kNone;
  const void* residual = nullptr;  // as out, or absent
};

template <typename T>
struct FewRowsActSink {
  static constexpr int kJoinedRows = 1;
  const FewRowsActProblem& problem;
  __device__ void operator()(int tile, int row, int x_row, const float (&sums)[1]) const {
    const few_rows::LinearProblem& linear = problem.linear;
    const int column = tile * few_rows::kTileRows + row;
    if (column >= linear.columns()) {
      return;
    }
    const T* bias = static_cast<const T*>(linear.parts[0].bias);
    float value = sums[0] + (bias == nullptr ? 0.F : to_float(bias[column]));
    with_activation(problem.activation, [&](auto activation) {
      value = activate<decltype(activation)::value, T>(value);
    });
    const int64_t at = x_row * linear.out_stride + column;
    if (problem.residual != nullptr) {
      value += to_float(static_cast<const T*>(problem.residual)[at]);
    }
    static_cast<T*>(linear.out)[at] = from_float<T>(value);
  }
};

template <typename T, int kGroups, int kWarps>
__global__ void __launch_bounds__(32 * kWarps, few_rows::kMostWarps / kWarps)
    linear_act_kernel(const __grid_constant__ FewRowsActProblem problem) {
  const few_rows::LinearProblem& linear = problem.linear;
  const few_rows::Input<T> input{static_cast<const T*>(linear.x), linear.x_stride, linear.rows,
                                 linear.depth};
  const int num_tiles = (linear.columns() + few_rows::kTileRows - 1) / few_rows::kTileRows;
  few_rows::multiply<T, kGroups, kWarps>(input, num_tiles, few_rows::LinearSource<T>{linear},
                                         FewRowsActSink<T>{problem});
}

// ---- tiles on Hopper

// act(sum + bias) + residual, rounded once.
template <typename T>
struct LinearEpilogue {
  sm90::ResultMatrix matrix;
  T* out;
  Activation activation;
  const T* bias;      // [columns] or absent
  const T* residual;  // as out, or absent; may be out

  // The residual comes to L2 while the products run.
  __device__ __forceinline__ void prepare(int64_t row, int column, int lane) const {
    const int own_column = column + lane % 4 * 64;
    if (residual == nullptr || own_column >= matrix.columns) {
      return;
    }
#pragma unroll
    for (int step = 0; step < 2; ++step) {
      const int64_t own = row + step * 8 + lane / 4;
      if (own < matrix.rows) {
        asm volatile(
            "prefetch.global.L2 [%0];" ::"l"(residual + own * matrix.columns + own_column));
      }
    }
  }

  template <Activation kActivation>
  __device__ __forceinline__ void fill(const float* sums, int column, int lane,
                                       unsigned char* box) const {
    const sm90::BoxValues<T> offsets(bias, matrix.columns, column, lane);
    uint32_t pairs[sm90::kResultPairs];
#pragma unroll
    for (int index = 0; index < sm90::kResultPairs; ++index) {
      const float2 offset = offsets.of_pair(index);
      const int at = sm90::sum_of(index);
      float2 value{activate<kActivation, T>(sums[at] + offset.x),
                   activate<kActivation, T>(sums[at + 1] + offset.y)};
      if (residual != nullptr) {
        const unsigned char* piece =
            sm90::piece_of(box, sm90::row_of(index, lane), index / 2) + lane % 4 * 4;
        const float2 added = sm90::unpack_pair<T>(*reinterpret_cast<const uint32_t*>(piece));
        value = {value.x + added.x, value.y + added.y};
      }
      pairs[index] = sm90::pack_pair<T>(value.x, value.y);
    }
    if (residual != nullptr) {
      __syncwarp();  // all have read what is written over
    }
    sm90::fill_box(box, lane, pairs);
  }

  __device__ __forceinline__ void finish(const float (&sum)[128], int64_t row, int column, int lane,
                                         unsigned char* results) const {
    // One box leaves while the next is filled.
#pragma unroll
    for (int number = 0; number < 4; ++number) {
      unsigned char* box = results + number % 2 * sm90::kResultBytes;
      const int first = column + number * sm90::kResultColumns;
      matrix.wait_sent<1>(lane);
      if (residual != nullptr) {
        matrix.fetch(residual, box, row, first, lane);
      }
      with_activation(activation, [&](auto chosen) {
        fill<decltype(chosen)::value>(sum + number * 32, first, lane, box);
      });
      matrix.send(out, box, row, first, lane);
    }
  }
};

// ---- finished products

// values[i] = act(values[i]) + residual[i], vectors of kSize elements.
template <typename T, int kSize>
__global__ void linear_finish_kernel(Activation activation, T* values, const T* residual,
                                     int64_t num_vectors) {
  const int64_t step = int64_t{gridDim.x} * blockDim.x;
  with_activation(activation, [&](auto chosen) {
    for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < num_vectors; i += step) {
      Vec<T, kSize> own = load_streaming<T, kSize>(values + i * kSize);
      Vec<T, kSize> added{};
      if (residual != nullptr) {
        added = load_streaming<T, kSize>(residual + i * kSize);
      }
#pragma unroll
      for (int element = 0; element < kSize; ++element) {
        const float value = activate<decltype(chosen)::value, T>(to_float(own.data[element]));
        own.data[element] =
            from_float<T>(residual == nullptr ? value : value + to_float(added.data[element]));
      }
      store_vector(values + i * kSize, own);
    }
  });
}

}  // namespace graft_kernels::linear
