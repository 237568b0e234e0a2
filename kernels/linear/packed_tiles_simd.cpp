// Products of packed weights with many rows of x on a processor that multiplies tiles of bfloat16
// (AMX): a panel of the weight is unpacked to bfloat16 in the cache and multiplied with all rows.
// AVX-512 alone; the file is empty for other sets.
//
// Tiles 0 to 3 hold sums, 4 and 5 rows of x, 6 and 7 weights; the layouts are those of TDPBF16PS.

#include "kernels/common/simd_tiles.h"
#include "kernels/linear/packed_lanes.h"

namespace graft_kernels::GRAFT_ISA {

#if defined(__AVX512F__)

namespace {

using linear::kPanelRows;
using linear::kTileColumns;
using linear::kTileRows;

constexpr int64_t kTileElements = int64_t{kTileRows} * kTileColumns;

// Eight factors of a group: each four times, for its four columns; rows 0 to 3, then 4 to 7.
struct Factors {
  __m512 first, second;
  Factors() = default;
  explicit Factors(Float8 values) {
    const __m512 wide = _mm512_castps256_ps512((__m256)values);
    const __m512i order = _mm512_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3);
    first = _mm512_permutexvar_ps(order, wide);
    second = _mm512_permutexvar_ps(_mm512_add_epi32(order, _mm512_set1_epi32(4)), wide);
  }
};

// Scales and offsets of a chunk of eight rows.
template <const PackedFormat& kFormat>
struct ChunkFactors {
  static constexpr int kWidth = kFormat.wide_scales ? 4 : 2;
  static constexpr int kParts = kPackedColumns / kFormat.scale_columns;
  Factors scales[kParts];
  Factors offsets;

  explicit ChunkFactors(const uint8_t* chunk) : offsets(load_offsets(chunk)) {
    for (int part = 0; part < kParts; ++part) {
      scales[part] = Factors(load_scales<kFormat.wide_scales>(chunk + part * kPackedRows * kWidth));
    }
  }

  static Factors load_offsets(const uint8_t* chunk) {
    if constexpr (kFormat.offset == Offset::kStored) {
      return Factors(load_scales<kFormat.wide_scales>(chunk + kFormat.scale_bytes()));
    } else if constexpr (kFormat.offset == Offset::kMinus8Scales) {
      return Factors(load_scales<kFormat.wide_scales>(chunk) * splat8(-8.0F));
    } else {
      return Factors(splat8(0.0F));
    }
  }
};

// Four columns of eight rows as bfloat16: the four of a row beside each other.
template <const PackedFormat& kFormat>
static inline __m512i unpack_columns(const uint8_t* chunk, int group,
                                     const ChunkFactors<kFormat>& factors) {
  const uint8_t* codes = chunk + kFormat.codes_at();
  __m256i bytes;
  if constexpr (kFormat.four_bits) {
    const __m256i both =
        _mm256_loadu_si256(reinterpret_cast<const __m256i*>(codes + group % 4 * 32));
    bytes = _mm256_and_si256(group < 4 ? both : _mm256_srli_epi16(both, 4), _mm256_set1_epi8(15));
  } else {
    bytes = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(codes + group * 32));
  }
  const Factors& scales = factors.scales[group * 4 / kFormat.scale_columns];
  const __m512 first = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm256_castsi256_si128(bytes)));
  const __m512 second =
      _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm256_extracti128_si256(bytes, 1)));
  return to_bf16((Float)_mm512_fmadd_ps(first, scales.first, factors.offsets.first),
                 (Float)_mm512_fmadd_ps(second, scales.second, factors.offsets.second));
}

// A chunk of 16 rows as a tile: row p holds columns 2p and 2p + 1 of each of them.
template <const PackedFormat& kFormat>
static inline void unpack_tile(const uint8_t* upper, const uint8_t* lower, uint16_t* tile) {
  const ChunkFactors<kFormat> upper_factors(upper), lower_factors(lower);
  const __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
  const __m512i odd = _mm512_add_epi32(even, _mm512_set1_epi32(1));
  for (int group = 0; group < kColumnGroups; ++group) {
    const __m512i first = unpack_columns<kFormat>(upper, group, upper_factors);
    const __m512i second = unpack_columns<kFormat>(lower, group, lower_factors);
    _mm512_store_si512(tile + group * 64, _mm512_permutex2var_epi32(first, even, second));
    _mm512_store_si512(tile + group * 64 + 32, _mm512_permutex2var_epi32(first, odd, second));
  }
}

