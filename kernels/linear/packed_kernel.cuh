// Products with weights kept in GGUF's blocks (packed.h), and their values as plain numbers. Device code, no
// Torch.
//
// A lane reads 16 bytes of codes: four columns of four rows (8-bit codes; 16 lanes to a chunk), or four
// columns and the four that stand 16 further (4-bit codes; 8 lanes to a chunk). A block takes one group of
// eight rows; its warps split the chunks. Rows of x beyond four take further passes over the group, which
// the caches then hold.
#pragma once

#include "kernels/common/overlap.cuh"
#include "kernels/common/vec.cuh"
#include "kernels/linear/packed.h"

namespace graft_kernels::linear {

inline constexpr int kPackedWarps = 8;
inline constexpr int kPackedThreads = 32 * kPackedWarps;
inline constexpr int kPackedUnroll = 2;
// Rows of x in one pass, and those up to which weights are unpacked in registers.
inline constexpr int kPassRows = 4;
inline constexpr int kMaxPackedRows = 16;

struct PackedCudaProblem {
  Dtype dtype = Dtype::kFloat32;  // of bias and out
  int rows = 0;                   // N, at most kMaxPackedRows
  int chunks = 0;                 // K / 32
  int columns = 0;                // M
  const uint8_t* packed = nullptr;
  const void* bias = nullptr;  // [M] or absent
  void* out = nullptr;         // [N, M]
  int64_t out_stride = 0;      // elements from row to row of out
  // x as it is, for the kernel that rounds it itself (packed_ring_kernel.cuh) ...
  const void* x = nullptr;  // [N, K]
  int64_t x_stride = 0;     // elements from row to row of x
  // ... or prepared by a kernel before: bytes and their scales, or float32.
  const int8_t* codes = nullptr;  // [N, K]
  const float* scales = nullptr;  // [N, K / 32]
  const float* values = nullptr;  // [N, K]
};

// What a lane holds of one chunk: four rows.
template <int kFormat>
struct Piece {
  static constexpr PackedFormat kLayout = kPackedFormats[kFormat];
  static constexpr int kChunkBytes = kLayout.chunk_bytes();
  static constexpr int kCodesAt = kLayout.codes_at();
  static constexpr int kOffsetsAt = kLayout.scale_bytes();
  static constexpr int kLanes = kLayout.four_bits ? 8 : 16;  // on one chunk
  static constexpr int kChunks = 32 / kLanes;                // that a warp reads at once

  uint4 codes;
  uint4 scales;   // four float32, or four float16 in the first half
  uint4 offsets;  // likewise

  static __device__ __forceinline__ int group_of_columns() { return threadIdx.x % kLanes / 2; }

  // kShared: the chunk lies in shared memory.
  template <bool kShared = false>
  __device__ __forceinline__ void load(const uint8_t* chunk) {
    const int lane = threadIdx.x % kLanes, upper_rows = lane % 2;
    const uint8_t* from = chunk + kCodesAt + lane * 16;
    codes = kShared ? *reinterpret_cast<const uint4*>(from) : load_words(from);
    const int first = kLayout.scale_columns == 16 ? group_of_columns() / 4 * kPackedRows : 0;
    scales = load_four<kShared>(chunk, first + upper_rows * 4);
    if constexpr (kLayout.offset == Offset::kStored) {
      offsets = load_four<kShared>(chunk + kOffsetsAt, upper_rows * 4);
    }
  }
  __device__ __forceinline__ float scale(int row) const { return number(scales, row); }
  __device__ __forceinline__ float offset(int row) const {
    if constexpr (kLayout.offset == Offset::kStored) {
      return number(offsets, row);
    } else {
      return kLayout.offset == Offset::kMinus8Scales ? -8.F * scale(row) : 0.F;
    }
  }
  // Four codes as signed bytes; `far`: those 16 columns further.
  __device__ __forceinline__ int bytes(int row, bool far) const {
    const uint32_t word = row == 0 ? codes.x : row == 1 ? codes.y : row == 2 ? codes.z : codes.w;
    if constexpr (kLayout.four_bits) {
      return static_cast<int>((far ? word >> 4 : word) & 0x0f0f0f0fU);
    } else {
      return static_cast<int>(word);
    }
  }

