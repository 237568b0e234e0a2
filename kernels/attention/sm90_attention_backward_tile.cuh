// What a computing warpgroup of the gradients on Hopper does to one tile. Device code, no Torch.
#pragma once

#include "kernels/attention/attention_mma.cuh"
#include "kernels/attention/sm90_attention_backward_kernel.cuh"

namespace graft_kernels::attention::sm90 {

// Rows [from, to) of a tile become zeros, by both computing warpgroups: what lies there is another sequence's.
template <int kBoxes>
__device__ __forceinline__ void clear_rows(unsigned char* tile, int box_bytes, int from, int to) {
  const int thread = static_cast<int>(threadIdx.x) - 128;
  for (int index = thread; index < (to - from) * kBoxes * 8; index += 256) {
    const int row = from + index / (kBoxes * 8), chunk = index % (kBoxes * 8);
    *reinterpret_cast<uint4*>(tile + chunk / 8 * box_bytes + row * 128 + chunk % 8 * 16) = {0, 0, 0,
                                                                                            0};
  }
  publish_shared();
  sync_named(kTailCleared, 256);
}

// sum[64 keys x kTile] = a[64 x kD] b[kTile x kD]^T, started.
template <typename T, int kD>
__device__ __forceinline__ void start_turned(float (&sum)[BackwardLayout<kD>::kTile / 2],
                                             const unsigned char* keys,
                                             const unsigned char* queries) {
  using L = BackwardLayout<kD>;
  const uint64_t a = describe_rows(keys), b = describe_rows(queries);
#pragma unroll
  for (int step = 0; step < kD / 16; ++step) {
    const int box = step / 4, inside = step % 4 * 32;
    multiply_shared<T>(sum, a + (box * L::kKeyBox + inside) / 16,
                       b + (box * L::kQueryBox + inside) / 16, step > 0);
  }
}

// sum[64 keys x kD] += a[64 x kTile] b[kTile x kD], started; a in registers.
template <typename T, int kD>
__device__ __forceinline__ void start_sums(float (&sum)[kD / 2],
                                           const uint32_t (&a)[BackwardLayout<kD>::kTile / 16][4],
                                           const unsigned char* queries) {
  using L = BackwardLayout<kD>;
  const uint64_t b = describe_columns(queries, L::kQueryBox);
#pragma unroll
  for (int step = 0; step < L::kTile / 16; ++step) {
    multiply_registers<T>(sum, a[step], b + step * 2048 / 16);
  }
}

// sum[64x64] = slopes[64 queries x 128 keys] keys[128 x 64 columns], started: at D 128 the
// warpgroup's columns of 64 queries, at D 64 its queries.
template <typename T, int kD>
__device__ __forceinline__ void start_queries(float (&sum)[32], const unsigned char* slopes,
                                              const unsigned char* keys, int group) {
  using L = BackwardLayout<kD>;
  const uint64_t a = describe_rows(slopes + (kD == 64 ? group * 64 * 128 : 0));
  const uint64_t b = describe_columns(keys + (kD == 64 ? 0 : group * L::kKeyBox), L::kKeyBox);
#pragma unroll
  for (int step = 0; step < kBackwardKeys / 16; ++step) {
    const int box = step / 4, inside = step % 4 * 32;
    multiply_shared<T, true>(sum, a + (box * L::kSlopeBox + inside) / 16, b + step * 2048 / 16,
                             step > 0);
  }
}

// What a thread's two keys are seen by: queries [first[i], last[i]) of the sequence.
struct KeySight {
  int first[2], last[2];
};

__device__ __forceinline__ KeySight key_sight(const TrainProblem& problem, const BackwardTask& task,
                                              int group) {
  const int warp = static_cast<int>(threadIdx.x) / 32 % 4,
            lane = static_cast<int>(threadIdx.x) % 32;
  KeySight sight;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int key = task.first_key + group * 64 + warp * 16 + lane / 4 + half * 8;
    const Sight rows = queries_seeing(problem, task.span, key, 1);
    sight.first[half] = rows.begin;
    sight.last[half] = key < task.span.keys ? rows.end : 0;
  }
  return sight;
}

// Whether all 64 keys of a warpgroup are seen by all queries of a tile that exist.
__device__ __forceinline__ bool all_seen(const TrainProblem& problem, const BackwardTask& task,
                                         int group, int query, int tile) {
  const int key = task.first_key + group * 64, shift = task.span.keys - task.span.queries;
  return key + 64 <= task.span.keys && (!problem.base.causal || key + 63 <= query + shift) &&
         (problem.window == 0 || key > query + tile - 1 + shift - problem.window);
}

