// RMSNorm of long rows on Hopper: rows come through shared memory in chunks, several ahead, and a row that is too long
// for a block is shared by a cluster. Device code on raw pointers; no Torch.
#pragma once

#include "kernels/rms-norm/rms_norm_reduce.cuh"
#include "kernels/rms-norm/sm90_ring.cuh"

namespace graft_kernels::rms_norm::sm90 {

inline constexpr int kVectorsOfChunk = 4;  // of a thread
inline constexpr int kChunkVectors = kRingThreads * kVectorsOfChunk;
inline constexpr int kChunkBytes = kChunkVectors * 16;
// Chunks of the longest row: eight blocks of a cluster, two each with a residual.
inline constexpr int kMaxChunks = 16;

template <bool kAdd>
inline constexpr int kStreamsOf = kAdd ? 2 : 1;
// Chunks in shared memory, and those of them that a block may need for one row: the rest is on its way meanwhile.
template <bool kAdd>
inline constexpr int kSlots = kAdd ? 3 : 6;
template <bool kAdd>
inline constexpr int kChunksOfBlock = kAdd ? 2 : 4;

struct ForwardRing {
  int cluster = 1;
  int chunks_of_block = 1;
};

struct ForwardScratch {
  uint64_t full[kSlots<false>];
  uint64_t exchanged[2];
  float of_warps[2][kChunksOfBlock<false>][kWarp / 2];
  float of_chunks[2][kMaxChunks];
};

// The sum over the chunks of a row from the sums of this thread over its own, in the order of the row. As RingSum, but
// every chunk is added by itself: a row has the same bits however many blocks share it.
template <int kOwn>
class ChunkSum {
 public:
  __device__ ChunkSum(ForwardScratch& scratch, int cluster, int chunks, int first, int own)
      : scratch_(scratch), cluster_(cluster), chunks_(chunks), first_(first), own_(own) {}

  __device__ __forceinline__ float operator()(float (&values)[kOwn]) {
    const int lane = static_cast<int>(threadIdx.x) % kWarp,
              warp = static_cast<int>(threadIdx.x) / kWarp;
    auto& of_warps = scratch_.of_warps[turn_];
#pragma unroll
    for (int chunk = 0; chunk < kOwn; ++chunk) {
      values[chunk] = sum_over_warp(values[chunk]);
      if (lane == 0) {
        of_warps[chunk][warp] = values[chunk];
      }
    }
    __syncthreads();
    float total = 0;
    float* of_chunks = scratch_.of_chunks[turn_];
    if (cluster_ > 1 && threadIdx.x == 0) {
      arrive_expecting(&scratch_.exchanged[turn_], static_cast<unsigned>(chunks_ * sizeof(float)));
    }
#pragma unroll
    for (int chunk = 0; chunk < kOwn; ++chunk) {
      const float sum = sum_over_lanes<kWarp / 2>(of_warps[chunk][lane % (kWarp / 2)]);
      if (cluster_ == 1) {
        total += chunk < own_ ? sum : 0.0F;
      } else if (chunk < own_ && static_cast<int>(threadIdx.x) < cluster_) {
        store_and_complete(&of_chunks[first_ + chunk], &scratch_.exchanged[turn_], threadIdx.x,
                           sum);
      }
    }
    if (cluster_ > 1) {
      wait_for_peers(&scratch_.exchanged[turn_], phase_);
      for (int chunk = 0; chunk < chunks_; ++chunk) {
        total += of_chunks[chunk];
      }
    }
    turn_ ^= 1;
    phase_ ^= turn_ == 0 ? 1 : 0;
    return total;
  }

