// Few rows over bfloat16 keys and values, multiplied in tiles (AMX_BF16): keys are a tile's rows as they lie in memory, so
// nothing is widened and nothing summed over lanes. Included by *_simd.cpp alone (see common/simd.h).
#pragma once

#include "kernels/attention/attention_pack_simd.h"
#include "kernels/attention/attention_stream_simd.h"

namespace graft_kernels::GRAFT_ISA {

namespace {

#if defined(__AVX512F__)

// Memory of one task: a tile holds 16 rows of 16 words, a word being a pair of bfloat16 or one float32.
struct TileScratch {
  static constexpr int64_t kTile = 16 * 16;
  alignas(64) uint32_t query[kMaxHeadDim / 2 * 16];  // [word][row]
  alignas(64)
      uint32_t staged[16 * kMaxHeadDim / 2];  // rows that no tile can be loaded from where they lie
  alignas(64) uint32_t weights[kTile];        // [row][pair of keys]
  alignas(64) uint32_t values[4 * kTile];     // [16 columns][pair of keys][column]
  alignas(64) float sums[4 * kTile];          // [16 columns][row or key][column]
};
static_assert(kMaxTaskRows == 16 && kBlockKeys == 32 && kLanes == 16);

// `rows` queries; zeros for the other rows of the tile, in weights too.
inline void load_tile_queries(const Bf16* const* queries, int64_t rows, int64_t head_dim,
                              TileScratch& scratch) {
  const int64_t words = words_of<PairForm>(head_dim);
  std::memset(scratch.staged, 0, static_cast<size_t>(16 * words) * sizeof(uint32_t));
  std::memset(scratch.weights, 0, sizeof scratch.weights);
  for (int64_t row = 0; row < rows; ++row) {
    stage_row<PairForm>(queries[row], head_dim, scratch.staged + row * words);
  }
  pack_across<PairForm>(scratch.staged, words, scratch.query);
}

// The scores of 16 keys for all rows, to[row][key]; those of keys beyond `keys` are zero.
inline void score_tile(const Bf16* key, int64_t stride, int64_t keys, int64_t head_dim,
                       TileScratch& scratch, float* to) {
  const int64_t words = words_of<PairForm>(head_dim);
  const void* from = key;
  int64_t row_bytes = stride * 2;
  if (keys < 16 || head_dim % 32 != 0) {
    std::memset(scratch.staged, 0, static_cast<size_t>(16 * words) * sizeof(uint32_t));
    for (int64_t j = 0; j < keys && j < 16; ++j) {
      stage_row<PairForm>(key + j * stride, head_dim, scratch.staged + j * words);
    }
    from = scratch.staged;
    row_bytes = words * 4;
  }
  tile_zero<0>();
  for (int64_t word = 0; word < words; word += 16) {
    tile_load<4>(static_cast<const char*>(from) + word * 4, row_bytes);
    tile_load<5>(scratch.query + word * 16);
    tile_multiply<0, 4, 5>();
  }
  tile_store<0>(scratch.sums, 64);
  turn_words(scratch.sums, 16, to, kBlockKeys);
}

// Keys and values are asked for so long before their turn.
constexpr int64_t kKeysAhead = 2 * kBlockKeys;

// scores[row][key] = query . key for up to kBlockKeys keys, and for all rows that a tile has. Keys and values of later
// blocks are asked for meanwhile.
inline void score_tiles(const Bf16* key, int64_t stride, const Bf16* value, int64_t value_stride,
                        int64_t keys, int64_t head_dim, TileScratch& scratch, float* scores) {
  for (int64_t first = 0; first < kBlockKeys; first += 16) {
    const int64_t count = keys > first ? keys - first : 0;
    const int64_t later = first + kKeysAhead;
    fetch_rows(value + later * value_stride, value_stride * 2, 16, head_dim * 2);
    fetch_rows(key + later * stride, stride * 2, 16, head_dim * 2);
    score_tile(key + (count > 0 ? first : 0) * stride, stride, count, head_dim, scratch,
               scores + first);
  }
}

// 32 columns of up to 32 keys as two tiles of pairs of keys. Interleaving two rows within quarters of a vector leaves columns
// 0 to 3, 8 to 11, … in the first tile and the others in the second.
inline void pair_values(const Bf16* value, int64_t stride, int64_t keys, uint32_t* tiles) {
  for (int64_t j = 0; j < kBlockKeys; j += 2, tiles += 16) {
    const __m512i none = _mm512_setzero_si512();
    const __m512i first = j < keys ? _mm512_loadu_si512(value + j * stride) : none;
    const __m512i second = j + 1 < keys ? _mm512_loadu_si512(value + (j + 1) * stride) : none;
    _mm512_store_si512(tiles, _mm512_unpacklo_epi16(first, second));
    _mm512_store_si512(tiles + TileScratch::kTile, _mm512_unpackhi_epi16(first, second));
  }
}

// sums[0 .. 32) += two tiles' row, its columns put in order.
inline void add_tile_row(const float* tiles, float* sums) {
  const __m512i first = _mm512_setr_epi32(0, 1, 2, 3, 16, 17, 18, 19, 4, 5, 6, 7, 20, 21, 22, 23);
  const __m512i second =
      _mm512_setr_epi32(8, 9, 10, 11, 24, 25, 26, 27, 12, 13, 14, 15, 28, 29, 30, 31);
  const auto low = (__m512)load(tiles), high = (__m512)load(tiles + TileScratch::kTile);
  store(sums, load(sums) + (Float)_mm512_permutex2var_ps(low, first, high));
  store(sums + kLanes, load(sums + kLanes) + (Float)_mm512_permutex2var_ps(low, second, high));
}

// sums[row] += weights[row] . values for keys that every row sees, weights rounded to bfloat16 as those of torch's own
// product are. For heads of whole vectors of 32 elements.
inline void add_tiles(const float* weights, int64_t rows, const Bf16* value, int64_t stride,
                      int64_t keys, int64_t head_dim, TileScratch& scratch, float* sums,
                      int64_t sums_stride) {
  for (int64_t row = 0; row < rows; ++row) {
    const float* from = weights + row * kBlockKeys;
    _mm512_store_si512(scratch.weights + row * 16, to_bf16(load(from), load(from + kLanes)));
  }
  tile_load<6>(scratch.weights);
  for (int64_t column = 0; column < head_dim; column += 32) {
    pair_values(value + column, stride, keys, scratch.values);
    tile_zero<0>();
    tile_zero<1>();
    tile_load<4>(scratch.values);
    tile_load<5>(scratch.values + TileScratch::kTile);
    tile_multiply<0, 6, 4>();
    tile_multiply<1, 6, 5>();
    tile_store<0>(scratch.sums, 64);
    tile_store<1>(scratch.sums + TileScratch::kTile, 64);
    for (int64_t row = 0; row < rows; ++row) {
      add_tile_row(scratch.sums + row * 16, sums + row * sums_stride + column);
    }
  }
}

#endif

}  // namespace

}  // namespace graft_kernels::GRAFT_ISA