 private:
  static __device__ __forceinline__ uint4 load_words(const uint8_t* from) {
    uint4 words;
    asm volatile("ld.global.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(words.x), "=r"(words.y), "=r"(words.z), "=r"(words.w)
                 : "l"(from));
    return words;
  }
  template <bool kShared>
  static __device__ __forceinline__ uint4 load_four(const uint8_t* from, int index) {
    if constexpr (kLayout.wide_scales) {
      const auto* words = reinterpret_cast<const uint4*>(from + index * 4);
      return kShared ? *words : __ldg(words);
    } else {
      const auto* words = reinterpret_cast<const uint2*>(from + index * 2);
      const uint2 halves = kShared ? *words : __ldg(words);
      return {halves.x, halves.y, 0, 0};
    }
  }
  static __device__ __forceinline__ float number(const uint4& four, int row) {
    if constexpr (kLayout.wide_scales) {
      return __uint_as_float(row == 0 ? four.x : row == 1 ? four.y : row == 2 ? four.z : four.w);
    } else {
      const uint32_t pair = row < 2 ? four.x : four.y;
      return __half2float(
          __ushort_as_half(static_cast<unsigned short>(row % 2 == 0 ? pair : pair >> 16)));
    }
  }
};

// Rows of x as bytes with their scales.
struct RoundedRows {
  const int8_t* codes;  // [rows, chunks * 32]
  const float* scales;  // [rows, chunks]
  int rows;
  int chunks;
};

// Adds the products of one piece with rows of x that were rounded to bytes.
template <int kFormat, int kRows>
__device__ __forceinline__ void add_rounded(const Piece<kFormat>& piece, const RoundedRows& x,
                                            int base, int chunk, float (&sums)[kRows][4]) {
  constexpr bool kFar = Piece<kFormat>::kLayout.four_bits;
  constexpr bool kHasOffset = Piece<kFormat>::kLayout.offset != Offset::kNone;
  const int column = chunk * kPackedColumns + Piece<kFormat>::group_of_columns() * 4;
#pragma unroll
  for (int n = 0; n < kRows; ++n) {
    if (base + n >= x.rows) {
      break;
    }
    const int64_t first_chunk = int64_t{base + n} * x.chunks;
    const int8_t* codes = x.codes + first_chunk * kPackedColumns + column;
    const int near = *reinterpret_cast<const int*>(codes);
    const int far = kFar ? *reinterpret_cast<const int*>(codes + 16) : 0;
    const float scale = x.scales[first_chunk + chunk];
    const float total =
        kHasOffset ? static_cast<float>(__dp4a(near, 0x01010101, __dp4a(far, 0x01010101, 0))) : 0.F;
#pragma unroll
    for (int row = 0; row < 4; ++row) {
      int dot = __dp4a(piece.bytes(row, false), near, 0);
      if constexpr (kFar) {
        dot = __dp4a(piece.bytes(row, true), far, dot);
      }
      float product = piece.scale(row) * static_cast<float>(dot);
      if constexpr (kHasOffset) {
        product = fmaf(piece.offset(row), total, product);
      }
      sums[n][row] = fmaf(scale, product, sums[n][row]);
    }
  }
}

// The value of byte `index` of four codes.
template <int kFormat>
__device__ __forceinline__ float value_of(const Piece<kFormat>& piece, int row, int codes,
                                          int index) {
  const auto code = static_cast<float>(static_cast<int8_t>(codes >> (8 * index)));
  constexpr Offset kOffset = Piece<kFormat>::kLayout.offset;
  // gguf-py's order of operations, so that the bits are its own.
  if constexpr (kOffset == Offset::kMinus8Scales) {
    return piece.scale(row) * (code - 8.F);
  } else if constexpr (kOffset == Offset::kStored) {
    return __fadd_rn(__fmul_rn(piece.scale(row), code), piece.offset(row));
  } else {
    return piece.scale(row) * code;
  }
}

// Adds the products of one piece with rows of x in float32.
template <int kFormat, int kRows>
__device__ __forceinline__ void add_floats(const Piece<kFormat>& piece,
                                           const PackedCudaProblem& problem, int base, int chunk,
                                           float (&sums)[kRows][4]) {
  constexpr int kFars = Piece<kFormat>::kLayout.four_bits ? 2 : 1;
  const int column = chunk * kPackedColumns + Piece<kFormat>::group_of_columns() * 4;
#pragma unroll
  for (int far = 0; far < kFars; ++far) {
#pragma unroll
    for (int row = 0; row < 4; ++row) {
      const int codes = piece.bytes(row, far == 1);
      float values[4];
#pragma unroll
      for (int index = 0; index < 4; ++index) {
        values[index] = value_of(piece, row, codes, index);
      }
#pragma unroll
      for (int n = 0; n < kRows; ++n) {
        if (base + n < problem.rows) {
          const float4 x = *reinterpret_cast<const float4*>(
              problem.values + int64_t{base + n} * problem.chunks * kPackedColumns + column +
              far * 16);
          sums[n][row] =
              fmaf(values[3], x.w,
                   fmaf(values[2], x.z, fmaf(values[1], x.y, fmaf(values[0], x.x, sums[n][row]))));
        }
      }
    }
  }
}

// Calls body(T{}) with the type of a dtype.
template <typename Body>
__device__ __forceinline__ void with_dtype(Dtype dtype, const Body& body) {
  switch (dtype) {
    case Dtype::kFloat32:
      return body(float{});
    case Dtype::kBfloat16:
      return body(Bf16{});
    case Dtype::kFloat16:
      return body(Fp16{});
  }
}

// Stores one element in the dtype of out.
__device__ __forceinline__ void store_result(const PackedCudaProblem& problem, int n, int column,
                                             float sum) {
  with_dtype(problem.dtype, [&](auto type) {
    using T = decltype(type);
    if (problem.bias != nullptr) {
      sum += to_float(static_cast<const T*>(problem.bias)[column]);
    }
    static_cast<T*>(problem.out)[n * problem.out_stride + column] = from_float<T>(sum);
  });
}

// Adds up what the lanes of a warp have; the first two hold four rows each then.
template <int kRows>
__device__ __forceinline__ void reduce_lanes(float (&sums)[kRows][4]) {
#pragma unroll
  for (int n = 0; n < kRows; ++n) {
#pragma unroll
    for (int row = 0; row < 4; ++row) {
#pragma unroll
      for (int distance = 2; distance < 32; distance *= 2) {
        sums[n][row] += __shfl_xor_sync(0xffffffffU, sums[n][row], distance);
      }
    }
  }
}

// Adds up what lanes and warps of a block have.
template <int kRows>
__device__ __forceinline__ void reduce_group(const PackedCudaProblem& problem, int base,
                                             float (&sums)[kRows][4]) {
  __shared__ float partial[kPackedWarps][kRows][kPackedRows];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  reduce_lanes(sums);
#pragma unroll
  for (int n = 0; n < kRows; ++n) {
#pragma unroll
    for (int row = 0; row < 4; ++row) {
      if (lane < 2) {
        partial[warp][n][lane * 4 + row] = sums[n][row];
      }
    }
  }
  __syncthreads();
  for (int item = threadIdx.x; item < kRows * kPackedRows; item += kPackedThreads) {
    const int n = base + item / kPackedRows, column = blockIdx.x * kPackedRows + item % kPackedRows;
    if (n < problem.rows && column < problem.columns) {
      float sum = 0;
#pragma unroll
      for (int from = 0; from < kPackedWarps; ++from) {
        sum += partial[from][item / kPackedRows][item % kPackedRows];
      }
      store_result(problem, n, column, sum);
    }
  }
}

// One block a group of eight rows of weight.
template <int kFormat, bool kRounded, int kRows>
__global__ void __launch_bounds__(kPackedThreads)
    packed_kernel(const __grid_constant__ PackedCudaProblem problem) {
  using P = Piece<kFormat>;
  let_next_start();
  const uint8_t* group = problem.packed + int64_t{blockIdx.x} * problem.chunks * P::kChunkBytes;
  const int first = threadIdx.x / 32 * P::kChunks + threadIdx.x % 32 / P::kLanes;
  constexpr int kStride = kPackedWarps * P::kChunks;
  P pieces[kPackedUnroll];
  const auto load = [&](int from) {
#pragma unroll
    for (int i = 0; i < kPackedUnroll; ++i) {
      if (from + i * kStride < problem.chunks) {
        pieces[i].load(group + int64_t{from + i * kStride} * P::kChunkBytes);
      }
    }
  };
  // Weights are constants, unlike x: their way begins before the kernel that writes x has ended.
  load(first);
  wait_for_previous();
  for (int base = 0; base < problem.rows; base += kRows) {
    float sums[kRows][4] = {};
    for (int chunk = first; chunk < problem.chunks; chunk += kPackedUnroll * kStride) {
      if (base > 0 || chunk != first) {
        load(chunk);
      }
#pragma unroll
      for (int i = 0; i < kPackedUnroll; ++i) {
        if (chunk + i * kStride < problem.chunks) {
          if constexpr (kRounded) {
            const RoundedRows x{problem.codes, problem.scales, problem.rows, problem.chunks};
            add_rounded<kFormat, kRows>(pieces[i], x, base, chunk + i * kStride, sums);
          } else {
            add_floats<kFormat, kRows>(pieces[i], problem, base, chunk + i * kStride, sums);
          }
        }
      }
    }
    reduce_group<kRows>(problem, base, sums);
    __syncthreads();
  }
}

// The weight's values in T, [M, K]; one block a group of eight rows.
template <int kFormat, typename T>
__global__ void __launch_bounds__(kPackedThreads)
    unpack_kernel(const uint8_t* packed, int chunks, int64_t columns, T* out) {
  using P = Piece<kFormat>;
  const uint8_t* group = packed + int64_t{blockIdx.x} * chunks * P::kChunkBytes;
  const int64_t first_row = int64_t{blockIdx.x} * kPackedRows + threadIdx.x % 2 * 4;
  for (int chunk = threadIdx.x / P::kLanes; chunk < chunks; chunk += kPackedThreads / P::kLanes) {
    P piece;
    piece.load(group + int64_t{chunk} * P::kChunkBytes);
    const int64_t column = int64_t{chunk} * kPackedColumns + P::group_of_columns() * 4;
    for (int row = 0; row < 4 && first_row + row < columns; ++row) {
      T* to = out + (first_row + row) * chunks * kPackedColumns + column;
      for (int far = 0; far < (P::kLayout.four_bits ? 2 : 1); ++far) {
        Vec<T, 4> values;
#pragma unroll
        for (int index = 0; index < 4; ++index) {
          values.data[index] =
              from_float<T>(value_of(piece, row, piece.bytes(row, far == 1), index));
        }
        store_vector(to + far * 16, values);
      }
    }
  }
}

// x as bytes with a scale for each 32 columns (scales not null), else as float32; a warp a 32 columns.
template <typename T>
__global__ void prepare_kernel(const T* x, int64_t stride, int depth, int64_t num_blocks,
                               int8_t* codes, float* scales, float* values) {
  let_next_start();
  const int64_t block = (int64_t{blockIdx.x} * blockDim.x + threadIdx.x) / 32;
  wait_for_previous();
  if (block >= num_blocks) {
    return;
  }
  const int lane = threadIdx.x % 32, blocks_in_row = depth / kPackedColumns;
  const float value =
      to_float(x[block / blocks_in_row * stride + block % blocks_in_row * kPackedColumns + lane]);
  if (scales == nullptr) {
    values[block * kPackedColumns + lane] = value;
    return;
  }
  const bool is_finite = !__any_sync(0xffffffffU, !isfinite(value));
  float largest = fabsf(value);
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2) {
    largest = fmaxf(largest, __shfl_xor_sync(0xffffffffU, largest, distance));
  }
  const bool is_usual = is_finite && largest > 0;
  codes[block * kPackedColumns + lane] =
      is_usual ? static_cast<int8_t>(__float2int_rn(value * (127.F / largest))) : int8_t{0};
  if (lane == 0) {
    scales[block] = is_finite ? largest / 127.F : __int_as_float(0x7fffffff);
  }
}

}  // namespace graft_kernels::linear
