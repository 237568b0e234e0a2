// Long rows that train, on Hopper: a cluster of blocks takes a row, a share each, and keeps it in shared memory from its
// sums to its gradient. A warp that only copies fills the places of what is written with the next row, so that reading
// never waits for writing, and the blocks send each other their sums by stores that complete each other's barriers.
// Device code, no Torch; empty before sm_90.
#pragma once

#include "kernels/common/sm90_barriers.cuh"
#include "kernels/loss/loss_kernel.cuh"

namespace graft_kernels::loss {

inline constexpr int kRingThreads = 512;  // that compute
inline constexpr int kRingWarps = kRingThreads / kWarp;
inline constexpr int kPlaceBytes = 16 * 1024;
// Places and what else a block has fit into 227 KiB. A share leaves three of them to the next row.
inline constexpr int kPlaces = 13;
inline constexpr int kMaxSharePlaces = 10;
// The largest cluster that every Hopper device launches.
inline constexpr int kMaxCluster = 8;

// What a warp knows of a row after its share: sums as in Online, the plain sum, and the label's logit or zero.
inline constexpr int kRowSums = 4;

struct RowRing {
  uint64_t full[kPlaces], free[kPlaces];
  uint64_t joined[2];
  float sums[2][kMaxCluster * kRingWarps][kRowSums];

  // By one thread, before the cluster meets.
  __device__ __forceinline__ void init() {
    for (int place = 0; place < kPlaces; ++place) {
      sm90::init_barrier(&full[place], 1);
      sm90::init_barrier(&free[place], kRingWarps);
    }
    sm90::init_barrier(&joined[0], 1);
    sm90::init_barrier(&joined[1], 1);
    sm90::fence_barrier_inits();
  }
};

using RowSlot = sm90::RingSlot<kPlaces>;

__device__ __forceinline__ bool is_counted(const Problem& problem, int64_t label) {
  return label != problem.options.ignore_index && label >= 0 && label < problem.columns;
}

// A block's share of a row: whole vectors, and for the last block what is left of them.
template <typename T, int kSize>
struct RowShare {
  static constexpr int kPlaceVectors = kPlaceBytes / (kSize * sizeof(T));

  int64_t begin;
  int vectors, columns;

