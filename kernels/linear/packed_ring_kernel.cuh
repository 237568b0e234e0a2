// The products of packed_kernel.cuh for up to four rows of x on Hopper: one kernel rounds x and multiplies.
//
// A block has its share of the groups of eight rows. One thread keeps rings of stages filled by bulk copies, each of
// consecutive chunks of one group; the copies are on their way while the others round x into shared memory. Two teams
// of eight warps have a group and a ring each, so that what a team waits for at the end of a group is hidden behind the
// other. Device code, no Torch.
#pragma once

#include "kernels/common/l2_policy.cuh"
#include "kernels/common/sm90_barriers.cuh"
#include "kernels/linear/packed_kernel.cuh"

namespace graft_kernels::linear {

inline constexpr int kTeams = 2;
// As many as packed_kernel has, so that a row's sums have its order, and its bits.
inline constexpr int kTeamWarps = kPackedWarps;
inline constexpr int kTeamThreads = 32 * kTeamWarps;
inline constexpr int kRingWorkers = kTeams * kTeamThreads;
inline constexpr int kPackedRingThreads = kRingWorkers + 32;
// Leaves room on a multiprocessor for the rings of the next kernel, which fill while this one ends.
inline constexpr int kPackedRingBytes = 80 << 10;
// Elements of x that have room as bytes beside the ring.
inline constexpr int kMostRounded = 16 << 10;

// The barriers of a team's ring.
template <int kFormat>
struct PackedRing {
  static constexpr PackedFormat kLayout = Piece<kFormat>::kLayout;
  static constexpr int kChunks = kLayout.four_bits && !kLayout.wide_scales ? 64 : 32;  // of a stage
  static constexpr int kStageBytes = kChunks * Piece<kFormat>::kChunkBytes;
  static constexpr int kStages = kPackedRingBytes / kTeams / kStageBytes;
  static constexpr int kBytes = kStages * kStageBytes;
  uint64_t full[kStages];
  uint64_t empty[kStages];
};

// Shared memory of a call: the ring, then x's bytes, then their scales.
constexpr int packed_ring_shared(int rows, int chunks) {
  return kPackedRingBytes + rows * chunks * (kPackedColumns + static_cast<int>(sizeof(float)));
}

// The groups of a block. In a round every team has one.
struct GroupShare {
  int begin, end;

