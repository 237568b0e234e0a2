// Products of few rows of x (1 to 16) with the rows of a weight, at the rate of reading the weight once.
// Device code, no Torch. 16-bit dtypes, sums in float32.
//
// A block of eight or sixteen warps multiplies 16 rows of weight at a time. Its warps split the columns; each
// holds two steps of 128 columns of all 16 rows in registers, one being multiplied while the other is on its way,
// across the borders of tiles. The tensor cores do the products (mma m16n8k16: weight rows x 8 rows of x):
// with one row of x seven eighths of their work is thrown away, which costs nothing here, while the
// plain units would be too slow from four rows on.
//
// A sum over columns does not care for their order, so the fragments take them as 16-byte loads bring
// them: lane quad q holds columns 8 q to 8 q + 7 of each 32, of weight and x alike.
#pragma once

#include <cstdint>

#include "kernels/common/overlap.cuh"
#include "kernels/common/vec.cuh"

namespace graft_kernels::few_rows {

inline constexpr int kMostWarps = 16;  // on a multiprocessor
inline constexpr int kTileRows = 16;   // rows of weight
inline constexpr int kGroupRows = 8;   // rows of x that one product takes
inline constexpr int kMaxGroups = 2;
inline constexpr int kMaxRows = kGroupRows * kMaxGroups;
inline constexpr int kChunkColumns = 32;
inline constexpr int kStepChunks = 4;  // 256 bytes of each row, one after the other
inline constexpr int kStepColumns = kChunkColumns * kStepChunks;

// Rows of x, each 16-byte aligned; depth a multiple of 8.
template <typename T>
struct Input {
  const T* x;
  int64_t stride;
  int rows;
  int depth;
};

// 16 columns of 16 rows of weight times 8 rows of x, added to c.
template <typename T>
__device__ __forceinline__ void add_product(float (&c)[4], uint32_t a0, uint32_t a1, uint32_t a2,
                                            uint32_t a3, uint32_t b0, uint32_t b1) {
  if constexpr (sizeof(T) == 2 && !__is_same(T, Fp16)) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
        "{%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
  } else {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
        "{%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
  }
}

// What is read once. A quad's 64 bytes are half a line: L2 fetches the other half with them, for the load that
// follows.
__device__ __forceinline__ uint4 load_words(const void* from) {
  uint4 words;
  asm volatile("ld.global.L1::no_allocate.L2::128B.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(words.x), "=r"(words.y), "=r"(words.z), "=r"(words.w)
               : "l"(from));
  return words;
}

// One step's weights in the registers of a lane: its columns of rows `group` and `group + 8`.
struct Step {
  uint4 low[kStepChunks];
  uint4 high[kStepChunks];
};

// Where a warp's loads stand: ahead of its products by two steps.
template <typename T, int kWarps, typename Source>
class Cursor {
 public:
  __device__ Cursor(const Source& source, int num_tiles, int depth, int num_steps)
      : source_(source),
        num_tiles_(num_tiles),
        depth_(depth),
        num_steps_(num_steps),
        tile_(blockIdx.x) {
    find_rows();
  }

  __device__ __forceinline__ void load(Step& step) {
    const int warp = threadIdx.x / 32, quad = threadIdx.x % 4;
    const int first = (index_ * kWarps + warp) * kStepColumns + quad * 8;
#pragma unroll
    for (int chunk = 0; chunk < kStepChunks; ++chunk) {
      const int column = first + chunk * kChunkColumns;
      const bool is_there = tile_ < num_tiles_ && column < depth_;
      step.low[chunk] = is_there ? load_words(low_ + column) : uint4{};
      step.high[chunk] = is_there ? load_words(high_ + column) : uint4{};
    }
    if (++index_ == num_steps_) {
      index_ = 0;
      tile_ += gridDim.x;
      find_rows();
    }
  }

 private:
  __device__ __forceinline__ void find_rows() {
    if (tile_ < num_tiles_) {
      const int group = threadIdx.x % 32 / 4;
      low_ = source_(tile_, group);
      high_ = source_(tile_, group + kTileRows / 2);
    }
  }

  const Source& source_;
  int num_tiles_, depth_, num_steps_;
  int tile_, index_ = 0;
  const T* low_ = nullptr;
  const T* high_ = nullptr;
};

