// y = x weight^T + bias for few rows of x, with the products of up to three weights side by side in y.
// Device code, no Torch.
#pragma once

#include "kernels/common/few_rows.cuh"

namespace graft_kernels::few_rows {

inline constexpr int kMaxParts = 3;

struct LinearPart {
  const void* weight = nullptr;  // [rows of this part, depth]
  const void* bias = nullptr;    // [rows of this part] or absent
  int end = 0;                   // columns of out up to and with this part
};

struct LinearProblem {
  LinearPart parts[kMaxParts];  // those that are not there end where the last one does
  const void* x = nullptr;      // [rows, depth]
  int64_t x_stride = 0;
  int rows = 0;
  int depth = 0;
  void* out = nullptr;  // [rows, columns]
  int64_t out_stride = 0;

  __host__ __device__ int columns() const { return parts[kMaxParts - 1].end; }
};

// The part that holds a column of out, and the column in it.
struct PlaceInPart {
  const LinearPart* part;
  int row;
};

__device__ __forceinline__ PlaceInPart find_part(const LinearProblem& problem, int column) {
  const int first = problem.parts[0].end, second = problem.parts[1].end;
  return column < first    ? PlaceInPart{&problem.parts[0], column}
         : column < second ? PlaceInPart{&problem.parts[1], column - first}
                           : PlaceInPart{&problem.parts[2], column - second};
}

template <typename T>
struct LinearSource {
  const LinearProblem& problem;
  __device__ const T* operator()(int tile, int row) const {
    const auto place = find_part(problem, min(tile * kTileRows + row, problem.columns() - 1));
    return static_cast<const T*>(place.part->weight) + int64_t{place.row} * problem.depth;
  }
};

template <typename T>
struct LinearSink {
  static constexpr int kJoinedRows = 1;
  const LinearProblem& problem;
  __device__ void operator()(int tile, int row, int x_row, const float (&sums)[1]) const {
    const int column = tile * kTileRows + row;
    if (column >= problem.columns()) {
      return;
    }
    const auto place = find_part(problem, column);
    float value = sums[0];
    if (place.part->bias != nullptr) {
      value += to_float(static_cast<const T*>(place.part->bias)[place.row]);
    }
    static_cast<T*>(problem.out)[x_row * problem.out_stride + column] = from_float<T>(value);
  }
};

template <typename T, int kGroups, int kWarps>
__global__ void __launch_bounds__(32 * kWarps, kMostWarps / kWarps)
    linear_kernel(const __grid_constant__ LinearProblem problem) {
  const Input<T> input{static_cast<const T*>(problem.x), problem.x_stride, problem.rows,
                       problem.depth};
  const int num_tiles = (problem.columns() + kTileRows - 1) / kTileRows;
  multiply<T, kGroups, kWarps>(input, num_tiles, LinearSource<T>{problem}, LinearSink<T>{problem});
}

}  // namespace graft_kernels::few_rows