  __device__ __forceinline__ explicit GroupShare(int groups)
      : begin(static_cast<int>(int64_t{groups} * blockIdx.x / gridDim.x)),
        end(static_cast<int>(int64_t{groups} * (blockIdx.x + 1) / gridDim.x)) {}
  // Teams that have a group in the round that begins with group `first`.
  __device__ __forceinline__ int teams(int first) const { return min(kTeams, end - first); }
};

template <int kFormat>
__device__ __forceinline__ void fill_packed_rings(uint8_t* rings,
                                                  PackedRing<kFormat> (&barriers)[kTeams],
                                                  const GroupShare& share,
                                                  const PackedCudaProblem& problem) {
  using Ring = PackedRing<kFormat>;
  constexpr int kChunkBytes = Piece<kFormat>::kChunkBytes;
  sm90::RingSlot<Ring::kStages> slot;  // the same in every team's ring
  const int64_t all = int64_t{gridDim.x} * (share.end - share.begin) * problem.chunks * kChunkBytes;
  const bool goes_first = all > kSmallWeightBytes && all < kLargeWeightBytes;
  const uint64_t policy = goes_first ? let_go_first() : keep_normally();
  for (int first = share.begin; first < share.end; first += kTeams) {
    for (int chunk = 0; chunk < problem.chunks; chunk += Ring::kChunks) {
      const int bytes = min(Ring::kChunks, problem.chunks - chunk) * kChunkBytes;
      for (int team = 0; team < share.teams(first); ++team) {
        uint64_t* full = &barriers[team].full[slot.stage];
        sm90::wait(&barriers[team].empty[slot.stage], slot.phase ^ 1);
        sm90::arrive_expecting(full, bytes);
        sm90::copy_bytes(
            rings + team * Ring::kBytes + slot.stage * Ring::kStageBytes,
            problem.packed + (int64_t{first + team} * problem.chunks + chunk) * kChunkBytes, full,
            bytes, policy);
      }
      slot.step();
    }
  }
}

// Eight elements of x as they lie there.
template <typename T>
using Eight = Vec<T, 8>;

// Rounds what four lanes have of 32 columns, to place `place` of `total`; all lanes of a warp call it.
template <typename T>
__device__ __forceinline__ void round_eight(const Eight<T>& loaded, int place, int total,
                                            int8_t* codes, float* scales) {
  float values[8], largest = 0;
  bool is_finite = true;
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    values[i] = place < total ? to_float(loaded.data[i]) : 0.F;
    largest = fmaxf(largest, fabsf(values[i]));
    is_finite = is_finite && isfinite(values[i]);
  }
#pragma unroll
  for (int distance = 1; distance < 4; distance *= 2) {
    largest = fmaxf(largest, __shfl_xor_sync(0xffffffffU, largest, distance));
    is_finite = __shfl_xor_sync(0xffffffffU, is_finite ? 1 : 0, distance) != 0 && is_finite;
  }
  if (place >= total) {
    return;
  }
  const float factor = is_finite && largest > 0 ? 127.F / largest : 0.F;
  Vec<int8_t, 8> rounded;
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    rounded.data[i] =
        is_finite ? static_cast<int8_t>(__float2int_rn(values[i] * factor)) : int8_t{0};
  }
  const int part = threadIdx.x % 4;
  *reinterpret_cast<Vec<int8_t, 8>*>(codes + place * kPackedColumns + part * 8) = rounded;
  if (part == 0) {
    scales[place] = is_finite ? largest / 127.F : __int_as_float(0x7fffffff);
  }
}

// x as prepare_kernel rounds it, by the block's kRingWorkers threads; four lanes to 32 columns.
template <typename T>
__device__ __forceinline__ void round_rows(const PackedCudaProblem& problem, int8_t* codes,
                                           float* scales) {
  constexpr int kAtOnce = sizeof(T) == 2 ? 4 : 2;  // loads that are on their way together
  const int total = problem.rows * problem.chunks, part = threadIdx.x % 4;
  for (int first = 0; first < total; first += kAtOnce * kRingWorkers / 4) {
    Eight<T> loaded[kAtOnce];
    const auto place_of = [&](int step) {
      return first + step * (kRingWorkers / 4) + static_cast<int>(threadIdx.x) / 4;
    };
#pragma unroll
    for (int step = 0; step < kAtOnce; ++step) {
      if (const int place = place_of(step); place < total) {
        const int row = place / problem.chunks, chunk = place % problem.chunks;
        loaded[step] = *reinterpret_cast<const Eight<T>*>(static_cast<const T*>(problem.x) +
                                                          row * problem.x_stride +
                                                          chunk * kPackedColumns + part * 8);
      }
    }
#pragma unroll
    for (int step = 0; step < kAtOnce; ++step) {
      round_eight(loaded[step], place_of(step), total, codes, scales);
    }
  }
}

// What the warps of a team have of a group becomes results. `partial` is this round's.
template <int kRows>
__device__ __forceinline__ void finish_group(const PackedCudaProblem& problem, int group, int team,
                                             float (&partial)[kTeamWarps][kRows][kPackedRows],
                                             float (&sums)[kRows][4]) {
  const int lane = threadIdx.x % 32, thread = threadIdx.x % kTeamThreads;
  reduce_lanes(sums);
  if (lane < 2) {
#pragma unroll
    for (int n = 0; n < kRows; ++n) {
#pragma unroll
      for (int row = 0; row < 4; ++row) {
        partial[thread / 32][n][lane * 4 + row] = sums[n][row];
      }
    }
  }
  sm90::sync_named(2 + team, kTeamThreads);
  const int n = thread / kPackedRows, column = group * kPackedRows + thread % kPackedRows;
  if (n < min(kRows, problem.rows) && column < problem.columns) {
    float sum = 0;
#pragma unroll
    for (int warp = 0; warp < kTeamWarps; ++warp) {
      sum += partial[warp][n][thread % kPackedRows];
    }
    store_result(problem, n, column, sum);
  }
}

