// Gradients of attention on CUDA, any head size, mask and cap, with one writer and one order of sums each.
// Scores and weights are made again from the log-sum-exp (Dao et al. 2022, algorithm 4), once per tile
// of queries for their gradient and once per tile of keys for those of keys and values. Device code,
// no Torch.
#pragma once

#include <cstdint>

#include "kernels/attention/attention_train_kernel.cuh"

namespace graft_kernels::attention {

// delta: the sum over each row of grad_out * out. A warp per row of [batch, head, query].
template <typename T>
__global__ void __launch_bounds__(kTileThreads)
    attention_delta_kernel(const __grid_constant__ TrainProblem problem) {
  const Problem& base = problem.base;
  const int64_t heads = base.key_heads * base.groups;
  const int64_t row = (static_cast<int64_t>(blockIdx.x) * kTileThreads + threadIdx.x) / 32;
  if (row >= base.batch * heads * base.queries) {
    return;
  }
  const int64_t query = row % base.queries, head = row / base.queries % heads;
  const int64_t batch = row / base.queries / heads;
  const T* out = place_in<const T>(base.out, base.out_stride, batch, query, head);
  const T* grad = place_in<const T>(problem.grad_out, problem.grad_out_stride, batch, query, head);
  float sum = 0.0F;
  for (int column = threadIdx.x % 32; column < base.head_dim; column += 32) {
    sum = fmaf(to_float(out[column]), to_float(grad[column]), sum);
  }
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2) {
    sum += __shfl_xor_sync(0xFFFFFFFFU, sum, distance);
  }
  if (threadIdx.x % 32 == 0) {
    *statistic_of(problem, problem.delta, batch, head, query) = sum;
  }
}

// The planes of a backward's tiles in shared memory.
template <typename Tile>
struct BackwardTiles {
  using T = typename Tile::T;
  T *queries, *grads, *keys, *values, *weights, *slopes;
  __device__ explicit BackwardTiles(unsigned char* shared) {
    using L = TrainLayout<Tile>;
    queries = reinterpret_cast<T*>(shared);
    grads = queries + L::kPlane;
    keys = grads + L::kPlane;
    values = keys + L::kPlane;
    weights = values + L::kPlane;
    slopes = weights + L::kWeights;
  }
};

// weights: exp(score - lse); slopes: the gradient of the products query . key, but for the scale. Both
// zero where hidden.
template <typename Tile>
__device__ __forceinline__ void make_weights(const TrainProblem& problem, const TrainTask& task,
                                             int query, int key, int depth, bool partial,
                                             const BackwardTiles<Tile>& tiles, Seen& seen) {
  using T = typename Tile::T;
  using Scores = typename Tile::template Sum<Tile::kRows>;
  const Span& span = task.span;
  Scores scores, grads;
  Tile::template multiply<Tile::kRows, false, false>(scores, tiles.queries, Tile::kPitch,
                                                     tiles.keys, Tile::kPitch, depth, Tile::kRows);
  Tile::template multiply<Tile::kRows, false, false>(grads, tiles.grads, Tile::kPitch, tiles.values,
                                                     Tile::kPitch, depth, Tile::kRows);
#pragma unroll
  for (int index = 0; index < Scores::kCount; ++index) {
    const int row = Scores::row(index), column = Scores::column(index);
    float slope, weight = 0.0F, grad = 0.0F;
    const float score =
        shape_score<T>(problem, span, task.head, query + row, key + column, scores[index], slope);
    const int64_t at = span.query + query + row;
    const float lse = query + row < span.queries
                          ? *statistic_of(problem, problem.lse, span.batch, task.head, at)
                          : -INFINITY;
    if (score != -INFINITY && lse != -INFINITY) {
      const float delta = *statistic_of(problem, problem.delta, span.batch, task.head, at);
      weight = exp2f((score - lse) * kLog2Of);
      grad = weight * (grads[index] - delta) * slope;
      if (partial) {
        atomicOr(&seen.rows[row], 1U);
        atomicOr(&seen.keys[column], 1U);
      }
    }
    tiles.weights[row * Tile::kWeightPitch + column] = from_float<T>(weight);
    tiles.slopes[row * Tile::kWeightPitch + column] = from_float<T>(grad);
  }
}

