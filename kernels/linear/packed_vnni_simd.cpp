// Products of packed weights with few rows of x through vpdpbusd: 64 bytes of codes, which are eight
// columns of eight rows, are multiplied at once. AVX-512 alone; the file is empty for other sets.
//
// Each result is one lane's sum over chunks in the order of the columns, and has the same bits whatever
// rows stand beside it.

#include "kernels/linear/packed_lanes.h"

namespace graft_kernels::GRAFT_ISA {

#if defined(__AVX512F__)

namespace {

constexpr int kPairs = kColumnGroups / 2;  // of column groups in a chunk

static inline __m512i multiply_add_bytes(__m512i sum, __m512i unsigned_bytes,
                                         __m512i signed_bytes) {
  __asm__("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(unsigned_bytes), "v"(signed_bytes));
  return sum;
}

// Codes of two column groups as unsigned bytes.
template <const PackedFormat& kFormat>
static inline __m512i code_pair(const uint8_t* codes, int pair) {
  if constexpr (kFormat.four_bits) {
    const __m512i both = _mm512_loadu_si512(codes + pair % 2 * 64);
    return _mm512_and_si512(pair < 2 ? both : _mm512_srli_epi16(both, 4), _mm512_set1_epi8(15));
  } else {
    const __m512i stored = _mm512_loadu_si512(codes + pair * 64);
    return zero_point(kFormat) == 0 ? stored : _mm512_xor_si512(stored, _mm512_set1_epi8(-128));
  }
}

struct Sums {
  __m512 products;  // of even column groups, then of odd ones
  __m256 offsets;
};

// Adds a chunk to the sums of one row of x.
template <const PackedFormat& kFormat>
static inline void add_chunk(const PackedProblem& problem, const uint8_t* chunk,
                             const __m512i* codes, int64_t row, int64_t index, Sums& sums) {
  constexpr bool kWide = kFormat.wide_scales;
  constexpr int kParts = kPackedColumns / kFormat.scale_columns, kPartPairs = kPairs / kParts;
  const int64_t place = row * (problem.depth / kPackedColumns) + index;
  const int8_t* x = problem.x_spread + place * (kPairs * 128);
  const int32_t* counts = problem.x_counts + place * 2;
  const __m512 x_scale = _mm512_set1_ps(problem.x_scales[place]);
  for (int part = 0; part < kParts; ++part) {
    __m512i high = _mm512_setzero_si512(), low = _mm512_setzero_si512();
    if constexpr (zero_point(kFormat) != 0) {
      // What unsigned codes are too large by, once for each of the eight rows.
      const int count = kParts == 1 ? counts[0] + counts[1] : counts[part];
      low = _mm512_maskz_set1_epi32(0x00ff, -zero_point(kFormat) * count);
    }
    for (int pair = part * kPartPairs; pair < (part + 1) * kPartPairs; ++pair) {
      high = multiply_add_bytes(high, codes[pair], _mm512_loadu_si512(x + pair * 128));
      low = multiply_add_bytes(low, codes[pair], _mm512_loadu_si512(x + pair * 128 + 64));
    }
    const __m512i whole = _mm512_add_epi32(_mm512_sub_epi32(_mm512_slli_epi32(high, 8), high), low);
    const __m512 scales = _mm512_broadcast_f32x8(
        (__m256)load_scales<kWide>(chunk + part * kPackedRows * (kWide ? 4 : 2)));
    sums.products =
        _mm512_fmadd_ps(_mm512_mul_ps(scales, x_scale), _mm512_cvtepi32_ps(whole), sums.products);
  }
  if constexpr (kFormat.offset == Offset::kStored) {
    const float* x_sums = problem.x_sums + place * 2;
    sums.offsets = _mm256_fmadd_ps((__m256)load_scales<kWide>(chunk + kFormat.scale_bytes()),
                                   _mm256_set1_ps(x_sums[0] + x_sums[1]), sums.offsets);
  }
}

// kRows rows of x times kCount groups of weight.
template <const PackedFormat& kFormat, int kRows, int kCount>
void vnni_tile(const PackedProblem& problem, int64_t row, const int64_t* groups) {
  const int64_t chunks = problem.depth / kPackedColumns;
  Sums sums[kCount][kRows];
  for (auto& group : sums) {
    for (Sums& each : group) {
      each = {_mm512_setzero_ps(), _mm256_setzero_ps()};
    }
  }
  for (int64_t index = 0; index < chunks; ++index) {
    for (int j = 0; j < kCount; ++j) {
      const uint8_t* chunk = problem.packed + (groups[j] * chunks + index) * kFormat.chunk_bytes();
      prefetch_chunk<kFormat>(chunk);
      __m512i codes[kPairs];
      for (int pair = 0; pair < kPairs; ++pair) {
        codes[pair] = code_pair<kFormat>(chunk + kFormat.codes_at(), pair);
      }
      for (int i = 0; i < kRows; ++i) {
        add_chunk<kFormat>(problem, chunk, codes, row + i, index, sums[j][i]);
      }
    }
  }
  for (int j = 0; j < kCount; ++j) {
    for (int i = 0; i < kRows; ++i) {
      Float8 halves[2];
      std::memcpy(halves, &sums[j][i].products, sizeof halves);
      store_sums(problem, row + i, groups[j] * kPackedRows,
                 halves[0] + halves[1] + (Float8)sums[j][i].offsets);
    }
  }
}

}  // namespace

void vnni_groups(const PackedProblem& problem, int64_t begin, int64_t end) {
  with_format(*problem.format, [&]<int kIndex>() {
    static constexpr const PackedFormat& kFormat = linear::kPackedFormats[kIndex];
    for_streams(begin, end, [&]<int kCount>(const int64_t* groups) {
      int64_t row = 0;
      for (; row + 4 <= problem.rows; row += 4) {
        for (int j = 0; j < kCount; ++j) {
          vnni_tile<kFormat, 4, 1>(problem, row, groups + j);
        }
      }
      for (; row < problem.rows; ++row) {
        vnni_tile<kFormat, 1, kCount>(problem, row, groups);
      }
    });
  });
}

#endif

}  // namespace graft_kernels::GRAFT_ISA