// Scores become weights. `middle`, where there is one, is arrived at behind half of them: the assembler would put the wait
// for the products that run meanwhile before nearly all.
template <int kCount>
__device__ __forceinline__ void weigh(float (&scores)[kCount], const float* lse, float scale_log2,
                                      uint64_t* middle) {
  const float2* own = reinterpret_cast<const float2*>(lse) + threadIdx.x % 4;
  uint32_t signs = 0;
#pragma unroll
  for (int eight = 0; eight < kCount / 4; ++eight) {
    if (middle != nullptr && eight == kCount / 8) {
      arrive_behind(middle, __uint_as_float(signs));
    }
    const float2 origin = own[eight * 4];
#pragma unroll
    for (int index = 0; index < 4; ++index) {
      float& score = scores[eight * 4 + index];
      score = exp2_fast(fmaf(score, scale_log2, index % 2 == 0 ? -origin.x : -origin.y));
    }
    signs |= __float_as_uint(scores[eight * 4 + 1]) | __float_as_uint(scores[eight * 4 + 3]);
  }
}

template <int kCount>
__device__ __forceinline__ void hide_pairs(float (&scores)[kCount], const KeySight& sight,
                                           int query) {
  const int first = query + static_cast<int>(threadIdx.x) % 4 * 2;
#pragma unroll
  for (int index = 0; index < kCount; ++index) {
    const int own = first + index / 4 * 8 + index % 2, half = index % 4 / 2;
    if (own < sight.first[half] || own >= sight.last[half]) {
      scores[index] = -INFINITY;
    }
  }
}

// grads, of weights, become the gradients of scores.
template <int kCount>
__device__ __forceinline__ void slope(const float (&weights)[kCount], const float* delta,
                                      float (&grads)[kCount]) {
  const float2* own = reinterpret_cast<const float2*>(delta) + threadIdx.x % 4;
#pragma unroll
  for (int eight = 0; eight < kCount / 4; ++eight) {
    const float2 mean = own[eight * 4];
#pragma unroll
    for (int index = 0; index < 4; ++index) {
      const int at = eight * 4 + index;
      grads[at] = weights[at] * (grads[at] - (index % 2 == 0 ? mean.x : mean.y));
    }
  }
}

// Gradients of scores [64 keys x kTile] into the box of their keys, [kTile][64 keys].
template <int kSteps>
__device__ __forceinline__ void store_slopes(unsigned char* box,
                                             const uint32_t (&words)[kSteps][4]) {
  const int warp = static_cast<int>(threadIdx.x) / 32 % 4,
            lane = static_cast<int>(threadIdx.x) % 32;
  const int row = lane / 16 * 8 + lane % 8, chunk = (warp * 2 + lane / 8 % 2) ^ (lane % 8);
#pragma unroll
  for (int step = 0; step < kSteps; ++step) {
    store_matrices_turned(box + (step * 16 + row) * 128 + chunk * 16, words[step]);
  }
}

// 64 rows of a warpgroup out of registers, through shared memory so that whole rows are written.
template <typename T, int kD>
__device__ __forceinline__ void store_rows(unsigned char* staged, const float (&sum)[kD / 2],
                                           float factor, void* to, const int64_t (&stride)[3],
                                           const BackwardTask& task, int group) {
  using L = BackwardLayout<kD>;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32 % 4;
#pragma unroll
  for (int index = 0; index < kD / 4; ++index) {
    const int tile = index / 2, row = warp * 16 + lane / 4 + index % 2 * 8;
    const int chunk = (tile % 8) ^ (row % 8);
    *reinterpret_cast<uint32_t*>(staged + tile / 8 * L::kKeyBox + row * 128 + chunk * 16 +
                                 lane % 4 * 4) =
        pack<T>(sum[index * 2] * factor, sum[index * 2 + 1] * factor);
  }
  __syncwarp();
  constexpr int kChunks = kD / 8;
#pragma unroll
  for (int index = lane; index < 16 * kChunks; index += 32) {
    const int row = warp * 16 + index / kChunks, column = index % kChunks;
    const int key = task.first_key + group * 64 + row, chunk = (column % 8) ^ (row % 8);
    if (key < task.span.keys) {
      T* row_to = place_in<T>(to, stride, task.span.batch, task.key_head, task.span.key + key);
      reinterpret_cast<uint4*>(row_to)[column] = *reinterpret_cast<const uint4*>(
          staged + column / 8 * L::kKeyBox + row * 128 + chunk * 16);
    }
  }
}

}  // namespace graft_kernels::attention::sm90