template <typename Tile>
__global__ void __launch_bounds__(kTileThreads)
    attention_grad_queries_kernel(const __grid_constant__ TrainProblem problem,
                                  const __grid_constant__ Packing packing, const bool vectors) {
  using T = typename Tile::T;
  constexpr int kRows = Tile::kRows;
  extern __shared__ __align__(16) unsigned char shared[];
  __shared__ Seen seen;
  const BackwardTiles<Tile> tiles(shared);
  const Problem& base = problem.base;
  const int heads = static_cast<int>(base.key_heads * base.groups);
  const TrainTask task = train_task<kRows, false>(problem, packing, heads);
  const Span& span = task.span;
  const int query = span.tile * kRows, head_dim = static_cast<int>(base.head_dim);
  if (!span.exists || query >= span.queries) {
    return;
  }
  const int key_head = task.head / static_cast<int>(base.groups), depth = (head_dim + 15) / 16 * 16;
  const auto load = [&](T* to, const void* from, const int64_t(&stride)[3], int64_t a, int64_t b,
                        int64_t step, int first, int count) {
    load_tile<Tile>(to, place_in<const T>(from, stride, span.batch, a, b), step, first, count,
                    head_dim, vectors);
  };
  load(tiles.queries, base.query, base.query_stride, span.query, task.head, base.query_stride[1],
       query, span.queries);
  load(tiles.grads, problem.grad_out, problem.grad_out_stride, span.query, task.head,
       problem.grad_out_stride[1], query, span.queries);
  const int last = min(query + kRows, span.queries) - 1;
  const int begin = sight_of(problem, span, query).begin / kRows * kRows;
  const int end = sight_of(problem, span, last).end;
  typename Tile::template Sum<Tile::kD> sum;
  for (int key = begin; key < end; key += kRows) {
    const bool partial = hides_some(problem, span, query, key, kRows);
    __syncthreads();
    load(tiles.keys, base.key, base.key_stride, key_head, span.key, base.key_stride[2], key,
         span.keys);
    load(tiles.values, base.value, base.value_stride, key_head, span.key, base.value_stride[2], key,
         span.keys);
    clear_seen(seen);
    __syncthreads();
    make_weights<Tile>(problem, task, query, key, depth, partial, tiles, seen);
    __syncthreads();
    if (partial) {
      clear_unseen<Tile>(tiles.keys, seen.keys);
      __syncthreads();
    }
    Tile::template multiply<Tile::kD, false, true>(sum, tiles.slopes, Tile::kWeightPitch,
                                                   tiles.keys, Tile::kPitch, kRows, depth);
  }
  store_tile<Tile>(
      sum,
      place_in<T>(problem.grad_query, problem.grad_query_stride, span.batch, span.query, task.head),
      problem.grad_query_stride[1], query, span.queries, head_dim, [&](int) { return base.scale; });
}

template <typename Tile>
__global__ void __launch_bounds__(kTileThreads)
    attention_grad_keys_kernel(const __grid_constant__ TrainProblem problem,
                               const __grid_constant__ Packing packing, const bool vectors) {
  using T = typename Tile::T;
  constexpr int kRows = Tile::kRows;
  extern __shared__ __align__(16) unsigned char shared[];
  __shared__ Seen seen;
  const BackwardTiles<Tile> tiles(shared);
  const Problem& base = problem.base;
  TrainTask task = train_task<kRows, true>(problem, packing, static_cast<int>(base.key_heads));
  const Span& span = task.span;
  const int key = span.tile * kRows, head_dim = static_cast<int>(base.head_dim);
  if (!span.exists || key >= span.keys) {
    return;
  }
  const int key_head = task.head, groups = static_cast<int>(base.groups);
  const int depth = (head_dim + 15) / 16 * 16;
  const auto load = [&](T* to, const void* from, const int64_t(&stride)[3], int64_t a, int64_t b,
                        int64_t step, int first, int count) {
    load_tile<Tile>(to, place_in<const T>(from, stride, span.batch, a, b), step, first, count,
                    head_dim, vectors);
  };
  load(tiles.keys, base.key, base.key_stride, key_head, span.key, base.key_stride[2], key,
       span.keys);
  load(tiles.values, base.value, base.value_stride, key_head, span.key, base.value_stride[2], key,
       span.keys);
  const Sight range = queries_seeing(problem, span, key, kRows);
  typename Tile::template Sum<Tile::kD> key_sum, value_sum;
  for (int group = 0; group < groups; ++group) {
    task.head = key_head * groups + group;
    for (int query = range.begin / kRows * kRows; query < range.end; query += kRows) {
      const bool partial = hides_some(problem, span, query, key, kRows);
      __syncthreads();
      load(tiles.queries, base.query, base.query_stride, span.query, task.head,
           base.query_stride[1], query, span.queries);
      load(tiles.grads, problem.grad_out, problem.grad_out_stride, span.query, task.head,
           problem.grad_out_stride[1], query, span.queries);
      clear_seen(seen);
      __syncthreads();
      make_weights<Tile>(problem, task, query, key, depth, partial, tiles, seen);
      __syncthreads();
      if (partial) {
        clear_unseen<Tile>(tiles.queries, seen.rows);
        clear_unseen<Tile>(tiles.grads, seen.rows);
        __syncthreads();
      }
      Tile::template multiply<Tile::kD, true, true>(value_sum, tiles.weights, Tile::kWeightPitch,
                                                    tiles.grads, Tile::kPitch, kRows, depth);
      Tile::template multiply<Tile::kD, true, true>(key_sum, tiles.slopes, Tile::kWeightPitch,
                                                    tiles.queries, Tile::kPitch, kRows, depth);
    }
  }
  store_tile<Tile>(
      key_sum,
      place_in<T>(problem.grad_key, problem.grad_key_stride, span.batch, key_head, span.key),
      problem.grad_key_stride[2], key, span.keys, head_dim, [&](int) { return base.scale; });
  store_tile<Tile>(
      value_sum,
      place_in<T>(problem.grad_value, problem.grad_value_stride, span.batch, key_head, span.key),
      problem.grad_value_stride[2], key, span.keys, head_dim, [](int) { return 1.0F; });
}

}  // namespace graft_kernels::attention
