// RMSNorm of long rows on Hopper: a cluster of blocks takes a row, and the next one is on its way through shared memory
// while a row is reduced, scaled and written. Device code, no Torch.
//
// Blocks stay and take rows in turn. A block's share of a row comes in pieces of a vector a thread. Threads move their
// vectors into registers and sum them; once all have, the pieces' places take the next row. More than one row on its way
// was slower by a few percent, presumably since writes then wait behind reads.
#pragma once

#include "kernels/rms-norm/sm90_ring.cuh"

namespace graft_kernels::rms_norm::sm90 {

inline constexpr int kLongVectors = 8;  // of a row, per thread at most
inline constexpr int kPieceBytes = kRingThreads * 16;

// gridDim.x = teams * cluster; a row has at most cluster * kLongVectors * kRingThreads vectors. Dynamic shared memory:
// the pieces of the first block's share of a row, and as much again for the weight (for each of the streams, one).
// X is the dtype of all tensors. kAdd: there is a residual.
template <typename X, bool kCastBefore, bool kAdd>
__global__ void __launch_bounds__(kRingThreads, 1)
    ring_fwd_kernel(const __grid_constant__ Problem problem, int cluster) {
#if __CUDA_ARCH__ >= 900
  constexpr int kSize = kVectorSize<X>;
  constexpr int kStreams = kAdd ? 2 : 1;
  using Vector = Vec<X, kSize>;
  extern __shared__ __align__(128) unsigned char shared_pieces[];
  __shared__ RingScratch<2 * kLongVectors> scratch;
  RingSum sum(scratch, cluster);
  init_ring(scratch, kStreams * kLongVectors, cluster);

  const auto thread = static_cast<int>(threadIdx.x);
  const int rows = static_cast<int>(problem.rows);
  const int team = static_cast<int>(blockIdx.x) / cluster;
  const int teams = static_cast<int>(gridDim.x) / cluster;
  // Piece v of the block begins at vector first + v * step; this thread has `own` vectors of a row.
  const int num_vectors = static_cast<int>(problem.columns / kSize);
  const int step = cluster * kRingThreads;
  const int first = sum.rank() * kRingThreads;
  const auto count_from = [&](int vector) {
    return max(num_vectors - vector + step - 1, 0) / step;
  };
  const int pieces = count_from(first), own = count_from(first + thread);

  // Thread i brings piece i of each row, those of x and of the residual in turn.
  int next_row = thread < pieces * kStreams ? team : rows;
  const int first_brought = first + thread / kStreams * step;
  const bool brings_x = thread % kStreams == 0;
  const auto bring_next = [&] {
    if (next_row < rows) {
      const X* from = static_cast<const X*>(brings_x ? problem.x : problem.residual) +
                      next_row * (brings_x ? problem.x_rows : problem.residual_rows).stride[0];
      const int bytes = min(kRingThreads, num_vectors - first_brought) * 16;
      arrive_expecting(&scratch.full[thread], bytes);
      copy_bytes(shared_pieces + thread * kPieceBytes, from + int64_t{first_brought} * kSize,
                 &scratch.full[thread], bytes);
      next_row += teams;
    }
  };
  bring_next();

  const Vector* arrived = reinterpret_cast<const Vector*>(shared_pieces) + thread;
  Vector* weights =
      reinterpret_cast<Vector*>(shared_pieces) + pieces * kStreams * kRingThreads + thread;
  const int begin = (first + thread) * kSize, stride = step * kSize;
  for (int v = 0; v < own; ++v) {
    weights[v * kRingThreads] = load_shared_data<X, kSize>(static_cast<const X*>(problem.weight) +
                                                           begin + int64_t{v} * stride);
  }
  const bool zero_centered = problem.variant == Variant::kZeroCentered;
  const float width = static_cast<float>(problem.columns);
  int phase = 0;
  for (int row = team; row < rows; row += teams, phase ^= 1) {
    Vector kept[kLongVectors];
    float squares[1] = {};
    X* sum_row = nullptr;
    if constexpr (kAdd) {
      sum_row = static_cast<X*>(problem.sum) + row * problem.sum_rows.stride[0] + begin;
    }
#pragma unroll
    for (int v = 0; v < kLongVectors; ++v) {
      if (v < pieces) {
        wait(&scratch.full[v * kStreams], phase);
        kept[v] = arrived[v * kStreams * kRingThreads];
        if constexpr (kAdd) {
          wait(&scratch.full[v * kStreams + 1], phase);
          kept[v] = sum_of(arrived[(v * kStreams + 1) * kRingThreads], kept[v]);
        }
        if (v < own) {
          squares[0] += squares_of(kept[v]);
          if constexpr (kAdd) {
            store_vector(sum_row + int64_t{v} * stride, kept[v]);
          }
        }
      }
    }
    sum(squares, bring_next);
    const float inverse = rsqrtf(squares[0] / width + problem.eps);
    X* out = static_cast<X*>(problem.out) + row * problem.out_rows.stride[0] + begin;
#pragma unroll
    for (int v = 0; v < kLongVectors; ++v) {
      if (v < own) {
        forget(kept[v]);
        store_vector(out + int64_t{v} * stride,
                     scale_vector<kCastBefore, X>(kept[v], inverse, weights[v * kRingThreads],
                                                  zero_centered));
      }
    }
  }
  if (cluster > 1) {
    sync_cluster();  // no block leaves while a peer may still write into its shared memory
  }
#endif
}

}  // namespace graft_kernels::rms_norm::sm90