 private:
  ForwardScratch& scratch_;
  int cluster_, chunks_, first_, own_;
  int turn_ = 0;
  int phase_ = 0;
};

// gridDim.x = teams * ring.cluster, each team takes rows in turn; dynamic shared memory: kSlots chunks of x and of the
// residual. X is the dtype of all tensors.
template <typename X, bool kCastBefore, bool kAdd>
__global__ void __launch_bounds__(kRingThreads, 1)
    ring_fwd_kernel(const __grid_constant__ Problem problem, const ForwardRing ring) {
#if __CUDA_ARCH__ >= 900
  constexpr int kSize = kVectorSize<X>;
  constexpr int kOwn = kChunksOfBlock<kAdd>;
  constexpr int kNumSlots = kSlots<kAdd>;
  constexpr int kSlotBytes = kStreamsOf<kAdd> * kChunkBytes;
  using Vector = Vec<X, kSize>;
  extern __shared__ __align__(128) unsigned char slots[];
  __shared__ ForwardScratch scratch;
  if (threadIdx.x == 0) {
    for (int slot = 0; slot < kNumSlots; ++slot) {
      init_barrier(&scratch.full[slot], 1);
    }
    init_barrier(&scratch.exchanged[0], 1);
    init_barrier(&scratch.exchanged[1], 1);
    fence_barrier_inits();
  }
  if (ring.cluster > 1) {
    cluster_arrive();
    cluster_wait();
  } else {
    __syncthreads();
  }

  const int num_vectors = static_cast<int>(problem.columns / kSize);
  const int chunks = (num_vectors + kChunkVectors - 1) / kChunkVectors;
  const int first =
      (ring.cluster > 1 ? static_cast<int>(cluster_rank()) : 0) * ring.chunks_of_block;
  const int own = max(0, min(ring.chunks_of_block, chunks - first));
  const int64_t team = blockIdx.x / ring.cluster, teams = gridDim.x / ring.cluster;
  const int64_t rows = (problem.rows - team + teams - 1) / teams;
  ChunkSum<kOwn> sum(scratch, ring.cluster, chunks, first, own);
  const auto vectors_of = [&](int chunk) {
    return min(kChunkVectors, num_vectors - (first + chunk) * kChunkVectors);
  };

  // Thread 0 starts copies: of chunk load_chunk of the row of turn load_turn, into load_slot.
  int64_t started = 0, load_turn = 0;
  int load_chunk = 0, load_slot = 0;
  const auto start = [&](int64_t end) {
    for (; started < min(end, rows * own); ++started) {
      const int64_t row = team + load_turn * teams;
      const int64_t column = static_cast<int64_t>(first + load_chunk) * kChunkVectors * kSize;
      const unsigned bytes = static_cast<unsigned>(vectors_of(load_chunk)) * 16;
      unsigned char* to = slots + load_slot * kSlotBytes;
      uint64_t* barrier = &scratch.full[load_slot];
      arrive_expecting(barrier, kStreamsOf<kAdd> * bytes);
      bulk_copy(to, static_cast<const X*>(problem.x) + offset_of(problem.x_rows, row) + column,
                bytes, barrier);
      if constexpr (kAdd) {
        bulk_copy(to + kChunkBytes,
                  static_cast<const X*>(problem.residual) + offset_of(problem.residual_rows, row) +
                      column,
                  bytes, barrier);
      }
      load_slot = load_slot + 1 == kNumSlots ? 0 : load_slot + 1;
      load_chunk = load_chunk + 1 == own ? 0 : load_chunk + 1;
      load_turn += load_chunk == 0 ? 1 : 0;
    }
  };
  if (threadIdx.x == 0) {
    start(kNumSlots);
  }

  const bool zero_centered = problem.variant == Variant::kZeroCentered;
  const X* weight = static_cast<const X*>(problem.weight);
  int row_slot = 0, phase = 0;  // of the row's first chunk
  for (int64_t turn = 0; turn < rows; ++turn) {
    const int64_t row = team + turn * teams;
    // Calls body(slot's bytes, chunk, vector's index in the chunk) for the vectors of this thread.
    const auto for_chunk = [&](int chunk, int slot, const auto& body) {
      const int count = vectors_of(chunk);
#pragma unroll
      for (int v = 0; v < kVectorsOfChunk; ++v) {
        const int index = static_cast<int>(threadIdx.x) + v * kRingThreads;
        if (index < count) {
          body(slots + slot * kSlotBytes, index);
        }
      }
    };
    const auto slot_of = [&](int chunk) {
      const int slot = row_slot + chunk;
      return slot >= kNumSlots ? slot - kNumSlots : slot;
    };
    float squares[kOwn] = {};
#pragma unroll
    for (int chunk = 0; chunk < kOwn; ++chunk) {
      if (chunk < own) {
        const int slot = slot_of(chunk);
        wait(&scratch.full[slot], phase ^ (slot < row_slot ? 1 : 0));
        for_chunk(chunk, slot, [&](unsigned char* bytes, int index) {
          Vector* kept = reinterpret_cast<Vector*>(bytes) + index;
          Vector value = *kept;
          if constexpr (kAdd) {
            value = sum_of(reinterpret_cast<const Vector*>(bytes + kChunkBytes)[index], value);
            *kept = value;
            X* total = static_cast<X*>(problem.sum) + offset_of(problem.sum_rows, row);
            store_vector(
                total + (static_cast<int64_t>(first + chunk) * kChunkVectors + index) * kSize,
                value);
          }
          squares[chunk] += squares_of(value);
        });
      }
    }
    if constexpr (kAdd) {
      fence_before_copies();
    }
    const float total = sum(squares);
    const float inverse = rsqrtf(total / static_cast<float>(problem.columns) + problem.eps);
    X* out = static_cast<X*>(problem.out) + offset_of(problem.out_rows, row);
#pragma unroll
    for (int chunk = 0; chunk < kOwn; ++chunk) {
      if (chunk < own) {
        for_chunk(chunk, slot_of(chunk), [&](unsigned char* bytes, int index) {
          const int64_t column =
              (static_cast<int64_t>(first + chunk) * kChunkVectors + index) * kSize;
          const Vector scaling = load_shared_data<X, kSize>(weight + column);
          store_vector(out + column,
                       scale_vector<kCastBefore, X>(reinterpret_cast<const Vector*>(bytes)[index],
                                                    inverse, scaling, zero_centered));
        });
        // The chunk is done with: its place takes one of the rows to come.
        __syncthreads();
        if (threadIdx.x == 0) {
          start(turn * own + chunk + 1 + kNumSlots);
        }
      }
    }
    const int next = slot_of(own);
    phase ^= next < row_slot ? 1 : 0;
    row_slot = next;
  }
  if (ring.cluster > 1) {
    cluster_arrive();
    cluster_wait();  // no block leaves while a peer may still write into its shared memory
  }
#endif
}

}  // namespace graft_kernels::rms_norm::sm90
