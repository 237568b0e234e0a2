// Few rows over bfloat16 keys and values, multiplied in tiles (AMX_BF16): keys and values are a tile's rows as they lie in
// memory, so nothing is widened, turned or summed over lanes on the way. Included by *_simd.cpp alone (see common/simd.h).
#pragma once

#include "kernels/attention/attention_passes_simd.h"
#include "kernels/attention/attention_stream_simd.h"

namespace graft_kernels::GRAFT_ISA {

namespace {

#if defined(__AVX512F__)

constexpr int64_t kTileKeys = 64;  // of a block
constexpr int64_t kTileSteps = kTileKeys / 16;

// Memory of the tasks of one thread: a tile holds 16 rows of 16 words, a word being a pair of bfloat16 or one float32.
struct TileScratch {
  static constexpr int64_t kTile = 16 * 16;
  int64_t rows = 0;                                  // that the weights are laid out for
  alignas(64) uint32_t query[kMaxHeadDim / 2 * 16];  // [word][row]
  // Rows that no tile can be loaded from where they lie.
  alignas(64) uint32_t staged[16 * kMaxHeadDim / 2];
  alignas(64) float products[kMaxHeadDim / 16 * kTile];  // as they come out of the tiles
  alignas(64) float scores[kMaxTaskRows * kTileKeys];    // [row][key]
  // Weights as [step][row][key], see multiply_columns.
  alignas(64) uint32_t even[kTileSteps * kTile];
  alignas(64) uint32_t odd[kTileSteps * kTile];
  alignas(64) float sums[kMaxTaskRows * kMaxHeadDim];  // [row][32 columns][even, odd]
  alignas(64) float totals[kMaxTaskRows * kLanes];     // sums of weights, lane by lane
  float references[kMaxTaskRows];
  alignas(64) float block[kBlockKeys * kMaxHeadDim];  // values that are not finite, and
  alignas(64) float careful[kMaxHeadDim];             // one row's sums of them

  // Up to so many rows have both kinds of weights in one tile.
  static constexpr int64_t kSharedRows = 8;
  bool shares() const { return rows <= kSharedRows; }
};
static_assert(kMaxTaskRows == 16 && kLanes == 16);

// `rows` queries; zeros for the other rows of the tile, in weights too.
inline void load_tile_queries(const Bf16* const* queries, int64_t rows, int64_t head_dim,
                              TileScratch& s) {
  const int64_t words = words_of<PairForm>(head_dim);
  std::memset(s.staged, 0, static_cast<size_t>(16 * words) * sizeof(uint32_t));
  for (int64_t row = 0; row < rows; ++row) {
    stage_row<PairForm>(queries[row], head_dim, s.staged + row * words);
    std::memset(s.sums + row * kMaxHeadDim, 0, static_cast<size_t>(2 * words) * sizeof(float));
    s.references[row] = kMinusInfinity;
  }
  pack_across<PairForm>(s.staged, words, s.query);
  std::memset(s.totals, 0, static_cast<size_t>(rows * kLanes) * sizeof(float));
  if (s.rows != rows) {
    s.rows = rows;
    std::memset(s.even, 0, sizeof s.even);
    std::memset(s.odd, 0, sizeof s.odd);
  }
}

// 16 rows for a tile: as they lie, or copied where fewer than 16 or half a vector would be read beyond their end.
struct TileRows {
  const char* from;
  int64_t row_bytes;

