// One new token a row on CUDA: a thread rotates one vector of a head, or copies one of a value. Device
// code on raw pointers; no Torch.
#pragma once

#include <cuda_runtime.h>

#include "kernels/common/overlap.cuh"
#include "kernels/rotary/rotary_append.h"
#include "kernels/rotary/rotary_kernel.cuh"

namespace graft_kernels::rotary {

inline constexpr int kAppendThreads = 128;

// What there is to do for one row, in items of one thread each.
struct AppendItems {
  int turned = 0;  // vectors of pairs of the heads of query and key
  int kept = 0;    // elements behind the rotated ones
  int values = 0;  // vectors of the values
  unsigned blocks = 1;
  int all() const { return turned + kept + values; }
};

template <typename T>
struct AppendRow {
  const AppendProblem& problem;
  int64_t batch, place;

  __device__ __forceinline__ const T* in(int head) const {
    const int num_query = static_cast<int>(problem.base.heads[0].count);
    const Heads& heads = problem.base.heads[head < num_query ? 0 : 1];
    return static_cast<const T*>(heads.in) + batch * heads.in_stride[0] +
           (head < num_query ? head : head - num_query) * heads.in_stride[2];
  }
  __device__ __forceinline__ T* out(int head) const {
    const int num_query = static_cast<int>(problem.base.heads[0].count);
    const Heads& heads = problem.base.heads[head < num_query ? 0 : 1];
    return static_cast<T*>(heads.out) + batch * heads.out_stride[0] +
           (head < num_query ? head * heads.out_stride[2]
                             : (head - num_query) * heads.out_stride[2] +
                                   place * problem.key_place_stride);
  }
};

// grid batch * items.blocks
template <bool kInterleaved, typename T, typename S, int kSize>
__global__ void __launch_bounds__(kAppendThreads)
    rotary_append_kernel(const __grid_constant__ AppendProblem problem,
                         const __grid_constant__ AppendItems items) {
  const Problem& base = problem.base;
  const int64_t half = base.rotary_dim / 2;
  const int64_t batch = blockIdx.x / items.blocks;
  let_next_start();
  wait_for_previous();
  const int64_t place = problem.lengths[batch] - int64_t{1}, position = problem.positions[batch];
  if (place < 0 || place >= problem.places || position < 0 || position >= problem.table_rows) {
    return;
  }
  const AppendRow<T> row{problem, batch, place};
  int item = static_cast<int>(blockIdx.x % items.blocks * kAppendThreads + threadIdx.x);
  if (item < items.turned) {
    const int lanes = static_cast<int>(half) / kSize, head = item / lanes;
    const int lane = item - head * lanes;
    const S* cos = static_cast<const S*>(base.cos.data) + position * problem.table_stride[0];
    const S* sin = static_cast<const S*>(base.sin.data) + position * problem.table_stride[1];
    const auto pair = load_pair<kInterleaved, T, kSize>(row.in(head), lane, half);
    store_pair<kInterleaved>(
        row.out(head), lane, half,
        rotate<false, T, S, kSize>(pair, load_pair<kInterleaved, S, kSize>(cos, lane, half),
                                   load_pair<kInterleaved, S, kSize>(sin, lane, half)));
    return;
  }
  item -= items.turned;
  if (item < items.kept) {
    const int rest = static_cast<int>(base.head_dim - base.rotary_dim), head = item / rest;
    const int64_t element = base.rotary_dim + (item - head * rest);
    row.out(head)[element] = row.in(head)[element];
    return;
  }
  item -= items.kept;
  if (item < items.values) {
    const int lanes = static_cast<int>(base.head_dim) / kSize, head = item / lanes;
    const int64_t element = int64_t{item - head * lanes} * kSize;
    const T* from = static_cast<const T*>(problem.value) + batch * problem.value_stride[0] +
                    head * problem.value_stride[1] + element;
    T* to = static_cast<T*>(problem.values) + batch * problem.values_stride[0] +
            head * problem.values_stride[1] + place * problem.values_stride[2] + element;
    store_vector(to, load_streaming<T, kSize>(from));
  }
}

}  // namespace graft_kernels::rotary