// Rows [32 * index, 32 * index + 32) of the weight as [K / 32, 2, tile]. Groups past the last repeat
// it: nobody reads their results.
template <const PackedFormat& kFormat>
void unpack_panel(const PackedProblem& problem, int64_t index) {
  const int64_t chunks = problem.depth / kPackedColumns;
  const int64_t last = (problem.columns - 1) / kPackedRows;
  const uint8_t* groups[kPanelRows / kPackedRows];
  for (int i = 0; i < kPanelRows / kPackedRows; ++i) {
    const int64_t group = index * (kPanelRows / kPackedRows) + i;
    groups[i] = problem.packed + (group < last ? group : last) * chunks * kFormat.chunk_bytes();
  }
  uint16_t* tile = problem.panel;
  for (int64_t chunk = 0; chunk < chunks; ++chunk) {
    const int64_t at = chunk * kFormat.chunk_bytes();
    for (int i = 0; i < kPanelRows / kPackedRows; i += 2, tile += kTileElements) {
      unpack_tile<kFormat>(groups[i] + at, groups[i + 1] + at, tile);
    }
  }
}

// 16 or 32 rows of x times the panel, left in tiles 0 to 3: rows 0 to 15 in 0 and 1.
template <bool kSecond>
static inline void multiply_panel(const uint16_t* x, const uint16_t* panel, int64_t chunks) {
  tile_zero<0>();
  tile_zero<1>();
  tile_zero<2>();
  tile_zero<3>();
  for (int64_t chunk = 0; chunk < chunks; ++chunk) {
    tile_load<6>(panel + chunk * 2 * kTileElements);
    tile_load<4>(x + chunk * kTileElements);
    tile_multiply<0, 4, 6>();
    tile_load<7>(panel + (chunk * 2 + 1) * kTileElements);
    tile_multiply<1, 4, 7>();
    if constexpr (kSecond) {
      tile_load<5>(x + (chunks + chunk) * kTileElements);
      tile_multiply<2, 5, 6>();
      tile_multiply<3, 5, 7>();
    }
  }
}

// Tiles 0 and 1, or 2 and 3, are 16 rows of 32 results.
template <int kFirst>
void store_tiles(const PackedProblem& problem, int64_t row, int64_t column) {
  const int64_t rows = problem.rows - row < kTileRows ? problem.rows - row : kTileRows;
  const int64_t left = problem.columns - column;
  if (problem.dtype == Dtype::kFloat32 && problem.bias == nullptr && rows == kTileRows &&
      left >= kPanelRows) {
    float* out = static_cast<float*>(problem.out) + row * problem.out_stride + column;
    tile_store<kFirst>(out, problem.out_stride * 4);
    tile_store<kFirst + 1>(out + 16, problem.out_stride * 4);
    return;
  }
  alignas(64) float results[kTileRows][kPanelRows];
  tile_store<kFirst>(&results[0][0], kPanelRows * 4);
  tile_store<kFirst + 1>(&results[0][16], kPanelRows * 4);
  with_type(problem.dtype, [&]<typename T>(T*) {
    for (int64_t i = 0; i < rows; ++i) {
      for (int64_t k = 0; k < kPanelRows && k < left; k += 16) {
        store_results<T>(problem, row + i, column + k, &results[i][k],
                         left - k < 16 ? left - k : 16);
      }
    }
  });
}

}  // namespace

void tile_rows(const float* x, int64_t rows, int64_t depth, uint16_t* tiles, int64_t begin,
               int64_t end) {
  const int64_t chunks = depth / kTileColumns;
  for (int64_t tile_row = begin; tile_row < end; ++tile_row) {
    for (int64_t i = 0; i < kTileRows; ++i) {
      const int64_t row = tile_row * kTileRows + i;
      uint16_t* to = tiles + tile_row * chunks * kTileElements + i * kTileColumns;
      for (int64_t chunk = 0; chunk < chunks; ++chunk, to += kTileElements) {
        const float* from = x + row * depth + chunk * kTileColumns;
        _mm512_storeu_si512(
            to, row < rows ? to_bf16(load(from), load(from + 16)) : _mm512_setzero_si512());
      }
    }
  }
}

void tile_panels(const PackedProblem& problem, int64_t begin, int64_t end) {
  const TileScope tiles;
  const int64_t chunks = problem.depth / kPackedColumns;
  const int64_t tile_row_elements = chunks * kTileElements;
  with_format(*problem.format, [&]<int kIndex>() {
    static constexpr const PackedFormat& kFormat = linear::kPackedFormats[kIndex];
    for (int64_t panel = begin; panel < end; ++panel) {
      unpack_panel<kFormat>(problem, panel);
      int64_t row = 0;
      for (; row + kTileRows < problem.rows; row += 2 * kTileRows) {
        multiply_panel<true>(problem.x_tiles + row / kTileRows * tile_row_elements, problem.panel,
                             chunks);
        store_tiles<0>(problem, row, panel * kPanelRows);
        store_tiles<2>(problem, row + kTileRows, panel * kPanelRows);
      }
      if (row < problem.rows) {
        multiply_panel<false>(problem.x_tiles + row / kTileRows * tile_row_elements, problem.panel,
                              chunks);
        store_tiles<0>(problem, row, panel * kPanelRows);
      }
    }
  });
}

#endif

}  // namespace graft_kernels::GRAFT_ISA
