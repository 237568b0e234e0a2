// Attention for training on CUDA, any head size, mask and cap: the log-sum-exp beside the result. Device
// code, no Torch.
#pragma once

#include <cstdint>

#include "kernels/attention/attention_tile.cuh"
#include "kernels/attention/attention_train_place.cuh"

namespace graft_kernels::attention {

// Two tiles of each row kind and what belongs to their pairs.
template <typename Tile>
struct TrainLayout {
  using T = typename Tile::T;
  static constexpr int kRows = Tile::kRows;
  static constexpr int kPlane = kRows * Tile::kPitch;
  static constexpr int kWeights = kRows * Tile::kWeightPitch;
  static constexpr int kScorePitch = kRows + 1;
  static constexpr int kForwardBytes =
      static_cast<int>((3 * kPlane + kWeights) * sizeof(T)) + kRows * kScorePitch * 4;
  static constexpr int kBackwardBytes = static_cast<int>((4 * kPlane + 2 * kWeights) * sizeof(T));
};

struct Seen {
  unsigned rows[64];
  unsigned keys[64];
};

// Rows [first, first + kRows) of `from`, zeros behind `count` rows and behind the head.
template <typename Tile>
__device__ __forceinline__ void load_tile(typename Tile::T* to, const typename Tile::T* from,
                                          int64_t stride, int first, int count, int head_dim,
                                          bool vectors) {
  using T = typename Tile::T;
  if (Tile::kVectors && vectors) {
    constexpr int kChunks = Tile::kD / 8;
    for (int index = threadIdx.x; index < Tile::kRows * kChunks; index += kTileThreads) {
      const int row = index / kChunks, column = index % kChunks * 8;
      uint4 value = {0, 0, 0, 0};
      if (first + row < count && column < head_dim) {
        value = *reinterpret_cast<const uint4*>(from + (first + row) * stride + column);
      }
      *reinterpret_cast<uint4*>(to + row * Tile::kPitch + column) = value;
    }
    return;
  }
  for (int index = threadIdx.x; index < Tile::kRows * Tile::kD; index += kTileThreads) {
    const int row = index / Tile::kD, column = index % Tile::kD;
    const bool inside = first + row < count && column < head_dim;
    to[row * Tile::kPitch + column] =
        inside ? from[(first + row) * stride + column] : from_float<T>(0.0F);
  }
}

// Rows [first, first + kRows) below `count` of `to`, each times its factor.
template <typename Tile, typename Sum, typename Factor>
__device__ __forceinline__ void store_tile(Sum& sum, typename Tile::T* to, int64_t stride,
                                           int first, int count, int head_dim,
                                           const Factor& factor) {
#pragma unroll
  for (int index = 0; index < Sum::kCount; ++index) {
    const int row = Sum::row(index), column = Sum::column(index);
    if (first + row < count && column < head_dim) {
      to[(first + row) * stride + column] = from_float<typename Tile::T>(sum[index] * factor(row));
    }
  }
}

// Scale, cap and mask of a score; -infinity where hidden. slope: the derivative of the cap.
template <typename T>
__device__ __forceinline__ float shape_score(const TrainProblem& problem, const Span& span,
                                             int head, int query, int key, float dot,
                                             float& slope) {
  const Problem& base = problem.base;
  const Sight sight = sight_of(problem, span, query);
  slope = 1.0F;
  if (query >= span.queries || key < sight.begin || key >= sight.end) {
    return -INFINITY;
  }
  float score = dot * base.scale;
  if (base.softcap > 0.0F) {
    const float bent = tanhf(score / base.softcap);
    score = base.softcap * bent;
    slope = 1.0F - bent * bent;
  }
  if (base.mask != nullptr) {
    const int64_t at = span.batch * base.mask_stride[0] + head * base.mask_stride[1] +
                       query * base.mask_stride[2] + key;
    const float added = base.float_mask ? static_cast<const float*>(base.mask)[at]
                                        : to_float(static_cast<const T*>(base.mask)[at]);
    score = added == -INFINITY ? -INFINITY : score + added;
  }
  return score;
}

// Whether a pair of tiles holds pairs that may not see each other.
__device__ __forceinline__ bool hides_some(const TrainProblem& problem, const Span& span, int query,
                                           int key, int rows) {
  if (problem.base.mask != nullptr || query + rows > span.queries || key + rows > span.keys) {
    return true;
  }
  return sight_of(problem, span, query).end < key + rows ||
         sight_of(problem, span, query + rows - 1).begin > key;
}

// Zeros rows of a tile that meet nothing: zero times what lies there may be NaN.
template <typename Tile>
__device__ __forceinline__ void clear_unseen(typename Tile::T* tile, const unsigned* seen) {
  using T = typename Tile::T;
  for (int row = threadIdx.x / 32; row < Tile::kRows; row += kTileThreads / 32) {
    if (seen[row] == 0) {
      for (int column = threadIdx.x % 32; column < Tile::kD; column += 32) {
        tile[row * Tile::kPitch + column] = from_float<T>(0.0F);
      }
    }
  }
}

__device__ __forceinline__ void clear_seen(Seen& seen) {
  if (threadIdx.x < 64) {
    seen.rows[threadIdx.x] = 0;
    seen.keys[threadIdx.x] = 0;
  }
}

template <typename Tile>
struct ForwardRow {
  static constexpr int kLanes = kTileThreads / Tile::kRows;
  float largest = -INFINITY;
  float sum = 0.0F;
};

// One row of a tile's scores: the running softmax, and its weights as 16-bit (or T) values.
template <typename Tile>
__device__ __forceinline__ void weigh_row(const TrainProblem& problem, const TrainTask& task,
                                          int query, int key, bool partial, float* scores,
                                          typename Tile::T* weights, float* factors, Seen& seen,
                                          ForwardRow<Tile>& state) {
  using T = typename Tile::T;
  using L = TrainLayout<Tile>;
  constexpr int kLanes = ForwardRow<Tile>::kLanes;
  const int row = threadIdx.x / kLanes, lane = threadIdx.x % kLanes;
  float* own = scores + row * L::kScorePitch;
  float largest = state.largest, slope;
  for (int column = lane; column < Tile::kRows; column += kLanes) {
    own[column] = shape_score<T>(problem, task.span, task.head, query + row, key + column,
                                 own[column], slope);
    largest = own[column] > largest || own[column] != own[column] ? own[column] : largest;
    if (partial && own[column] != -INFINITY) {
      atomicOr(&seen.keys[column], 1U);
    }
  }
#pragma unroll
  for (int distance = 1; distance < kLanes; distance *= 2) {
    const float other = __shfl_xor_sync(0xFFFFFFFFU, largest, distance);
    largest = other > largest || other != other ? other : largest;
  }
  const float origin = largest == -INFINITY ? 0.0F : largest;
  const float factor = exp2f((state.largest - origin) * kLog2Of);
  state.largest = largest;
  state.sum *= factor;
  for (int column = lane; column < Tile::kRows; column += kLanes) {
    const float weight = exp2f((own[column] - origin) * kLog2Of);
    state.sum += weight;
    weights[row * Tile::kWeightPitch + column] = from_float<T>(weight);
  }
  if (lane == 0) {
    factors[row] = factor;
  }
}

// The factor of the result and the log-sum-exp of a row, sinks counted.
template <typename Tile>
__device__ __forceinline__ void finish_train_row(const TrainProblem& problem, const TrainTask& task,
                                                 int query, float* factors,
                                                 ForwardRow<Tile>& state) {
  using T = typename Tile::T;
  constexpr int kLanes = ForwardRow<Tile>::kLanes;
  float sum = state.sum, largest = state.largest, factor = 1.0F;
#pragma unroll
  for (int distance = 1; distance < kLanes; distance *= 2) {
    sum += __shfl_xor_sync(0xFFFFFFFFU, sum, distance);
  }
  if (problem.sinks.values != nullptr) {
    const float sink = problem.sinks.is_float
                           ? static_cast<const float*>(problem.sinks.values)[task.head]
                           : to_float(static_cast<const T*>(problem.sinks.values)[task.head]);
    const float together = fmaxf(sink, largest);
    if (together != -INFINITY) {
      factor = exp2f((largest - together) * kLog2Of);
      sum = sum * factor + exp2f((sink - together) * kLog2Of);
      largest = together;
    }
  }
  const int row = threadIdx.x / kLanes;
  if (threadIdx.x % kLanes == 0) {
    factors[row] = sum == 0.0F ? 0.0F : factor / sum;
    if (query + row < task.span.queries) {
      *statistic_of(problem, problem.lse, task.span.batch, task.head,
                    task.span.query + query + row) = sum == 0.0F ? -INFINITY : largest + logf(sum);
    }
  }
}

template <typename Tile>
__global__ void __launch_bounds__(kTileThreads)
    attention_train_forward_kernel(const __grid_constant__ TrainProblem problem,
                                   const __grid_constant__ Packing packing, const bool vectors) {
  using T = typename Tile::T;
  using L = TrainLayout<Tile>;
  using Scores = typename Tile::template Sum<Tile::kRows>;
  using Out = typename Tile::template Sum<Tile::kD>;
  constexpr int kRows = Tile::kRows;
  extern __shared__ __align__(16) unsigned char shared[];
  __shared__ float factors[kRows];
  __shared__ Seen seen;
  T* queries = reinterpret_cast<T*>(shared);
  T *keys = queries + L::kPlane, *values = keys + L::kPlane, *weights = values + L::kPlane;
  float* scores = reinterpret_cast<float*>(weights + L::kWeights);
  const Problem& base = problem.base;
  const int heads = static_cast<int>(base.key_heads * base.groups);
  const TrainTask task = train_task<kRows, false>(problem, packing, heads);
  const Span& span = task.span;
  const int query = span.tile * kRows, head_dim = static_cast<int>(base.head_dim);
  if (!span.exists || query >= span.queries) {
    return;
  }
  const int key_head = task.head / static_cast<int>(base.groups), depth = (head_dim + 15) / 16 * 16;
  const T* key_rows = place_in<const T>(base.key, base.key_stride, span.batch, key_head, span.key);
  const T* value_rows =
      place_in<const T>(base.value, base.value_stride, span.batch, key_head, span.key);
  load_tile<Tile>(
      queries, place_in<const T>(base.query, base.query_stride, span.batch, span.query, task.head),
      base.query_stride[1], query, span.queries, head_dim, vectors);
  const int last = min(query + kRows, span.queries) - 1;
  const int begin = sight_of(problem, span, query).begin / kRows * kRows;
  const int end = sight_of(problem, span, last).end;
  Out out;
  ForwardRow<Tile> state;
  for (int key = begin; key < end; key += kRows) {
    const bool partial = hides_some(problem, span, query, key, kRows);
    __syncthreads();
    load_tile<Tile>(keys, key_rows, base.key_stride[2], key, span.keys, head_dim, vectors);
    load_tile<Tile>(values, value_rows, base.value_stride[2], key, span.keys, head_dim, vectors);
    clear_seen(seen);
    __syncthreads();
    Scores products;
    Tile::template multiply<kRows, false, false>(products, queries, Tile::kPitch, keys,
                                                 Tile::kPitch, depth, kRows);
#pragma unroll
    for (int index = 0; index < Scores::kCount; ++index) {
      scores[Scores::row(index) * L::kScorePitch + Scores::column(index)] = products[index];
    }
    __syncthreads();
    weigh_row<Tile>(problem, task, query, key, partial, scores, weights, factors, seen, state);
    __syncthreads();
    if (partial) {
      clear_unseen<Tile>(values, seen.keys);
      __syncthreads();
    }
#pragma unroll
    for (int index = 0; index < Out::kCount; ++index) {
      out[index] *= factors[Out::row(index)];
    }
    Tile::template multiply<Tile::kD, false, true>(out, weights, Tile::kWeightPitch, values,
                                                   Tile::kPitch, kRows, depth);
  }
  __syncthreads();
  finish_train_row<Tile>(problem, task, query, factors, state);
  __syncthreads();
  store_tile<Tile>(out, place_in<T>(base.out, base.out_stride, span.batch, span.query, task.head),
                   base.out_stride[1], query, span.queries, head_dim,
                   [&](int row) { return factors[row]; });
}

}  // namespace graft_kernels::attention
