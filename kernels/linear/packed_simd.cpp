// Dot products with weights kept in GGUF's blocks (packed.h). Compiled once per instruction set: see
// common/simd.h.
//
// Each result is one lane's sum over chunks in the order of the columns: its bits do not depend on
// the number of rows, of threads, or the tile that it falls into. (Only whether x has low parts, and
// so the number of rows, shows: packed.h.)

#include "kernels/linear/packed_lanes.h"

namespace graft_kernels::GRAFT_ISA {

namespace {

// Column `k` of a chunk's codes for the eight rows.
template <bool kFourBits>
static inline Float8 code_column(const uint8_t* codes, int k) {
  Float8 value;
  for (int lane = 0; lane < kPackedRows; ++lane) {
    if constexpr (kFourBits) {
      const uint8_t byte = codes[k % 16 / 4 * 32 + lane * 4 + k % 4];
      value[lane] = static_cast<float>(k < 16 ? byte & 15 : byte >> 4);
    } else {
      value[lane] = static_cast<float>(static_cast<int8_t>(codes[k / 4 * 32 + lane * 4 + k % 4]));
    }
  }
  return value;
}

#if defined(__AVX2__)

template <bool kFourBits>
static inline __m256i code_vector(const uint8_t* codes, int group) {
  const auto* at = reinterpret_cast<const __m256i*>(codes);
  if constexpr (!kFourBits) {
    return _mm256_loadu_si256(at + group);
  } else {
    const __m256i low_bits = _mm256_set1_epi8(15);
    const __m256i both = _mm256_loadu_si256(at + group % 4);
    return _mm256_and_si256(group < 4 ? both : _mm256_srli_epi16(both, 4), low_bits);
  }
}

static inline __m256i four_codes(const int8_t* x) {
  int32_t four;
  std::memcpy(&four, x, sizeof four);
  return _mm256_set1_epi32(four);
}

// sum + products of unsigned and signed bytes, four to a lane.
static inline __m256i dot_bytes(__m256i sum, __m256i unsigned_bytes, __m256i signed_bytes) {
  const __m256i pairs = _mm256_maddubs_epi16(unsigned_bytes, signed_bytes);
  return _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}

// Sums of products over groups [begin, end) of four columns.
template <bool kFourBits>
static inline Int8 dot(const __m256i* codes, const int8_t* x, int begin, int end) {
  __m256i sum = _mm256_setzero_si256();
  if constexpr (kFourBits) {
    // 8 groups * 2 products * 15 * 127 = 30480 fit into 16 bits.
    for (int group = begin; group < end; ++group) {
      sum = _mm256_add_epi16(sum, _mm256_maddubs_epi16(codes[group], four_codes(x + group * 4)));
    }
    return (Int8)_mm256_madd_epi16(sum, _mm256_set1_epi16(1));
  } else {
    for (int group = begin; group < end; ++group) {
      // The sign moves to x, whose codes reach from -127 to 127: 2 * 128 * 127 fit into 16 bits.
      sum = dot_bytes(sum, _mm256_abs_epi8(codes[group]),
                      _mm256_sign_epi8(four_codes(x + group * 4), codes[group]));
    }
    return (Int8)sum;
  }
}

template <bool kFourBits>
struct Codes {
  __m256i vectors[kColumnGroups];
  explicit Codes(const uint8_t* codes) {
    for (int group = 0; group < kColumnGroups; ++group) {
      vectors[group] = code_vector<kFourBits>(codes, group);
    }
  }
  Int8 dot_with(const int8_t* x, int begin, int end) const {
    return dot<kFourBits>(vectors, x, begin, end);
  }
};

#else

template <bool kFourBits>
struct Codes {
  const uint8_t* codes;
  explicit Codes(const uint8_t* from) : codes(from) {}
  Int8 dot_with(const int8_t* x, int begin, int end) const {
    Int8 sum = {};
    for (int k = begin * 4; k < end * 4; ++k) {
      for (int lane = 0; lane < kPackedRows; ++lane) {
        const uint8_t byte = codes[(kFourBits ? k % 16 : k) / 4 * 32 + lane * 4 + k % 4];
        const int code = kFourBits ? (k < 16 ? byte & 15 : byte >> 4) : static_cast<int8_t>(byte);
        sum[lane] += code * x[k];
      }
    }
    return sum;
  }
};

#endif

// Adds one chunk to the sums of kRows rows of x, which begin at `row`.
template <const PackedFormat& kFormat, bool kLow, int kRows>
static inline void add_rounded(const PackedProblem& problem, const uint8_t* chunk, int64_t index,
                               int64_t row, Float8 (&sums)[kRows]) {
  constexpr bool kWide = kFormat.wide_scales;
  constexpr int kParts = kPackedColumns / kFormat.scale_columns;
  constexpr int kPartGroups = kColumnGroups / kParts;
  const Codes<kFormat.four_bits> codes(chunk + kFormat.codes_at());
  const int64_t chunks = problem.depth / kPackedColumns;
  for (int i = 0; i < kRows; ++i) {
    const int64_t at = (row + i) * problem.depth + index * kPackedColumns;
    const Float8 x_scale = splat8(problem.x_scales[(row + i) * chunks + index]);
    const float* x_sums = problem.x_sums + ((row + i) * chunks + index) * 2;
    for (int part = 0; part < kParts; ++part) {
      const Float8 scales = load_scales<kWide>(chunk + part * kPackedRows * (kWide ? 4 : 2));
      const int begin = part * kPartGroups, end = begin + kPartGroups;
      Int8 product = codes.dot_with(problem.x_high + at, begin, end);
      if constexpr (kLow) {
        product = product * 255 + codes.dot_with(problem.x_low + at, begin, end);
      }
      sums[i] = multiply_add8(scales * x_scale, __builtin_convertvector(product, Float8), sums[i]);
      if constexpr (kFormat.offset == Offset::kMinus8Scales) {
        sums[i] = multiply_add8(scales, splat8(-8.0F * (x_sums[0] + x_sums[1])), sums[i]);
      }
    }
    if constexpr (kFormat.offset == Offset::kStored) {
      const Float8 offsets = load_scales<kWide>(chunk + kFormat.scale_bytes());
      sums[i] = multiply_add8(offsets, splat8(x_sums[0] + x_sums[1]), sums[i]);
    }
  }
}

// The same for x as it is; weights have the values that unpacking gives.
template <const PackedFormat& kFormat, int kRows>
static inline void add_exact(const PackedProblem& problem, const uint8_t* chunk, int64_t index,
                             int64_t row, Float8 (&sums)[kRows]) {
  constexpr bool kWide = kFormat.wide_scales;
  const Float8 offsets = kFormat.offset == Offset::kStored
                             ? load_scales<kWide>(chunk + kFormat.scale_bytes())
                             : splat8(0.0F);
  for (int k = 0; k < kPackedColumns; ++k) {
    const int part = k / kFormat.scale_columns;
    const Float8 scales = load_scales<kWide>(chunk + part * kPackedRows * (kWide ? 4 : 2));
    Float8 weight = code_column<kFormat.four_bits>(chunk + kFormat.codes_at(), k);
    if constexpr (kFormat.offset == Offset::kMinus8Scales) {
      weight = weight - splat8(8.0F);
    }
    weight = weight * scales + offsets;
    for (int i = 0; i < kRows; ++i) {
      const float x = problem.x[(row + i) * problem.depth + index * kPackedColumns + k];
      sums[i] = multiply_add8(weight, splat8(x), sums[i]);
    }
  }
}

enum class Input { kAsItIs, kHigh, kHighAndLow };

// kRows rows of x times kCount groups of weight.
template <const PackedFormat& kFormat, Input kInput, int kRows, int kCount>
void tile(const PackedProblem& problem, int64_t row, const int64_t* groups) {
  const int64_t chunks = problem.depth / kPackedColumns;
  Float8 sums[kCount][kRows] = {};
  for (int64_t index = 0; index < chunks; ++index) {
    for (int j = 0; j < kCount; ++j) {
      const uint8_t* chunk = problem.packed + (groups[j] * chunks + index) * kFormat.chunk_bytes();
      prefetch_chunk<kFormat>(chunk);
      if constexpr (kInput == Input::kAsItIs) {
        add_exact<kFormat, kRows>(problem, chunk, index, row, sums[j]);
      } else {
        add_rounded<kFormat, kInput == Input::kHighAndLow, kRows>(problem, chunk, index, row,
                                                                  sums[j]);
      }
    }
  }
  for (int j = 0; j < kCount; ++j) {
    for (int i = 0; i < kRows; ++i) {
      store_sums(problem, row + i, groups[j] * kPackedRows, sums[j][i]);
    }
  }
}

template <const PackedFormat& kFormat, Input kInput>
void all_rows(const PackedProblem& problem, int64_t begin, int64_t end) {
  for_streams(begin, end, [&]<int kCount>(const int64_t* groups) {
    int64_t row = 0;
    for (; row + 4 <= problem.rows; row += 4) {
      for (int j = 0; j < kCount; ++j) {
        tile<kFormat, kInput, 4, 1>(problem, row, groups + j);
      }
    }
    for (; row < problem.rows; ++row) {
      tile<kFormat, kInput, 1, kCount>(problem, row, groups);
    }
  });
}

}  // namespace

void packed_groups(const PackedProblem& problem, int64_t begin, int64_t end) {
  with_format(*problem.format, [&]<int kIndex>() {
    static constexpr const PackedFormat& kFormat = linear::kPackedFormats[kIndex];
    if (problem.x != nullptr) {
      all_rows<kFormat, Input::kAsItIs>(problem, begin, end);
    } else if (problem.x_low != nullptr) {
      all_rows<kFormat, Input::kHighAndLow>(problem, begin, end);
    } else {
      all_rows<kFormat, Input::kHigh>(problem, begin, end);
    }
  });
}

}  // namespace graft_kernels::GRAFT_ISA
