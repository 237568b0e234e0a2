// Products of tiles in shared memory by 256 threads: on tensor cores for 16-bit values, by fused
// multiply-adds for the rest. Both give a thread a fixed set of places of the result. Device code, no
// Torch.
#pragma once

#include <cstdint>

#include "kernels/attention/attention_mma.cuh"

namespace graft_kernels::attention {

inline constexpr int kTileThreads = 256;

// Heads of up to kD elements, tiles of 64 rows, on mma.sync. Eight warps: four times 16 rows, and columns in
// alternating sixteens.
template <typename Value, int kHead>
struct MmaTile {
  using T = Value;
  static constexpr int kD = kHead;
  static constexpr int kRows = 64;
  static constexpr int kPitch = kD + 8;           // of a row of queries, keys or values
  static constexpr int kWeightPitch = kRows + 8;  // of a row of weights
  static constexpr bool kVectors = true;

  template <int kN>
  struct Sum {
    static constexpr int kCount = kN / 4;  // places of a thread
    float values[kN / 16][4] = {};

    __device__ __forceinline__ float& operator[](int index) { return values[index / 4][index % 4]; }
    __device__ static __forceinline__ int row(int index) {
      return static_cast<int>(threadIdx.x) / 32 % 4 * 16 + static_cast<int>(threadIdx.x) % 32 / 4 +
             index % 4 / 2 * 8;
    }
    __device__ static __forceinline__ int column(int index) {
      return (index / 8 * 2 + static_cast<int>(threadIdx.x) / 128) * 16 + index / 4 % 2 * 8 +
             static_cast<int>(threadIdx.x) % 4 * 2 + index % 2;
    }
  };

  // sum[kRows x kN] += a[kRows x depth] b[kN x depth]^T, columns below `width` alone. A turned operand is
  // stored with the contracted dimension along its rows.
  template <int kN, bool kTurnA, bool kTurnB>
  __device__ static __forceinline__ void multiply(Sum<kN>& sum, const T* a, int a_pitch, const T* b,
                                                  int b_pitch, int depth, int width) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int low = lane % 8 + lane / 8 % 2 * 8, high = lane / 16 * 8;      // sixteen by eights
    const int low_b = lane % 8 + lane / 16 * 8, high_b = lane / 8 % 2 * 8;  // eights first
    const int row = warp % 4 * 16;
    for (int step = 0; step < depth; step += 16) {
      uint32_t left[4];
      if constexpr (kTurnA) {
        load_matrices_transposed(left, a + (step + low_b) * a_pitch + row + high_b);
      } else {
        load_matrices(left, a + (row + low) * a_pitch + step + high);
      }
#pragma unroll
      for (int part = 0; part < kN / 32; ++part) {
        const int column = (part * 2 + warp / 4) * 16;
        if (column < width) {
          uint32_t right[4];
          if constexpr (kTurnB) {
            load_matrices_transposed(right, b + (step + low) * b_pitch + column + high);
          } else {
            load_matrices(right, b + (column + low_b) * b_pitch + step + high_b);
          }
          attention::multiply<T>(sum.values[part * 2], left, right[0], right[1]);
          attention::multiply<T>(sum.values[part * 2 + 1], left, right[2], right[3]);
        }
      }
    }
  }
};

// Any type, without tensor cores: sums in float32 of exact products. Threads lie as 16 x 16.
template <typename Value, int kHead>
struct FmaTile {
  using T = Value;
  static constexpr int kD = kHead;
  static constexpr int kRows = kD * sizeof(T) > 512 ? 16 : 32;
  static constexpr int kPitch = kD + 1;
  static constexpr int kWeightPitch = kRows + 1;
  static constexpr bool kVectors = false;

  template <int kN>
  struct Sum {
    static constexpr int kCount = kRows * kN / kTileThreads;
    float values[kRows / 16][kN / 16] = {};

    __device__ __forceinline__ float& operator[](int index) {
      return values[index % (kRows / 16)][index / (kRows / 16)];
    }
    __device__ static __forceinline__ int row(int index) {
      return static_cast<int>(threadIdx.x) / 16 + index % (kRows / 16) * 16;
    }
    __device__ static __forceinline__ int column(int index) {
      return static_cast<int>(threadIdx.x) % 16 + index / (kRows / 16) * 16;
    }
  };

  template <int kN, bool kTurnA, bool kTurnB>
  __device__ static __forceinline__ void multiply(Sum<kN>& sum, const T* a, int a_pitch, const T* b,
                                                  int b_pitch, int depth, int width) {
    const int row = threadIdx.x / 16, column = threadIdx.x % 16;
    for (int step = 0; step < depth; ++step) {
      float left[kRows / 16];
#pragma unroll
      for (int i = 0; i < kRows / 16; ++i) {
        const int at = row + i * 16;
        left[i] = to_float(kTurnA ? a[step * a_pitch + at] : a[at * a_pitch + step]);
      }
#pragma unroll
      for (int j = 0; j < kN / 16; ++j) {
        const int at = column + j * 16;
        if (j * 16 < width) {
          const float right = to_float(kTurnB ? b[step * b_pitch + at] : b[at * b_pitch + step]);
#pragma unroll
          for (int i = 0; i < kRows / 16; ++i) {
            sum.values[i][j] = fmaf(left[i], right, sum.values[i][j]);
          }
        }
      }
    }
  }
};

}  // namespace graft_kernels::attention
