// How scores of Hopper's attention become weights: what a row sees, what it is measured against. Device code, no Torch.
#pragma once

#include <cfloat>

#include "kernels/attention/attention_mma.cuh"
#include "kernels/attention/attention_place.cuh"
#include "kernels/attention/sm90_attention_task.cuh"

namespace graft_kernels::attention::sm90 {

// A thread's two rows: lane / 4 and lane / 4 + 8 of its warp's sixteen.
struct RowState {
  float largest[2] = {-INFINITY, -INFINITY};  // what the products, unscaled, are measured against
  float origin[2];    // the same, scaled; of a row that has seen no key, lower than any score
  float sum[2] = {};  // of this thread's columns
};

// Keys that a thread's two rows see, those that all rows of its warpgroup do, and the end of what any of them does.
struct RowSight {
  int begin[2], end[2];
  int all_begin, all_end, last_end;
};

__device__ __forceinline__ RowSight row_sight(const DecodeProblem& problem, const Task& task,
                                              int group) {
  const int first = task.first_query + group * 64;
  const int row =
      first + static_cast<int>(threadIdx.x) / 32 % 4 * 16 + static_cast<int>(threadIdx.x) % 32 / 4;
  return {{task_begin(problem, task, row), task_begin(problem, task, row + 8)},
          {task_end(problem, task, row), task_end(problem, task, row + 8)},
          task_begin(problem, task, first + 63),
          task_end(problem, task, first),
          task_end(problem, task, first + 63)};
}

// Hides keys that the rows may not see.
template <int kCount>
__device__ __forceinline__ void hide(float (&scores)[kCount], int first_key,
                                     const RowSight& sight) {
  const int column = first_key + static_cast<int>(threadIdx.x) % 4 * 2;
  if (first_key + kCount * 2 > sight.all_end) {
    const int end[2] = {sight.end[0] - column, sight.end[1] - column};
#pragma unroll
    for (int index = 0; index < kCount; ++index) {
      if (index / 4 * 8 + index % 2 >= end[index % 4 / 2]) {
        scores[index] = -INFINITY;
      }
    }
  }
  if (first_key < sight.all_begin) {
    const int begin[2] = {sight.begin[0] - column, sight.begin[1] - column};
#pragma unroll
    for (int index = 0; index < kCount; ++index) {
      if (index / 4 * 8 + index % 2 < begin[index % 4 / 2]) {
        scores[index] = -INFINITY;
      }
    }
  }
}

// What a row's scores are measured against, and the factor that its earlier sums must take.
struct RowOrigin {
  float scaled[2];
  float factor[2];
  bool moved;  // for any row of the warp; else factors are 1
};

// In powers of two: how far scores may lie above what they are measured against before that moves. Results that stay
// as they are need not be multiplied.
inline constexpr float kSlack = 8.0F;

// What a thread's weights of a row and tile may add up to before the row is measured anew: float16 ends at 65504.
inline constexpr float kMostWeights = 32768.0F;

// Measures rows against their largest scores where those lie more than `slack` above what they were measured against.
template <int kCount>
__device__ __forceinline__ RowOrigin find_origin(const float (&scores)[kCount], RowState& state,
                                                 float scale_log2, float slack_log2) {
  RowOrigin origin;
  origin.moved = false;
  const float slack = slack_log2 / scale_log2;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    // Two chains: one is as long as what it waits for.
    float even = fmaxf(state.largest[half], scores[half * 2]), odd = scores[half * 2 + 1];
#pragma unroll
    for (int index = 4 + half * 2; index < kCount; index += 4) {
      even = fmaxf(even, scores[index]);
      odd = fmaxf(odd, scores[index + 1]);
    }
    float most = fmaxf(even, odd);
    most = fmaxf(most, __shfl_xor_sync(0xFFFFFFFFU, most, 1));
    most = fmaxf(most, __shfl_xor_sync(0xFFFFFFFFU, most, 2));
    const bool moved = __any_sync(0xFFFFFFFFU, most - state.largest[half] > slack);
    const float next = moved ? most : state.largest[half];
    origin.moved |= moved;
    origin.scaled[half] = origin_of(next) * scale_log2;
    origin.factor[half] = exp2_fast(state.largest[half] * scale_log2 - origin.scaled[half]);
    state.largest[half] = next;
    state.origin[half] = fmaxf(next * scale_log2, -FLT_MAX);
  }
  return origin;
}

// Sums of a thread's weights of a tile, by row; of even and of odd columns.
struct TileSums {
  float even[2] = {}, odd[2] = {};
  __device__ __forceinline__ float of(int half) const { return even[half] + odd[half]; }
  // What is not a number is not too large: another sequence's rows must not have this one's measured anew.
  __device__ __forceinline__ bool have_grown() const {
    return of(0) > kMostWeights || of(1) > kMostWeights;
  }
};

// Scores of columns [kFrom, kTo) of one of a thread's rows become weights.
template <int kFrom, int kTo, int kCount>
__device__ __forceinline__ void weigh_columns(float (&scores)[kCount], TileSums& sums,
                                              float scale_log2, float origin, int half) {
#pragma unroll
  for (int index = half * 2 + kFrom * 2; index < kTo * 2; index += 4) {
    scores[index] = exp2_fast(fmaf(scores[index], scale_log2, -origin));
    scores[index + 1] = exp2_fast(fmaf(scores[index + 1], scale_log2, -origin));
    sums.even[half] += scores[index];
    sums.odd[half] += scores[index + 1];
  }
}

// Scores become weights, and sums of earlier ones are measured as they are.
template <int kCount>
__device__ __forceinline__ void weigh(float (&scores)[kCount], RowState& state, float scale_log2,
                                      const RowOrigin& origin) {
  TileSums sums;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    weigh_columns<0, kCount / 2>(scores, sums, scale_log2, origin.scaled[half], half);
    state.sum[half] = fmaf(state.sum[half], origin.factor[half], sums.of(half));
  }
}

// Results measured against what rows were before become measured as they are now.
template <int kCount>
__device__ __forceinline__ void measure_again(float (&out)[kCount], const RowOrigin& origin) {
#pragma unroll
  for (int index = 0; index < kCount; ++index) {
    out[index] *= origin.factor[index % 4 / 2];
  }
}

}  // namespace graft_kernels::attention::sm90
