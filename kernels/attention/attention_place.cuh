// What the attention kernels share: which keys a block works on, what a row may see of them, and how
// a score, a part and a result are written. Device code, no Torch.
#pragma once

#include <cstdint>

#include "kernels/attention/attention_decode.h"
#include "kernels/common/vec.cuh"

namespace graft_kernels::attention {

inline constexpr float kLog2E = 1.4426950408889634F;
inline constexpr float kLn2 = 0.6931471805599453F;

// Rows [row, row + rows) of one batch entry and key head against keys [begin, end). Row r is query
// r / groups and query head head * groups + r % groups.
struct Place {
  int64_t batch;
  int64_t head;
  int64_t block;
  int split;
  int row;
  int rows;
  int length;
  int begin;
  int end;
};

__device__ __forceinline__ int row_end(const DecodeProblem& problem, int length, int query) {
  const int end = length - static_cast<int>(problem.base.queries) + query + 1;
  return problem.base.causal ? max(min(end, length), 0) : length;
}

__device__ __forceinline__ int row_begin(const DecodeProblem& problem, int length, int query) {
  const int64_t own = static_cast<int64_t>(length) - problem.base.queries + query;
  return problem.window > 0 ? static_cast<int>(max(own - problem.window + 1, int64_t{0})) : 0;
}

// Divisions are of 32 bits: those of 64 take as long as a tile of keys.
__device__ __forceinline__ Place place_of(const DecodeProblem& problem) {
  const Problem& base = problem.base;
  const unsigned splits = problem.splits, groups = static_cast<unsigned>(base.groups);
  const unsigned rows = static_cast<unsigned>(base.rows());
  const unsigned row_blocks = (rows + kBlockRows - 1) / kBlockRows;
  const unsigned key_heads = static_cast<unsigned>(base.key_heads);
  const unsigned block = splits == 1 ? blockIdx.x : blockIdx.x / splits;
  const unsigned head = row_blocks == 1 ? block : block / row_blocks;
  Place place;
  place.block = block;
  place.split = static_cast<int>(blockIdx.x - block * splits);
  place.row = static_cast<int>((block - head * row_blocks) * kBlockRows);
  place.rows = min(kBlockRows, static_cast<int>(rows) - place.row);
  place.batch = head / key_heads;
  place.head = head - static_cast<unsigned>(place.batch) * key_heads;
  const int keys = static_cast<int>(base.keys);
  place.length =
      problem.lengths == nullptr ? keys : min(max(problem.lengths[place.batch], 0), keys);
  const int end =
      row_end(problem, place.length, static_cast<int>((place.row + place.rows - 1U) / groups));
  const int begin =
      min(row_begin(problem, place.length, static_cast<int>(place.row / groups)), end);
  const unsigned tiles = static_cast<unsigned>(end - begin + kTileKeys - 1) / kTileKeys;
  const int share = static_cast<int>((tiles + splits - 1) / splits) * kTileKeys;
  place.begin = min(begin + place.split * share, end);
  place.end = min(place.begin + share, end);
  return place;
}

// Where key `key` of the place's batch entry and head lies, in elements from the cache's start.
template <bool kPaged>
__device__ __forceinline__ int64_t key_offset(const DecodeProblem& problem, const Place& place,
                                              const int64_t (&stride)[3], int key) {
  if constexpr (kPaged) {
    const int page = problem.table[place.batch * problem.table_stride + key / problem.page_keys];
    return page * stride[0] + place.head * stride[1] + key % problem.page_keys * stride[2];
  } else {
    return place.batch * stride[0] + place.head * stride[1] + key * stride[2];
  }
}

// One row of queries as the kernels see it.
struct RowView {
  int64_t query;
  int64_t head;
  int begin;
  int end;
};

__device__ __forceinline__ RowView view_row(const DecodeProblem& problem, const Place& place,
                                            int row) {
  const unsigned groups = static_cast<unsigned>(problem.base.groups);
  const unsigned at = place.row + row, query = at / groups;
  RowView view;
  view.query = query;
  view.head = place.head * groups + (at - query * groups);
  view.begin = row_begin(problem, place.length, static_cast<int>(query));
  view.end = row < place.rows ? row_end(problem, place.length, static_cast<int>(query)) : 0;
  return view;
}

// The score of a key, times log2(e); -infinity where the row may not see it.
template <typename T>
__device__ __forceinline__ float finish_score(const DecodeProblem& problem, const Place& place,
                                              const RowView& row, int key, float dot) {
  const Problem& base = problem.base;
  if (key < row.begin || key >= min(row.end, place.end)) {
    return -INFINITY;
  }
  float score = dot * base.scale;
  if (base.softcap > 0.0F) {
    score = base.softcap * tanhf(score / base.softcap);
  }
  if (base.mask != nullptr) {
    const int64_t at = place.batch * base.mask_stride[0] + row.head * base.mask_stride[1] +
                       row.query * base.mask_stride[2] + key;
    const float added = base.float_mask ? static_cast<const float*>(base.mask)[at]
                                        : to_float(static_cast<const T*>(base.mask)[at]);
    if (added == -INFINITY) {
      return -INFINITY;
    }
    score += added;
  }
  return score * kLog2E;
}

// What a row's scores are measured against, so that rows that see nothing stay finite.
__device__ __forceinline__ float origin_of(float largest) {
  return largest == -INFINITY ? 0.0F : largest;
}

// Largest score and sum of a row, and the factor that turns its weighted values into the result.
struct RowResult {
  float factor;
  float lse;
};

// `largest` in units of log2, `sum` relative to it.
template <typename T>
__device__ __forceinline__ RowResult finish_row(const DecodeProblem& problem, int64_t head,
                                                float largest, float sum) {
  float origin = origin_of(largest);
  float factor = 1.0F;
  if (problem.sinks.values != nullptr) {
    const float sink = kLog2E * (problem.sinks.is_float
                                     ? static_cast<const float*>(problem.sinks.values)[head]
                                     : to_float(static_cast<const T*>(problem.sinks.values)[head]));
    const float together = origin_of(fmaxf(largest, sink));
    factor = sum == 0.0F ? 0.0F : exp2f(origin - together);
    sum = sum * factor + exp2f(sink - together);
    origin = together;
  }
  if (sum == 0.0F) {
    return {0.0F, -INFINITY};
  }
  return {factor / sum, origin * kLn2 + logf(sum)};
}

// [block][split][row][2 + D], see DecodeProblem::parts.
__device__ __forceinline__ float* part_row(const DecodeProblem& problem, int64_t block, int split,
                                           int row) {
  return problem.parts +
         ((block * problem.splits + split) * kBlockRows + row) * (problem.base.head_dim + 2);
}

template <typename T>
__device__ __forceinline__ T* out_row(const DecodeProblem& problem, int64_t batch,
                                      const RowView& row) {
  const Problem& base = problem.base;
  return static_cast<T*>(base.out) + batch * base.out_stride[0] + row.query * base.out_stride[1] +
         row.head * base.out_stride[2];
}

__device__ __forceinline__ void store_lse(const DecodeProblem& problem, int64_t batch,
                                          const RowView& row, float lse) {
  if (problem.lse != nullptr) {
    const Problem& base = problem.base;
    problem.lse[(batch * base.key_heads * base.groups + row.head) * base.queries + row.query] = lse;
  }
}

// The next kernel of the chain may be brought onto the device; its memory reads wait.
__device__ __forceinline__ void allow_next_kernel() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// Waits until what the kernel before wrote can be read.
__device__ __forceinline__ void wait_for_kernel_before() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

}  // namespace graft_kernels::attention
