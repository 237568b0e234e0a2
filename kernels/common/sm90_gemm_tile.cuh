// What epilogues of sm90_gemm.cuh share: 16 rows x 64 columns of a warp's results pass through its own piece of shared
// memory, from where the copy engine takes them while the next tile is computed. Device code, no Torch.
#pragma once

#include "kernels/common/sm90_gemm.cuh"

namespace graft_kernels::sm90 {

inline constexpr int kResultColumns = 64;  // of a box of results
inline constexpr int kResultBytes = 16 * kResultColumns * 2;
inline constexpr int kResultPairs = 16;  // of one thread in a box

// Two values of T, the lower half first.
template <typename T>
__device__ __forceinline__ uint32_t pack_pair(float low, float high) {
  if constexpr (std::is_same_v<T, Bf16>) {
    const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
    return *reinterpret_cast<const uint32_t*>(&pair);
  } else {
    const __half2 pair = __floats2half2_rn(low, high);
    return *reinterpret_cast<const uint32_t*>(&pair);
  }
}

template <typename T>
__device__ __forceinline__ float2 unpack_pair(uint32_t pair) {
  if constexpr (std::is_same_v<T, Bf16>) {
    return __bfloat1622float2(*reinterpret_cast<const __nv_bfloat162*>(&pair));
  } else {
    return __half22float2(*reinterpret_cast<const __half2*>(&pair));
  }
}

// Both products, each rounded once.
template <typename T>
__device__ __forceinline__ uint32_t multiply_pairs(uint32_t a, uint32_t b) {
  if constexpr (std::is_same_v<T, Bf16>) {
    const __nv_bfloat162 pair = __hmul2_rn(*reinterpret_cast<const __nv_bfloat162*>(&a),
                                           *reinterpret_cast<const __nv_bfloat162*>(&b));
    return *reinterpret_cast<const uint32_t*>(&pair);
  } else {
    const __half2 pair =
        __hmul2_rn(*reinterpret_cast<const __half2*>(&a), *reinterpret_cast<const __half2*>(&b));
    return *reinterpret_cast<const uint32_t*>(&pair);
  }
}

// The 16 bytes that hold columns [8 block, 8 block + 8) of a row: the order of the copy engine's 128-byte swizzle.
template <typename Byte>
__device__ __forceinline__ Byte* piece_of(Byte* box, int row, int block) {
  return box + row * 128 + ((block ^ (row & 7)) * 16);
}

// Pair `index` of a thread: two columns from column_of(index, lane) on, of row row_of(index, lane).
__device__ __forceinline__ int column_of(int index, int lane) {
  return index / 2 * 8 + lane % 4 * 2;
}
__device__ __forceinline__ int row_of(int index, int lane) { return lane / 4 + index % 2 * 8; }
// Where its two sums are, counted from the box's first column.
__device__ __forceinline__ constexpr int sum_of(int index) { return index * 2; }

// Values at a thread's columns of a box from `column` on, for pairs 2i and 2i + 1 at i; zeros without values and beyond
// their end. All loads are under way before the first is waited for.
template <typename T>
struct BoxValues {
  uint32_t pairs[kResultPairs / 2];

  __device__ __forceinline__ BoxValues(const T* values, int columns, int column, int lane) {
    const auto* bits = reinterpret_cast<const unsigned short*>(values);
#pragma unroll
    for (int block = 0; block < kResultPairs / 2; ++block) {
      const int at = column + column_of(block * 2, lane);
      const uint32_t low = values != nullptr && at < columns ? __ldg(bits + at) : 0;
      const uint32_t high = values != nullptr && at + 1 < columns ? __ldg(bits + at + 1) : 0;
      pairs[block] = low | high << 16;
    }
  }
  __device__ __forceinline__ float2 of_pair(int index) const {
    return unpack_pair<T>(pairs[index / 2]);
  }
};

__device__ __forceinline__ void fill_box(unsigned char* box, int lane,
                                         const uint32_t (&pairs)[kResultPairs]) {
#pragma unroll
  for (int block = 0; block < 8; block += 2) {
    const uint32_t matrices[4] = {pairs[block * 2], pairs[block * 2 + 1], pairs[block * 2 + 2],
                                  pairs[block * 2 + 3]};
    store_matrices(piece_of(box, lane % 16, block + lane / 16), matrices);
  }
}

// A matrix [rows, columns] that results go to.
struct ResultMatrix {
  CUtensorMap map;  // where `mapped`
  bool mapped;      // whether the copy engine can write rows of it
  int64_t rows;
  int columns;

  // Waits until all but kPending of this warp's boxes have left shared memory; the whole warp calls it.
  template <int kPending = 0>
  __device__ __forceinline__ void wait_sent(int lane) const {
    if (lane == 0) {
      asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(kPending) : "memory");
    }
    __syncwarp();
  }

  // Box at (row, column) goes to the matrix, as T* `first`; the whole warp calls it.
  template <typename T>
  __device__ __forceinline__ void send(T* first, unsigned char* box, int64_t row, int column,
                                       int lane) const {
    if (mapped) {
      publish_shared();
      __syncwarp();
      if (lane == 0) {
        asm volatile(
            "cp.async.bulk.tensor.2d.global.shared::cta.bulk_group [%0, {%2, %3}], [%1];\n"
            "cp.async.bulk.commit_group;" ::"l"(&map),
            "r"(shared_address(box)), "r"(column), "r"(static_cast<int>(row))
            : "memory");
      }
      return;
    }
    __syncwarp();
    each<T>(row, column, lane, [&](int own, int block, int64_t at, int inside) {
      const T* from = reinterpret_cast<const T*>(piece_of(box, own, block));
      for (int element = 0; element < inside; ++element) {
        first[at + element] = from[element];
      }
    });
    __syncwarp();
  }

  // The matrix's values come into the box; the whole warp calls it.
  template <typename T>
  __device__ __forceinline__ void fetch(const T* first, unsigned char* box, int64_t row, int column,
                                        int lane) const {
    each<T>(row, column, lane, [&](int own, int block, int64_t at, int inside) {
      T* to = reinterpret_cast<T*>(piece_of(box, own, block));
      if (mapped && inside == 8) {
        *reinterpret_cast<uint4*>(to) = *reinterpret_cast<const uint4*>(first + at);
        return;
      }
      for (int element = 0; element < inside; ++element) {
        to[element] = first[at + element];
      }
    });
    __syncwarp();
  }

 private:
  // Calls move(row and block in the box, place in the matrix, elements inside) for 16 bytes at a time.
  template <typename T, typename Move>
  __device__ __forceinline__ void each(int64_t row, int column, int lane, const Move& move) const {
    const int block = lane % 8, inside = min(columns - column - block * 8, 8);
#pragma unroll
    for (int own = lane / 8; own < 16; own += 4) {
      if (row + own < rows && inside > 0) {
        move(own, block, (row + own) * columns + column + block * 8, inside);
      }
    }
  }
};

}  // namespace graft_kernels::sm90