  TileRows(const Bf16* rows, int64_t stride, int64_t count, int64_t head_dim, TileScratch& s)
      : from(reinterpret_cast<const char*>(rows)), row_bytes(stride * 2) {
    if (count >= 16 && head_dim % 32 == 0) {
      return;
    }
    const int64_t words = words_of<PairForm>(head_dim);
    std::memset(s.staged, 0, static_cast<size_t>(16 * words) * sizeof(uint32_t));
    for (int64_t j = 0; j < count && j < 16; ++j) {
      stage_row<PairForm>(rows + j * stride, head_dim, s.staged + j * words);
    }
    from = reinterpret_cast<const char*>(s.staged);
    row_bytes = words * 4;
  }
};

// Four of the rows of 16 keys: to[row][key] = from[key][row].
inline void turn_four_rows(const float* from, float* to) {
  __m512 some[4];  // key 4 lane + i, four rows in each quarter
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    const float* key = from + i * 16;
    some[i] = _mm512_castps128_ps512(_mm_load_ps(key));
    some[i] = _mm512_mask_broadcast_f32x4(some[i], 0x00f0, _mm_load_ps(key + 4 * 16));
    some[i] = _mm512_mask_broadcast_f32x4(some[i], 0x0f00, _mm_load_ps(key + 8 * 16));
    some[i] = _mm512_mask_broadcast_f32x4(some[i], 0xf000, _mm_load_ps(key + 12 * 16));
  }
  const __m512 a = _mm512_unpacklo_ps(some[0], some[1]), b = _mm512_unpacklo_ps(some[2], some[3]);
  const __m512 c = _mm512_unpackhi_ps(some[0], some[1]), d = _mm512_unpackhi_ps(some[2], some[3]);
  _mm512_store_ps(to, _mm512_shuffle_ps(a, b, 0x44));
  _mm512_store_ps(to + kTileKeys, _mm512_shuffle_ps(a, b, 0xee));
  _mm512_store_ps(to + 2 * kTileKeys, _mm512_shuffle_ps(c, d, 0x44));
  _mm512_store_ps(to + 3 * kTileKeys, _mm512_shuffle_ps(c, d, 0xee));
}

// scores[row][key] = query . key for up to kTileKeys keys; zero for keys beyond `keys`.
inline void score_tiles(const Bf16* key, int64_t stride, int64_t keys, int64_t head_dim,
                        TileScratch& s) {
  const int64_t words = words_of<PairForm>(head_dim);
  for (int64_t first = 0; first < kTileKeys; first += 16) {
    const int64_t count = keys > first ? keys - first : 0;
    key += first > 0 && count > 0 ? 16 * stride : 0;
    const TileRows rows(key, stride, count, head_dim, s);
    fetch_ahead(key, stride, 16, head_dim);
    tile_zero<0>();
    for (int64_t word = 0; word < words; word += 16) {
      tile_load<4>(rows.from + word * 4, rows.row_bytes);
      tile_load<5>(s.query + word * 16);
      tile_multiply<0, 4, 5>();
    }
    tile_store<0>(s.products + first * 16, 64);
  }
  for (int64_t first = 0; first < kTileKeys; first += 16) {
    const float* products = s.products + first * 16;
    if (!s.shares()) {
      turn_words(products, 16, s.scores + first, kTileKeys);
      continue;
    }
    turn_four_rows(products, s.scores + first);
    if (s.rows > 4) {
      turn_four_rows(products + 4, s.scores + 4 * kTileKeys + first);
    }
  }
}

// products[column / 16][row][16] = weights . values over the block's keys, for columns [column, column + 64) or what there
// is of them. A word of a row of values is two columns of one key, so a weight beside a zero picks one of them: `even`
// holds the weights in the lower halves of the words, `odd` in the upper ones. Where rows are few enough, the upper half
// of `even` is the lower one of `odd`, and a product's lower half those of the odd columns.
template <bool kSecond, bool kShares>
inline void multiply_columns(const Bf16* value, int64_t stride, int64_t keys, int64_t head_dim,
                             int64_t column, TileScratch& s) {
  tile_zero<0>();
  tile_zero<1>();
  tile_zero<2>();
  tile_zero<3>();
  for (int64_t step = 0; step < kTileSteps && step * 16 < keys; ++step) {
    const Bf16* some = value + step * 16 * stride;
    const TileRows rows(some, stride, keys - step * 16, head_dim, s);
    const char* from = rows.from + column * 2;
    if (column == 0) {
      fetch_ahead(some, stride, 16, head_dim);
    }
    tile_load<4>(s.even + step * TileScratch::kTile);
    tile_load<6>(from, rows.row_bytes);
    tile_multiply<0, 4, 6>();
    if constexpr (!kShares) {
      tile_load<5>(s.odd + step * TileScratch::kTile);
      tile_multiply<1, 5, 6>();
    }
    if constexpr (kSecond) {
      tile_load<7>(from + 64, rows.row_bytes);
      tile_multiply<2, 4, 7>();
      if constexpr (!kShares) {
        tile_multiply<3, 5, 7>();
      }
    }
  }
  float* to = s.products + column * 16;
  tile_store<0>(to, 64);
  if constexpr (!kShares) {
    tile_store<1>(to + TileScratch::kTile, 64);
  }
  if constexpr (kSecond) {
    tile_store<2>(to + 2 * TileScratch::kTile, 64);
    if constexpr (!kShares) {
      tile_store<3>(to + 3 * TileScratch::kTile, 64);
    }
  }
}

// One row of weights . values, values one at a time: what a row does not see is not multiplied, and a number that is not
// finite stays in its column.
inline void add_row_carefully(const Bf16* value, int64_t stride, int64_t keys, int64_t head_dim,
                              int64_t row, TileScratch& s) {
  std::memset(s.careful, 0, sizeof s.careful);
  float* weights = s.scores + row * kTileKeys;
  for (int64_t j = 0; j < kTileKeys; j += kLanes) {
    Uint bits;
    std::memcpy(&bits, s.even + j * 16 + row * 16, sizeof bits);
    const Float score = load(weights + j);
    store(weights + j,
          select(score == splat(kMinusInfinity), splat(kMaskedWeight), (Float)(bits << 16)));
  }
  for (int64_t first = 0; first < keys; first += kBlockKeys) {
    const int64_t count = keys - first < kBlockKeys ? keys - first : kBlockKeys;
    widen_rows(value + first * stride, stride, count, head_dim, s.block);
    add_values(weights + first, s.block, count, head_dim, s.careful);
  }
  float* sums = s.sums + row * kMaxHeadDim;
  for (int64_t i = 0; i < head_dim; ++i) {
    sums[i / 32 * 32 + i % 2 * 16 + i % 32 / 2] += s.careful[i];
  }
}

// sums += weights . values, weights rounded to bfloat16 as those of torch's own product are.
template <bool kShares>
inline void add_tiles(const Bf16* value, int64_t stride, int64_t keys, int64_t head_dim,
                      TileScratch& s) {
  const int64_t width = words_of<PairForm>(head_dim) * 2;
  for (int64_t column = 0; column < width; column += 64) {
    column + 32 < width
        ? multiply_columns<true, kShares>(value, stride, keys, head_dim, column, s)
        : multiply_columns<false, kShares>(value, stride, keys, head_dim, column, s);
  }
  // From the even columns of a tile to the odd ones.
  constexpr int64_t kOdd = kShares ? TileScratch::kSharedRows * 16 : TileScratch::kTile;
  for (int64_t row = 0; row < s.rows; ++row) {
    const float* products = s.products + row * 16;
    float* sums = s.sums + row * kMaxHeadDim;
    Float bad = {};
    for (int64_t i = 0; i < width; i += 32) {
      const Float even = load(products + i * 16), odd = load(products + i * 16 + kOdd);
      bad = bad + (even - even) + (odd - odd);
    }
    if (!is_none(bad != Float{})) {
      add_row_carefully(value, stride, keys, head_dim, row, s);
      continue;
    }
    for (int64_t i = 0; i < width; i += 32) {
      store(sums + i, load(sums + i) + load(products + i * 16));
      store(sums + i + 16, load(sums + i + 16) + load(products + i * 16 + kOdd));
    }
  }
}

// One row's scores, in units of `factor`, become weights.
inline void weigh_tile_row(int64_t row, float factor, int64_t width, TileScratch& s) {
  using Exp = QuickExponential;
  const float* scores = s.scores + row * kTileKeys;
  Float most = load(scores);
  for (int64_t j = kLanes; j < kTileKeys; j += kLanes) {
    most = larger(load(scores + j), most);
  }
  const float before = s.references[row];
  const float largest = largest_lane(larger(most, splat(kMinusInfinity))) * factor;
  const float reference = largest > before + kSlack || before == kMinusInfinity ? largest : before;
  const float offset = reference == kMinusInfinity ? 0.0F : -reference;
  uint32_t* odd = s.shares() ? s.even + TileScratch::kSharedRows * 16 : s.odd;
  Float total = {};
  for (int64_t step = 0; step < kTileSteps; ++step) {
    const Float score = load(scores + step * 16);
    const Float weight = Exp::of(multiply_add(score, splat(factor), splat(offset)));
    total = total + weight;
    const __m512i even = _mm512_cvtepu16_epi32(_mm512_castsi512_si256(to_bf16(weight, weight)));
    const int64_t at = step * TileScratch::kTile + row * 16;
    _mm512_store_si512(s.even + at, even);
    _mm512_store_si512(odd + at, _mm512_slli_epi32(even, 16));
  }
  float* totals = s.totals + row * kLanes;
  if (reference != before) {
    const float old = Exp::of(splat(before + offset))[0];
    scale_row(totals, old, kLanes);
    scale_row(s.sums + row * kMaxHeadDim, old, width);
    s.references[row] = reference;
  }
  store(totals, load(totals) + total);
}

// Columns in order again.
inline void store_tile_sums(const float* sums, int64_t head_dim, float* to) {
  const __m512i low = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
  const __m512i high =
      _mm512_setr_epi32(8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
  for (int64_t i = 0; i < head_dim; i += 32) {
    const auto even = (__m512)load(sums + i), odd = (__m512)load(sums + i + 16);
    const int64_t left = head_dim - i;
    const auto put = [&](int64_t at, __m512i order) {
      const auto value = (Float)_mm512_permutex2var_ps(even, order, odd);
      if (left >= at + kLanes) {
        store(to + i + at, value);
      } else if (left > at) {
        store_partial(to + i + at, value, left - at);
      }
    };
    put(0, low);
    put(kLanes, high);
  }
}

#endif

}  // namespace

}  // namespace graft_kernels::GRAFT_ISA
