// RMSNorm's backward on Hopper for rows of one or two vectors a thread: a block takes two rows a turn, so that what a turn costs
// each warp (a barrier, sums, addresses) is spread over twice the bytes, and the next turns' rows are on their way
// through shared memory. Device code, no Torch.
#pragma once

#include "kernels/common/sm90_barriers.cuh"
#include "kernels/rms-norm/rms_norm_reduce.cuh"

namespace graft_kernels::rms_norm::sm90 {

using namespace graft_kernels::sm90;  // NOLINT(google-build-using-namespace): the same vocabulary

inline constexpr int kTurnRows = 2;
inline constexpr int kTurnSums = 2 * kTurnRows;      // of squares and of gradient * x, of each row
inline constexpr int kSumLanes = kWarp / kTurnSums;  // that go on with one of them
inline constexpr int kTurnStages = 2;                // turns on their way

// Sums over a warp of four values at once: lanes 8 * i to 8 * i + 7 get that of value i.
__device__ __forceinline__ float sum_of_turn(const float (&values)[kTurnSums]) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const bool lower = lane < kWarp / 2, even = lane / kSumLanes % 2 == 0;
  const auto exchange = [](bool first, float a, float b, int distance) {
    return (first ? a : b) + __shfl_xor_sync(0xffffffffU, first ? b : a, distance);
  };
  const float left = exchange(lower, values[0], values[2], kWarp / 2);
  const float right = exchange(lower, values[1], values[3], kWarp / 2);
  return sum_over_lanes<kSumLanes>(exchange(even, left, right, kSumLanes));
}

// What the sums and the copies need of shared memory.
template <int kMaxThreads>
struct TurnScratch {
  uint64_t full[kTurnStages];
  float of_warps[2][kTurnSums][kMaxThreads / kWarp];
};

// What a thread holds of a row.
template <typename X, bool kAdd, int kVectors>
struct TurnRow {
  static constexpr int kStreams = kAdd ? 3 : 2;
  Vec<X, kVectorSize<X>> streams[kStreams][kVectors];  // x, grad_out, the gradient of the sum
};

