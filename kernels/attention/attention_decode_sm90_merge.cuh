// The merge of the attention of few rows on Hopper: the warps of all blocks of a cluster read one another's shared
// memory. Device code, no Torch.
#pragma once

#include "kernels/attention/attention_decode_sm90_rows.cuh"

namespace graft_kernels::attention::sm90 {

// What the warps found: largest score and sum [part][row], weighted values [part][row][kPitch].
struct PartRows {
  float* values;
  float2* sums;
};

template <typename Ring>
__device__ __forceinline__ void share_rows(const Place& place, const RowsState<Ring::kD>& state,
                                           const PartRows& to) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int part = warp / Ring::kSetWarps * kKeyWarps + warp % kKeyWarps;
  const int first_row = warp % Ring::kSetWarps / kKeyWarps * kBlockRows;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    float sum = state.sum[half];
    sum += __shfl_xor_sync(0xFFFFFFFFU, sum, 1);
    sum += __shfl_xor_sync(0xFFFFFFFFU, sum, 2);
    const int row = first_row + lane / 4 + half * 8;
    if (row < place.rows) {
      const int at = part * Ring::kRows + row;
      if (lane % 4 == 0) {
        to.sums[at] = {state.largest[half], sum};
      }
#pragma unroll
      for (int tile = 0; tile < Ring::kD / 8; ++tile) {
        *reinterpret_cast<float2*>(to.values + at * Ring::kPitch + tile * 8 + lane % 4 * 2) = {
            state.out[tile][half * 2], state.out[tile][half * 2 + 1]};
      }
    }
  }
}

__device__ __forceinline__ uint32_t address_of_rank(const void* own, unsigned rank) {
  uint32_t address;
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(address) : "r"(shared_address(own)), "r"(rank));
  return address;
}

__device__ __forceinline__ float2 load_of_rank(uint32_t address) {
  float2 value;
  asm volatile("ld.shared::cluster.v2.f32 {%0, %1}, [%2];"
               : "=f"(value.x), "=f"(value.y)
               : "r"(address)
               : "memory");
  return value;
}

__device__ __forceinline__ unsigned rank_in_cluster() {
  unsigned rank;
  asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}

// What this thread wrote can be read by the cluster's threads once they waited.
__device__ __forceinline__ void arrive_cluster() {
  asm volatile("barrier.cluster.arrive.release;" ::: "memory");
}

// The same without a word on memory.
__device__ __forceinline__ void arrive_cluster_relaxed() {
  asm volatile("barrier.cluster.arrive.relaxed;" ::: "memory");
}

__device__ __forceinline__ void wait_cluster() {
  asm volatile("barrier.cluster.wait.acquire;" ::: "memory");
}

// Two columns of a row of the cluster's keys: what they come to goes where it belongs.
template <typename T>
__device__ __forceinline__ void write_columns(const DecodeProblem& problem, const Place& place,
                                              int row, int column, float largest, float sum,
                                              float2 value) {
  if (problem.splits > 1) {
    float* part = part_row(problem, place.block + row / kBlockRows, place.split, row % kBlockRows);
    *reinterpret_cast<float2*>(part + 2 + column) = value;
    if (column == 0) {
      *reinterpret_cast<float2*>(part) = {largest, sum};
    }
    return;
  }
  const RowView view = view_row(problem, place, row);
  const RowResult result = finish_row<T>(problem, view.head, largest, sum);
  T* out = out_row<T>(problem, place.batch, view) + column;
  *reinterpret_cast<uint32_t*>(out) = pack<T>(value.x * result.factor, value.y * result.factor);
  if (column == 0) {
    store_lse(problem, place.batch, view, result.lse);
  }
}

// Every block of the cluster merges its share of the columns: `cluster` lanes a pair of columns, each the
// warps' parts of one block.
template <typename T, typename Ring>
__device__ __forceinline__ void merge_parts(const DecodeProblem& problem, const Place& place,
                                            const PartRows& parts, int cluster) {
  const int pairs = static_cast<int>(problem.base.head_dim) / 2;
  const int share = (place.rows * pairs + cluster - 1) / cluster;
  const int begin = static_cast<int>(rank_in_cluster()) * share;
  const int end = min(begin + share, place.rows * pairs);
  const int slots = Ring::kThreads / cluster, slot = static_cast<int>(threadIdx.x) / cluster;
  const unsigned peer = threadIdx.x % static_cast<unsigned>(cluster);
  for (int first = begin; first < end; first += slots) {
    const int index = min(first + slot, end - 1);
    const int row = index / pairs, column = (index - row * pairs) * 2;
    float2 sums[Ring::kParts], columns[Ring::kParts];
    const uint32_t sums_at = address_of_rank(parts.sums + row, peer);
    const uint32_t columns_at = address_of_rank(parts.values + row * Ring::kPitch + column, peer);
#pragma unroll
    for (int part = 0; part < Ring::kParts; ++part) {
      sums[part] = load_of_rank(sums_at + part * Ring::kRows * 8);
      columns[part] = load_of_rank(columns_at + part * Ring::kRows * Ring::kPitch * 4);
    }
    float largest = -INFINITY, sum = 0.0F;
    float2 value = {0.0F, 0.0F};
#pragma unroll
    for (int part = 0; part < Ring::kParts; ++part) {
      largest = fmaxf(largest, sums[part].x);
    }
    for (int distance = cluster / 2; distance > 0; distance /= 2) {
      largest = fmaxf(largest, __shfl_xor_sync(0xFFFFFFFFU, largest, distance));
    }
    const float origin = origin_of(largest);
#pragma unroll
    for (int part = 0; part < Ring::kParts; ++part) {
      const float factor = exp2_fast(sums[part].x - origin);
      sum += sums[part].y * factor;
      value.x += columns[part].x * factor;
      value.y += columns[part].y * factor;
    }
    for (int distance = cluster / 2; distance > 0; distance /= 2) {
      sum += __shfl_xor_sync(0xFFFFFFFFU, sum, distance);
      value.x += __shfl_xor_sync(0xFFFFFFFFU, value.x, distance);
      value.y += __shfl_xor_sync(0xFFFFFFFFU, value.y, distance);
    }
    if (peer == 0 && first + slot < end) {
      write_columns<T>(problem, place, row, column, largest, sum, value);
    }
  }
}

}  // namespace graft_kernels::attention::sm90