// Adds the product of one step of weights with the rows of x.
template <typename T, int kGroups, int kWarps>
__device__ __forceinline__ void multiply_step(const Step& step, const Input<T>& input, int index,
                                              float (&sums)[kGroups][4]) {
  const int warp = threadIdx.x / 32, quad = threadIdx.x % 4, group = threadIdx.x % 32 / 4;
  const int first = (index * kWarps + warp) * kStepColumns + quad * 8;
  uint4 x[kGroups][kStepChunks];
#pragma unroll
  for (int rows = 0; rows < kGroups; ++rows) {
    const int row = rows * kGroupRows + group;
    const T* from = input.x + row * input.stride;
#pragma unroll
    for (int chunk = 0; chunk < kStepChunks; ++chunk) {
      const int column = first + chunk * kChunkColumns;
      x[rows][chunk] = row < input.rows && column < input.depth
                           ? *reinterpret_cast<const uint4*>(from + column)
                           : uint4{};
    }
  }
#pragma unroll
  for (int chunk = 0; chunk < kStepChunks; ++chunk) {
    const uint4 &low = step.low[chunk], &high = step.high[chunk];
#pragma unroll
    for (int rows = 0; rows < kGroups; ++rows) {
      const uint4& b = x[rows][chunk];
      add_product<T>(sums[rows], low.x, high.x, low.y, high.y, b.x, b.y);
      add_product<T>(sums[rows], low.z, high.z, low.w, high.w, b.z, b.w);
    }
  }
}

// Adds up what the warps of a block have of one tile and hands the sums on.
template <int kGroups, int kWarps, typename Sink>
__device__ __forceinline__ void reduce_tile(
    float (&partial)[kWarps][kGroups][kTileRows * kGroupRows], const float (&sums)[kGroups][4],
    int tile, int num_rows, const Sink& sink) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
#pragma unroll
  for (int rows = 0; rows < kGroups; ++rows) {
    auto* out = reinterpret_cast<float2*>(partial[warp][rows]);
    out[lane] = {sums[rows][0], sums[rows][1]};
    out[lane + 32] = {sums[rows][2], sums[rows][3]};
  }
  __syncthreads();
  constexpr int kJoined = Sink::kJoinedRows;
  constexpr int kItems = kTileRows * kGroupRows / kJoined;
  for (int item = threadIdx.x; item < kGroups * kItems; item += 32 * kWarps) {
    const int rows = item / kItems, row = item % kItems / kGroupRows;
    const int x_row = rows * kGroupRows + item % kGroupRows;
    if (x_row >= num_rows) {
      continue;
    }
    float total[kJoined] = {};
#pragma unroll
    for (int part = 0; part < kJoined; ++part) {
#pragma unroll
      for (int from = 0; from < kWarps; ++from) {
        total[part] += partial[from][rows][part * kItems + item % kItems];
      }
    }
    sink(tile, row, x_row, total);
  }
}

// All tiles of a block, one after the other.
//
// source(tile, row)  the weight's row, 16-byte aligned; asked for rows of the last tile beyond the weight too
// sink(tile, row, x_row, sums)  takes row `row` of a tile; where Sink::kJoinedRows is 2, sums[1] is row + 8
template <typename T, int kGroups, int kWarps, typename Source, typename Sink>
__device__ __forceinline__ void multiply(const Input<T>& input, int num_tiles, const Source& source,
                                         const Sink& sink) {
  __shared__ float partial[2][kWarps][kGroups][kTileRows * kGroupRows];
  let_next_start();
  const int num_steps = max((input.depth + kStepColumns * kWarps - 1) / (kStepColumns * kWarps), 1);
  Cursor<T, kWarps, Source> cursor(source, num_tiles, input.depth, num_steps);
  // Weights are constants, unlike x: their way begins before the kernel that writes x has ended.
  Step steps[2];
  cursor.load(steps[0]);
  cursor.load(steps[1]);
  wait_for_previous();
  float sums[kGroups][4] = {};
  int index = 0, turn = 0;
  for (int tile = blockIdx.x; tile < num_tiles;) {
#pragma unroll
    for (int buffer = 0; buffer < 2; ++buffer) {
      if (tile < num_tiles) {
        multiply_step<T, kGroups, kWarps>(steps[buffer], input, index, sums);
        cursor.load(steps[buffer]);
        if (++index == num_steps) {
          reduce_tile<kGroups, kWarps>(partial[turn], sums, tile, input.rows, sink);
#pragma unroll
          for (int rows = 0; rows < kGroups; ++rows) {
            sums[rows][0] = sums[rows][1] = sums[rows][2] = sums[rows][3] = 0;
          }
          index = 0;
          turn ^= 1;
          tile += gridDim.x;
        }
      }
    }
  }
}

}  // namespace graft_kernels::few_rows