  __device__ __forceinline__ RowShare(int64_t all, int rank, int count) {
    const int64_t whole = all / kSize, most = (whole + count - 1) / count;
    const int64_t first = min(rank * most, whole);
    begin = first * kSize;
    vectors = static_cast<int>(min(most, whole - first));
    columns = vectors * kSize + (rank == count - 1 ? static_cast<int>(all % kSize) : 0);
  }
};

// Copies a block's shares of the rows of its cluster, in one thread.
template <typename T, int kSize>
__device__ __forceinline__ void bring_rows(const Problem& problem, const RowShare<T, kSize>& share,
                                           int64_t first_row, int64_t step, unsigned char* places,
                                           RowRing& ring) {
  constexpr int kPlaceVectors = RowShare<T, kSize>::kPlaceVectors;
  RowSlot slot;
  for (int64_t row = first_row; row < problem.rows; row += step) {
    if (!is_counted(problem, problem.labels[problem.label_rows.offset(row)])) {
      continue;
    }
    const T* logits =
        static_cast<const T*>(problem.logits) + problem.logits_rows.offset(row) + share.begin;
    for (int first = 0; first < share.vectors; first += kPlaceVectors, slot.step()) {
      const int bytes = min(kPlaceVectors, share.vectors - first) * kSize * sizeof(T);
      sm90::wait(&ring.free[slot.stage], slot.phase ^ 1);
      sm90::arrive_expecting(&ring.full[slot.stage], bytes);
      sm90::copy_bytes(places + slot.stage * kPlaceBytes, logits + int64_t{first} * kSize,
                       &ring.full[slot.stage], bytes);
    }
  }
}

// A thread's sums over its part of a share.
struct ShareSums {
  Running running;
  float label = 0;  // its logit where the thread has it
};

template <typename T, int kSize>
__device__ __forceinline__ void sum_share(const T* logits, const RowShare<T, kSize>& share,
                                          int64_t label, const Cap& cap, bool with_mean,
                                          const unsigned char* places, RowRing& ring, RowSlot& slot,
                                          ShareSums& sums) {
  constexpr int kPlaceVectors = RowShare<T, kSize>::kPlaceVectors;
  const int64_t label_vector = label < 0 ? -1 : label / kSize;
  for (int first = 0; first < share.vectors; first += kPlaceVectors, slot.step()) {
    const auto* place =
        reinterpret_cast<const Vec<T, kSize>*>(places + slot.stage * kPlaceBytes) - first;
    sm90::wait(&ring.full[slot.stage], slot.phase);
    const int end = min(first + kPlaceVectors, share.vectors);
    for (int at = first + static_cast<int>(threadIdx.x); at < end; at += kRingThreads) {
      sums.running.add(place[at], cap, with_mean);
      if (at == label_vector) {
        sums.label = cap.apply(to_float(reinterpret_cast<const T*>(place + at)[label % kSize]));
      }
    }
  }
  const int tail = share.vectors * kSize + static_cast<int>(threadIdx.x);
  if (tail < share.columns) {
    sums.running.add(Vec<T, 1>{{logits[tail]}}, cap, with_mean);
    if (tail == label) {
      sums.label = cap.apply(to_float(logits[tail]));
    }
  }
}

__device__ __forceinline__ float sum_lanes(float value) {
#pragma unroll
  for (int distance = kWarp / 2; distance > 0; distance /= 2) {
    value += __shfl_xor_sync(0xffffffffU, value, distance);
  }
  return value;
}

struct RowTotal {
  Online whole;
  float plain, label;
};

// Sums of all warps of all blocks, the same bits in every thread. Calls in turn use different halves of the memory: who
// sends for the next but one has what all warps sent for the next, and they had read this one's.
__device__ __forceinline__ RowTotal join_sums(ShareSums& sums, int rank, int cluster, int turn,
                                              int phase, RowRing& ring) {
  const int warp = static_cast<int>(threadIdx.x) / kWarp,
            lane = static_cast<int>(threadIdx.x) % kWarp;
  const Online own = merge_over_warp(sums.running.total());
  const float plain = sum_lanes(sums.running.plain()), label = sum_lanes(sums.label);
  uint64_t* joined = &ring.joined[turn];
  if (threadIdx.x == 0) {
    sm90::arrive_expecting(joined,
                           cluster * kRingWarps * kRowSums * static_cast<int>(sizeof(float)));
  }
  const int field = lane % kRowSums, peer = lane / kRowSums;
  if (peer < cluster) {
    const float value = field == 0 ? own.top : field == 1 ? own.sum : field == 2 ? plain : label;
    sm90::store_and_complete(&ring.sums[turn][rank * kRingWarps + warp][field], joined, peer,
                             value);
  }
  sm90::wait_for_peers(joined, phase);
  RowTotal total{{-INFINITY, 0.0F}, 0.0F, 0.0F};
  for (int at = lane; at < cluster * kRingWarps; at += kWarp) {
    const float(&part)[kRowSums] = ring.sums[turn][at];
    total.whole = merge(total.whole, {part[0], part[1]});
    total.plain += part[2];
    total.label += part[3];
  }
  return {merge_over_warp(total.whole), sum_lanes(total.plain), sum_lanes(total.label)};
}

template <typename T, int kSize>
__device__ __forceinline__ void write_share(const T* logits, T* grad,
                                            const RowShare<T, kSize>& share,
                                            const RowGradient& gradient,
                                            const unsigned char* places, RowRing& ring,
                                            RowSlot& slot) {
  constexpr int kPlaceVectors = RowShare<T, kSize>::kPlaceVectors;
  constexpr int kOwn = kPlaceVectors / kRingThreads;
  for (int first = 0; first < share.vectors; first += kPlaceVectors, slot.step()) {
    const auto* place = reinterpret_cast<const Vec<T, kSize>*>(places + slot.stage * kPlaceBytes);
    const int count = min(kPlaceVectors, share.vectors - first);
    Vec<T, kSize> loaded[kOwn];
#pragma unroll
    for (int own = 0; own < kOwn; ++own) {
      const int at = static_cast<int>(threadIdx.x) + own * kRingThreads;
      if (at < count) {
        loaded[own] = place[at];
      }
    }
    __syncwarp();
    if (threadIdx.x % kWarp == 0) {
      sm90::arrive(&ring.free[slot.stage]);
    }
#pragma unroll
    for (int own = 0; own < kOwn; ++own) {
      const int at = static_cast<int>(threadIdx.x) + own * kRingThreads;
      if (at < count) {
        const int64_t column = int64_t{first + at} * kSize;
        store_vector<T, kSize>(grad + column, gradient.of(loaded[own], column));
      }
    }
  }
  const int tail = share.vectors * kSize + static_cast<int>(threadIdx.x);
  if (tail < share.columns) {
    grad[tail] = gradient.of(Vec<T, 1>{{logits[tail]}}, tail).data[0];
  }
}

template <typename T, int kSize>
__device__ __forceinline__ void fill_share(T* grad, const RowShare<T, kSize>& share, float value) {
  Vec<T, kSize> filled;
#pragma unroll
  for (int element = 0; element < kSize; ++element) {
    filled.data[element] = from_float<T>(value);
  }
  for (int at = static_cast<int>(threadIdx.x); at < share.vectors; at += kRingThreads) {
    store_vector<T, kSize>(grad + int64_t{at} * kSize, filled);
  }
  const int tail = share.vectors * kSize + static_cast<int>(threadIdx.x);
  if (tail < share.columns) {
    grad[tail] = from_float<T>(value);
  }
}

// Losses and gradients of a cluster's rows, in all threads but those of the warp that copies.
template <typename T, int kSize>
__device__ __forceinline__ void compute_rows(const Problem& problem,
                                             const RowShare<T, kSize>& share, int64_t first_row,
                                             int64_t step, int rank, int cluster,
                                             const unsigned char* places, RowRing& ring) {
  const float softcap = problem.options.softcap, smoothing = problem.options.smoothing;
  const Cap cap{softcap, softcap > 0.0F ? 1.0F / softcap : 0.0F};
  const bool is_first = rank == 0 && threadIdx.x == 0;
  RowSlot summed, written;
  int turn = 0, phase = 0;
  for (int64_t row = first_row; row < problem.rows; row += step) {
    const T* logits =
        static_cast<const T*>(problem.logits) + problem.logits_rows.offset(row) + share.begin;
    T* grad = static_cast<T*>(problem.grad) + problem.grad_rows.offset(row) + share.begin;
    const int64_t label = problem.labels[problem.label_rows.offset(row)];
    if (!is_counted(problem, label)) {
      // Nothing may wait for the device here: a label out of range shows as NaN.
      const float value = label == problem.options.ignore_index ? 0.0F : NAN;
      if (is_first) {
        problem.loss[row] = value;
        problem.lse[row] = value;
      }
      fill_share(grad, share, value);
      continue;
    }
    const float factor = problem.grad_loss[problem.grad_loss_rows.offset(row)];
    ShareSums sums;
    sum_share(logits, share, label - share.begin, cap, smoothing > 0.0F, places, ring, summed,
              sums);
    const RowTotal total = join_sums(sums, rank, cluster, turn, phase, ring);
    turn ^= 1;
    phase ^= turn == 0 ? 1 : 0;
    const float lse = shift_of(total.whole.top) + logf(total.whole.sum);
    if (is_first) {
      const float mean = total.plain / static_cast<float>(problem.columns);
      problem.lse[row] = lse;
      problem.loss[row] = smoothing > 0.0F ? (lse - total.label) + smoothing * (total.label - mean)
                                           : lse - total.label;
    }
    const RowGradient gradient{lse,
                               factor,
                               smoothing / static_cast<float>(problem.columns),
                               1.0F - smoothing,
                               label - share.begin,
                               cap};
    write_share(logits, grad, share, gradient, places, ring, written);
  }
}

// gridDim.x is a multiple of `cluster`; dynamic shared memory: kPlaces * kPlaceBytes.
template <typename T, int kSize>
__global__ void __launch_bounds__(kRingThreads + kWarp, 1)
    cross_entropy_ring_kernel(const __grid_constant__ Problem problem, const int cluster) {
#if __CUDA_ARCH__ >= 900
  extern __shared__ __align__(128) unsigned char places[];
  __shared__ RowRing ring;
  if (threadIdx.x == 0) {
    ring.init();
  }
  sm90::sync_cluster();
  const int rank = static_cast<int>(blockIdx.x) % cluster;
  const int64_t first_row = blockIdx.x / cluster, step = gridDim.x / cluster;
  const RowShare<T, kSize> share(problem.columns, rank, cluster);
  if (threadIdx.x < kRingThreads) {
    compute_rows(problem, share, first_row, step, rank, cluster, places, ring);
  } else if (threadIdx.x == kRingThreads) {
    bring_rows(problem, share, first_row, step, places, ring);
  }
  sm90::sync_cluster();  // a peer's sums still come here
#endif
}

}  // namespace graft_kernels::loss
