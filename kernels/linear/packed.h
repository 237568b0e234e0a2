// Weights kept in GGUF's blocks: the layout that the dot products read, and their checked call.
//
// Eight rows of the weight lie side by side. A chunk holds 32 columns of them: the scales of the
// eight rows, their offsets where the type stores any, then the codes, four columns of a row beside
// each other: 32 bytes are four columns of eight rows. Four-bit codes share a byte with the code 16
// columns on. Chunks follow each other along the columns, so a product reads one stream.
#pragma once

#include <cstdint>

#include "kernels/linear/linear.h"

namespace graft_kernels::linear {

inline constexpr int kPackedRows = 8;
inline constexpr int kPackedColumns = 32;

// What is added to scale * code.
enum class Offset { kNone, kMinus8Scales, kStored };

// A GGUF type, as stored and as laid out here.
struct PackedFormat {
  int type = 0;  // ggml's number
  const char* name = "";
  int block_columns = 0;  // of ggml's block
  int block_bytes = 0;
  bool four_bits = false;  // codes 0..15, else signed bytes
  int scale_columns = 32;  // columns that share a scale
  Offset offset = Offset::kNone;
  bool wide_scales = false;  // float32, where a scale is a product of two stored numbers

  constexpr int scale_bytes() const {
    return kPackedColumns / scale_columns * kPackedRows * (wide_scales ? 4 : 2);
  }
  constexpr int codes_at() const { return scale_bytes() * (offset == Offset::kStored ? 2 : 1); }
  constexpr int chunk_bytes() const {
    return codes_at() + kPackedRows * kPackedColumns / (four_bits ? 2 : 1);
  }
};

inline constexpr PackedFormat kPackedFormats[] = {
    {2, "Q4_0", 32, 18, true, 32, Offset::kMinus8Scales, false},
    {3, "Q4_1", 32, 20, true, 32, Offset::kStored, false},
    {6, "Q5_0", 32, 22, false, 32, Offset::kNone, false},
    {7, "Q5_1", 32, 24, false, 32, Offset::kStored, false},
    {8, "Q8_0", 32, 34, false, 32, Offset::kNone, false},
    {12, "Q4_K", 256, 144, true, 32, Offset::kStored, true},
    {13, "Q5_K", 256, 176, false, 32, Offset::kStored, true},
    {14, "Q6_K", 256, 210, false, 16, Offset::kNone, true},
};

// The format with ggml's number `type`, or null.
const PackedFormat* find_packed_format(int64_t type);

// Bytes of the layout for [rows, columns].
int64_t packed_bytes(const PackedFormat& format, int64_t rows, int64_t columns);

// Lays out groups of eight rows [begin, end). `blocks` holds all rows as ggml stores them; rows past
// the last are zero.
void pack_groups(const PackedFormat& format, const uint8_t* blocks, int64_t rows, int64_t columns,
                 uint8_t* packed, int64_t begin, int64_t end);

// Up to kMaxVectorRows (linear.h) rows of x each result comes from whole numbers of 15 bits, and has the
// same bits whatever rows stand beside it. Above, arithmetic bounds the work, and x is rounded further.

// Rows of the weight that are unpacked at a time where the processor multiplies tiles of bfloat16.
inline constexpr int kPanelRows = 32;
// Rows and columns of one such tile.
inline constexpr int kTileRows = 16, kTileColumns = 32;

// y[n][m] = sum over k of x[n][k] * weight[m][k], plus bias[m].
struct PackedProblem {
  const PackedFormat* format = nullptr;
  Dtype dtype = Dtype::kFloat32;  // of bias and out
  int64_t rows = 0;               // N
  int64_t depth = 0;              // K
  int64_t columns = 0;            // M
  const uint8_t* packed = nullptr;
  const void* bias = nullptr;  // [M] or absent
  void* out = nullptr;         // [N, M]
  int64_t out_stride = 0;      // elements from one row of out to the next
  // x is one of: whole numbers (RoundedX) ...
  const int8_t* x_high = nullptr;   // [N, K]
  const int8_t* x_low = nullptr;    // [N, K], absent: a number is `high` alone, else 255 high + low
  const float* x_scales = nullptr;  // [N, K / 32], what to multiply the numbers with
  const float* x_sums = nullptr;    // [N, K / 16], scale times the sum of 16 numbers
  const int32_t* x_counts = nullptr;  // [N, K / 16], the sum itself
  // the same bytes as vpdpbusd wants them, [N, K / 8, 2, 64]: for 8 columns first `high`, then `low`;
  // eight times the first four columns, eight times the other four. Absent: not used.
  const int8_t* x_spread = nullptr;
  bool use_vnni = false;     // vpdpbusd may be used (avx512 alone)
  const float* x = nullptr;  // ... [N, K] as it is ...
  const uint16_t* x_tiles =
      nullptr;                // ... or bfloat16 [N / 16, K / 32, 16, 32], zeros past the last
  uint16_t* panel = nullptr;  // scratch of panel_elements() for the calling thread, with x_tiles
};

// Elements of a panel: kPanelRows rows of weight in bfloat16.
constexpr int64_t panel_elements(int64_t depth) { return depth * kPanelRows; }

using PackedFunction = void (*)(const PackedProblem& problem, int64_t begin, int64_t end);

// Where rounding writes: as in PackedProblem. `low` may be null.
struct RoundedX {
  int8_t* high = nullptr;
  int8_t* low = nullptr;
  float* scales = nullptr;
  float* sums = nullptr;
  int32_t* counts = nullptr;
};

// Rounds `count` elements, a multiple of 32, to nearest: 32 share a scale, the largest |x| of them
// over 32512, or over 127 without `low`. 32 elements of which one is not finite get NaN as their
// scale.
using RoundFunction = void (*)(const float* x, int64_t count, const RoundedX& to);

}  // namespace graft_kernels::linear

// One entry per instruction set (packed_simd.cpp, packed_round_simd.cpp). Groups of eight columns
// [begin, end) of out.
namespace graft_kernels::plain {
void packed_groups(const linear::PackedProblem& problem, int64_t begin, int64_t end);
void round_rows(const float* x, int64_t count, const linear::RoundedX& to);
}  // namespace graft_kernels::plain
namespace graft_kernels::avx2 {
void packed_groups(const linear::PackedProblem& problem, int64_t begin, int64_t end);
void round_rows(const float* x, int64_t count, const linear::RoundedX& to);
}  // namespace graft_kernels::avx2
namespace graft_kernels::avx512 {
void packed_groups(const linear::PackedProblem& problem, int64_t begin, int64_t end);
void round_rows(const float* x, int64_t count, const linear::RoundedX& to);
// With VNNI: PackedProblem::x_spread of `count` elements, a multiple of 32.
void spread_rows(const int8_t* high, const int8_t* low, int64_t count, int8_t* spread);
void vnni_groups(const linear::PackedProblem& problem, int64_t begin, int64_t end);
// With tiles: PackedProblem::x_tiles of tile rows [begin, end), and panels [begin, end) of out.
void tile_rows(const float* x, int64_t rows, int64_t depth, uint16_t* tiles, int64_t begin,
               int64_t end);
void tile_panels(const linear::PackedProblem& problem, int64_t begin, int64_t end);
}  // namespace graft_kernels::avx512
