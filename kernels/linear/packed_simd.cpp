// Dot products with weights kept in GGUF's blocks (packed.h). Compiled once per instruction set: see
// common/simd.h.
//
// Each result is one lane's sum over chunks in the order of the columns: its bits do not depend on
// the number of rows, of threads, or the tile that it falls into.

#include "kernels/common/simd.h"
#include "kernels/linear/packed.h"

namespace graft_kernels::GRAFT_ISA {

namespace {

using linear::kPackedColumns;
using linear::kPackedRows;
using linear::Offset;
using linear::PackedFormat;
using linear::PackedProblem;

// One lane for each of the eight rows of weight.
using Float8 = float __attribute__((vector_size(32)));
using Int8 = int32_t __attribute__((vector_size(32)));

constexpr int kGroups = kPackedColumns / 4;  // groups of four columns in a chunk

static inline Float8 splat8(float value) {
  return Float8{value, value, value, value, value, value, value, value};
}

static inline Float8 multiply_add8(Float8 a, Float8 b, Float8 c) {
#if defined(__FMA__)
  return (Float8)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#else
  return a * b + c;
#endif
}

// Eight scales, float32 or float16.
template <bool kWide>
static inline Float8 load_scales(const uint8_t* from) {
  Float8 value;
  if constexpr (kWide) {
    std::memcpy(&value, from, sizeof value);
  } else {
#if defined(__F16C__)
    value = (Float8)_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
#else
    uint16_t halves[8];
    std::memcpy(halves, from, sizeof halves);
    for (int lane = 0; lane < 8; ++lane) {
      value[lane] = half_to_float(halves[lane]);
    }
#endif
  }
  return value;
}

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
template <bool kVnni>
static inline __m256i dot_bytes(__m256i sum, __m256i unsigned_bytes, __m256i signed_bytes) {
#if defined(__AVX512VL__)
  if constexpr (kVnni) {
    __asm__("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(unsigned_bytes), "v"(signed_bytes));
    return sum;
  }
#endif
  const __m256i pairs = _mm256_maddubs_epi16(unsigned_bytes, signed_bytes);
  return _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}

// Sums of products over groups [begin, end) of four columns.
template <bool kFourBits, bool kVnni>
static inline Int8 dot(const __m256i* codes, const int8_t* x, int begin, int end) {
  __m256i sum = _mm256_setzero_si256();
  if constexpr (kFourBits && !kVnni) {
    // 8 groups * 2 products * 15 * 127 = 30480 fit into 16 bits.
    for (int group = begin; group < end; ++group) {
      sum = _mm256_add_epi16(sum, _mm256_maddubs_epi16(codes[group], four_codes(x + group * 4)));
    }
    return (Int8)_mm256_madd_epi16(sum, _mm256_set1_epi16(1));
  } else {
    for (int group = begin; group < end; ++group) {
      const __m256i factor = four_codes(x + group * 4);
      if constexpr (kFourBits) {
        sum = dot_bytes<kVnni>(sum, codes[group], factor);
      } else {
        // The sign moves to x, whose codes reach from -127 to 127: 2 * 128 * 127 fit into 16 bits.
        sum = dot_bytes<kVnni>(sum, _mm256_abs_epi8(codes[group]),
                               _mm256_sign_epi8(factor, codes[group]));
      }
    }
    return (Int8)sum;
  }
}

template <bool kFourBits>
struct Codes {
  __m256i vectors[kGroups];
  explicit Codes(const uint8_t* codes) {
    for (int group = 0; group < kGroups; ++group) {
      vectors[group] = code_vector<kFourBits>(codes, group);
    }
  }
  template <bool kVnni>
  Int8 dot_with(const int8_t* x, int begin, int end) const {
    return dot<kFourBits, kVnni>(vectors, x, begin, end);
  }
};

#else

template <bool kFourBits>
struct Codes {
  const uint8_t* codes;
  explicit Codes(const uint8_t* from) : codes(from) {}
  template <bool kVnni>
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
template <const PackedFormat& kFormat, bool kVnni, int kRows>
static inline void add_rounded(const PackedProblem& problem, const uint8_t* chunk, int64_t index,
                               int64_t row, Float8 (&sums)[kRows]) {
  constexpr bool kWide = kFormat.wide_scales;
  constexpr int kParts = kPackedColumns / kFormat.scale_columns;
  constexpr int kPartGroups = kGroups / kParts;
  const Codes<kFormat.four_bits> codes(chunk + kFormat.codes_at());
  const int64_t chunks = problem.depth / kPackedColumns;
  for (int i = 0; i < kRows; ++i) {
    const int8_t* x = problem.x_codes + (row + i) * problem.depth + index * kPackedColumns;
    const Float8 x_scale = splat8(problem.x_scales[(row + i) * chunks + index]);
    const float* x_sums = problem.x_sums + ((row + i) * chunks + index) * 2;
    for (int part = 0; part < kParts; ++part) {
      const Float8 scales = load_scales<kWide>(chunk + part * kPackedRows * (kWide ? 4 : 2));
      const Int8 product =
          codes.template dot_with<kVnni>(x, part * kPartGroups, (part + 1) * kPartGroups);
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

template <typename T>
void store_row(const PackedProblem& problem, int64_t row, int64_t column, Float8 sums) {
  auto* out = static_cast<T*>(problem.out) + row * problem.out_stride + column;
  const auto* bias = static_cast<const T*>(problem.bias);
  const int64_t left = problem.columns - column;
  for (int lane = 0; lane < kPackedRows && lane < left; ++lane) {
    const float added = bias == nullptr ? 0.0F : load_partial<T>(bias + column + lane, 1)[0];
    store_partial(out + lane, splat(bias == nullptr ? sums[lane] : sums[lane] + added), 1);
  }
}

void store_sums(const PackedProblem& problem, int64_t row, int64_t column, Float8 sums) {
  switch (problem.dtype) {
    case Dtype::kFloat32:
      if (problem.bias == nullptr && column + kPackedRows <= problem.columns) {
        float* out = static_cast<float*>(problem.out) + row * problem.out_stride + column;
        std::memcpy(out, &sums, sizeof sums);
        return;
      }
      return store_row<float>(problem, row, column, sums);
    case Dtype::kBfloat16:
      return store_row<Bf16>(problem, row, column, sums);
    case Dtype::kFloat16:
      return store_row<Fp16>(problem, row, column, sums);
  }
}

template <const PackedFormat& kFormat, bool kVnni, int kRows>
void tile(const PackedProblem& problem, int64_t row, int64_t group) {
  const int64_t chunks = problem.depth / kPackedColumns;
  const uint8_t* chunk = problem.packed + group * chunks * kFormat.chunk_bytes();
  Float8 sums[kRows] = {};
  for (int64_t index = 0; index < chunks; ++index, chunk += kFormat.chunk_bytes()) {
    if (problem.x_codes != nullptr) {
      add_rounded<kFormat, kVnni, kRows>(problem, chunk, index, row, sums);
    } else {
      add_exact<kFormat, kRows>(problem, chunk, index, row, sums);
    }
  }
  for (int i = 0; i < kRows; ++i) {
    store_sums(problem, row + i, group * kPackedRows, sums[i]);
  }
}

template <const PackedFormat& kFormat, bool kVnni>
void groups(const PackedProblem& problem, int64_t begin, int64_t end) {
  for (int64_t group = begin; group < end; ++group) {
    int64_t row = 0;
    for (; row + 4 <= problem.rows; row += 4) {
      tile<kFormat, kVnni, 4>(problem, row, group);
    }
    for (; row < problem.rows; ++row) {
      tile<kFormat, kVnni, 1>(problem, row, group);
    }
  }
}

template <int kIndex = 0>
void choose_format(const PackedProblem& problem, int64_t begin, int64_t end) {
  constexpr int kCount = sizeof(linear::kPackedFormats) / sizeof(PackedFormat);
  if constexpr (kIndex < kCount) {
    static constexpr const PackedFormat& kFormat = linear::kPackedFormats[kIndex];
    if (problem.format->type != kFormat.type) {
      return choose_format<kIndex + 1>(problem, begin, end);
    }
#if defined(__AVX512VL__)
    if (problem.use_vnni) {
      return groups<kFormat, true>(problem, begin, end);
    }
#endif
    groups<kFormat, false>(problem, begin, end);
  }
}

}  // namespace

void packed_groups(const PackedProblem& problem, int64_t begin, int64_t end) {
  choose_format(problem, begin, end);
}

void round_to_bytes(const float* x, int64_t count, int8_t* codes, float* scales, float* sums) {
  for (; count > 0; count -= kPackedColumns) {
    Float largest = {}, probe = {};
    for (int k = 0; k < kPackedColumns; k += kLanes) {
      const Float value = load<float>(x + k), magnitude = absolute(value);
      largest = select((Int)(magnitude > largest), magnitude, largest);
      probe += value * splat(0.0F);  // NaN where a value is not finite
    }
    float amax = 0;
    for (int lane = 0; lane < kLanes; ++lane) {
      amax = largest[lane] > amax ? largest[lane] : amax;
    }
    const float check = sum_lanes(probe), scale = amax / 127.0F;
    const bool usable = check == 0.0F && scale > 0.0F;
    for (int half = 0; half < 2; ++half) {
      int sum = 0;
      for (int k = half * 16; k < half * 16 + 16; ++k) {
        // Denormal blocks lose digits in their scale; the code stays in range all the same.
        int code = usable ? _mm_cvtss_si32(_mm_set_ss(x[k] / scale)) : 0;
        code = code > 127 ? 127 : code < -127 ? -127 : code;
        codes[k] = static_cast<int8_t>(code);
        sum += code;
      }
      sums[half] = check == 0.0F ? scale * static_cast<float>(sum) : check;
    }
    *scales = check == 0.0F ? scale : check;
    x += kPackedColumns;
    codes += kPackedColumns;
    scales += 1;
    sums += 2;
  }
}

}  // namespace graft_kernels::GRAFT_ISA