// One team's work on its group in one round.
template <int kFormat, int kRows>
__device__ __forceinline__ void multiply_group(const uint8_t* ring, PackedRing<kFormat>& barriers,
                                               sm90::RingSlot<PackedRing<kFormat>::kStages>& slot,
                                               const RoundedRows& x, float (&sums)[kRows][4]) {
  using P = Piece<kFormat>;
  using Ring = PackedRing<kFormat>;
  constexpr int kStep = kTeamWarps * P::kChunks;
  static_assert(Ring::kChunks % kStep == 0);
  const int own = threadIdx.x / 32 % kTeamWarps * P::kChunks + threadIdx.x % 32 / P::kLanes;
  for (int before = 0; before < x.chunks; before += Ring::kChunks) {
    const uint8_t* chunks = ring + slot.stage * Ring::kStageBytes;
    const int count = min(Ring::kChunks, x.chunks - before);
    sm90::wait(&barriers.full[slot.stage], slot.phase);
#pragma unroll 2
    for (int chunk = own; chunk < count; chunk += kStep) {
      P piece;
      piece.template load<true>(chunks + chunk * P::kChunkBytes);
      add_rounded<kFormat, kRows>(piece, x, 0, before + chunk, sums);
    }
    __syncwarp();
    if (threadIdx.x % 32 == 0) {
      sm90::arrive(&barriers.empty[slot.stage]);
    }
    slot.step();
  }
}

template <int kFormat, int kRows>
__global__ void __launch_bounds__(kPackedRingThreads, kRows == 1 ? 2 : 1)
    packed_ring_kernel(const __grid_constant__ PackedCudaProblem problem) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  static_assert(kRows * kPackedRows <= kTeamThreads);
  using Ring = PackedRing<kFormat>;
  extern __shared__ __align__(128) uint8_t rings[];
  __shared__ Ring barriers[kTeams];
  __shared__ float partial[2][kTeams][kTeamWarps][kRows][kPackedRows];
  const GroupShare share((problem.columns + kPackedRows - 1) / kPackedRows);
  // At once: when blocks of this kernel have ended, two of the next would share their multiprocessors and leave others
  // idle.
  let_next_start();
  if (threadIdx.x == kRingWorkers) {
    for (Ring& ring : barriers) {
      for (int stage = 0; stage < Ring::kStages; ++stage) {
        sm90::init_barrier(&ring.full[stage], 1);
        sm90::init_barrier(&ring.empty[stage], kTeamWarps);
      }
    }
    sm90::fence_barrier_inits();
  }
  __syncthreads();
  if (threadIdx.x >= kRingWorkers) {
    // Weights are constants, unlike x: their way begins before the kernel that writes x has ended.
    if (threadIdx.x == kRingWorkers) {
      fill_packed_rings<kFormat>(rings, barriers, share, problem);
    }
    return;
  }
  auto* codes = reinterpret_cast<int8_t*>(rings + kPackedRingBytes);
  auto* scales = reinterpret_cast<float*>(codes + problem.rows * problem.chunks * kPackedColumns);
  wait_for_previous();
  with_dtype(problem.dtype, [&](auto type) { round_rows<decltype(type)>(problem, codes, scales); });
  sm90::sync_named(1, kRingWorkers);
  const RoundedRows x{codes, scales, problem.rows, problem.chunks};
  const int team = threadIdx.x / kTeamThreads;
  sm90::RingSlot<Ring::kStages> slot;
  int turn = 0;
  for (int group = share.begin + team; group < share.end; group += kTeams) {
    float sums[kRows][4] = {};
    multiply_group<kFormat, kRows>(rings + team * Ring::kBytes, barriers[team], slot, x, sums);
    finish_group<kRows>(problem, group, team, partial[turn][team], sums);
    turn ^= 1;
  }
#endif
}

}  // namespace graft_kernels::linear