// gridDim.x = parts; a block has a thread per kVectors vectors of a row, in whole warps. Dynamic shared memory: kTurnStages *
// kTurnRows rows of every tensor. X is the dtype of x, weight and all gradients; rows lie one stride apart.
template <typename X, bool kAdd, int kVectors, int kMaxThreads>
__global__ void __launch_bounds__(kMaxThreads, 1)
    two_rows_bwd_kernel(const __grid_constant__ BackwardProblem problem) {
#if __CUDA_ARCH__ >= 900
  constexpr int kSize = kVectorSize<X>;
  constexpr int kStreams = TurnRow<X, kAdd, kVectors>::kStreams;
  using Vector = Vec<X, kSize>;
  extern __shared__ __align__(128) unsigned char slots[];
  __shared__ TurnScratch<kMaxThreads> scratch;
  const auto thread = static_cast<int>(threadIdx.x);
  const int lane = thread % kWarp, num_warps = static_cast<int>(blockDim.x) / kWarp;
  const auto columns = static_cast<int>(problem.columns), rows = static_cast<int>(problem.rows);
  const int row_bytes = columns * static_cast<int>(sizeof(X));
  // Vector v of this thread begins here; does it exist?
  const auto column_of = [&](int v) { return (thread + v * static_cast<int>(blockDim.x)) * kSize; };
  const auto holds = [&](int v) { return column_of(v) < columns; };
  if (thread == 0) {
    for (uint64_t& barrier : scratch.full) {
      init_barrier(&barrier, 1);
    }
    fence_barrier_inits();
  }
  __syncthreads();

  // Lane kStreams * r + s of the first warp brings stream s of row r of a turn.
  const int step = static_cast<int>(gridDim.x) * kTurnRows;
  const int stream = lane % kStreams;
  const X* source = static_cast<const X*>(stream == 0   ? problem.x
                                          : stream == 1 ? problem.grad_out
                                                        : problem.grad_sum);
  const int64_t source_stride = stream == 0   ? problem.x_rows.stride[0]
                                : stream == 1 ? problem.grad_out_rows.stride[0]
                                              : problem.grad_sum_rows.stride[0];
  int row = static_cast<int>(blockIdx.x) * kTurnRows;
  int next_row = row, next_slot = 0;
  const auto bring_next = [&] {
    const int count = min(kTurnRows, rows - next_row);
    if (count > 0) {
      uint64_t* barrier = &scratch.full[next_slot];
      if (lane == 0) {
        arrive_expecting(barrier, count * kStreams * row_bytes);
      }
      if (lane < count * kStreams) {
        copy_bytes(slots + (next_slot * kTurnRows * kStreams + lane) * row_bytes,
                   source + (next_row + lane / kStreams) * source_stride, barrier, row_bytes);
      }
      next_row += step;
      next_slot = next_slot + 1 == kTurnStages ? 0 : next_slot + 1;
    }
  };
  if (thread < kWarp) {
    for (int stage = 0; stage < kTurnStages; ++stage) {
      bring_next();
    }
  }

  Vector weights[kVectors] = {};
  float shares[kVectors][kSize] = {};
#pragma unroll
  for (int v = 0; v < kVectors; ++v) {
    if (holds(v)) {
      weights[v] = load_shared_data<X, kSize>(static_cast<const X*>(problem.weight) + column_of(v));
    }
  }
  const float offset = problem.variant == Variant::kZeroCentered ? 1.0F : 0.0F;
  const float per_column = 1.0F / static_cast<float>(columns);
  // One vector's weights stay converted; of two, that would cost too many registers.
  const auto weight_of = [&](int v) {
    Vec<float, kSize> weight;
    if constexpr (kVectors > 1) {
      forget(weights[v]);
    }
#pragma unroll
    for (int i = 0; i < kSize; ++i) {
      weight.data[i] = offset + to_float(weights[v].data[i]);
    }
    return weight;
  };
  X* grad_x = static_cast<X*>(problem.grad_x) + row * problem.grad_x_rows.stride[0];
  int slot = 0, phase = 0, half = 0;
  for (; row < rows; row += step) {
    wait(&scratch.full[slot], phase);
    const unsigned char* place = slots + slot * kTurnRows * kStreams * row_bytes;
    TurnRow<X, kAdd, kVectors> held[kTurnRows] = {};
    float sums[kTurnSums] = {};
#pragma unroll
    for (int v = 0; v < kVectors; ++v) {
      const Vec<float, kSize> weight = weight_of(v);
#pragma unroll
      for (int r = 0; r < kTurnRows; ++r) {
        if (holds(v)) {
#pragma unroll
          for (int s = 0; s < kStreams; ++s) {
            held[r].streams[s][v] =
                *reinterpret_cast<const Vector*>(place + (r * kStreams + s) * row_bytes +
                                                 column_of(v) * static_cast<int>(sizeof(X)));
          }
        }
#pragma unroll
        for (int i = 0; i < kSize; ++i) {
          const float x = to_float(held[r].streams[0][v].data[i]);
          const float gradient = to_float(held[r].streams[1][v].data[i]) * weight.data[i];
          sums[2 * r] = fmaf(x, x, sums[2 * r]);
          sums[2 * r + 1] = fmaf(gradient, x, sums[2 * r + 1]);
        }
      }
    }
    // Turns change between halves of the scratch memory, so that one barrier is enough.
    float(&of_warps)[kTurnSums][kMaxThreads / kWarp] = scratch.of_warps[half];
    const float of_warp = sum_of_turn(sums);
    if (lane % kSumLanes == 0) {
      of_warps[lane / kSumLanes][thread / kWarp] = of_warp;
    }
    __syncthreads();
    if (thread < kWarp) {
      bring_next();  // everyone holds what lay there
    }
    float total = 0;
#pragma unroll
    for (int from = 0; from < kMaxThreads / kWarp; from += kSumLanes) {
      const int warp = from + lane % kSumLanes;
      total += warp < num_warps ? of_warps[lane / kSumLanes][warp] : 0.0F;
    }
    total = sum_over_lanes<kSumLanes>(total);
#pragma unroll
    for (int r = 0; r < kTurnRows; ++r) {
      const float squares = __shfl_sync(0xffffffffU, total, 2 * r * kSumLanes);
      const float product = __shfl_sync(0xffffffffU, total, (2 * r + 1) * kSumLanes);
      if (row + r < rows) {
        const float inverse = rsqrtf(fmaf(squares, per_column, problem.eps));
        const float pull = inverse * inverse * inverse * (product * per_column);
#pragma unroll
        for (int v = 0; v < kVectors; ++v) {
#pragma unroll
          for (int s = 0; s < kStreams; ++s) {
            forget(held[r].streams[s][v]);
          }
          const Vec<float, kSize> weight = weight_of(v);
          Vector result;
#pragma unroll
          for (int i = 0; i < kSize; ++i) {
            const float x = to_float(held[r].streams[0][v].data[i]);
            const float scaled = to_float(held[r].streams[1][v].data[i]) * inverse;
            float value = fmaf(scaled, weight.data[i], -(x * pull));
            if constexpr (kAdd) {
              value += to_float(held[r].streams[2][v].data[i]);
            }
            result.data[i] = from_float<X>(value);
            shares[v][i] = fmaf(scaled, x, shares[v][i]);
          }
          if (holds(v)) {
            store_vector(grad_x + r * problem.grad_x_rows.stride[0] + column_of(v), result);
          }
        }
      }
    }
    grad_x += step * problem.grad_x_rows.stride[0];
    half ^= 1;
    slot = slot + 1 == kTurnStages ? 0 : slot + 1;
    phase ^= slot == 0 ? 1 : 0;
  }
#pragma unroll
  for (int v = 0; v < kVectors; ++v) {
    if (holds(v)) {
      Vec<float, kSize> share;
#pragma unroll
      for (int i = 0; i < kSize; ++i) {
        share.data[i] = shares[v][i];
      }
      store_vector(problem.partial + static_cast<int64_t>(blockIdx.x) * columns + column_of(v),
                   share);
    }
  }
#endif
}

}  // namespace graft_kernels::rms_norm::sm90
