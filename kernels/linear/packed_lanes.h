// Vectors of eight lanes, one for each row of a group of packed weight, and what the products of
// packed_*_simd.cpp share. Included by those files alone (see common/simd.h).
#pragma once

#include "kernels/common/simd.h"
#include "kernels/linear/packed.h"

namespace graft_kernels::GRAFT_ISA {

using linear::kPackedColumns;
using linear::kPackedRows;
using linear::Offset;
using linear::PackedFormat;
using linear::PackedProblem;

using Float8 = float __attribute__((vector_size(32)));
using Int8 = int32_t __attribute__((vector_size(32)));

static inline constexpr int kColumnGroups = kPackedColumns / 4;  // of four columns, in a chunk

// What a stored code is above the number that it stands for, where codes are read as unsigned bytes.
constexpr int zero_point(const PackedFormat& format) {
  return format.offset == Offset::kMinus8Scales ? 8 : format.offset == Offset::kNone ? 128 : 0;
}

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

// `count` results, at most 16, and their bias.
template <typename T>
static inline void store_results(const PackedProblem& problem, int64_t row, int64_t column,
                                 const float* results, int64_t count) {
  auto* out = static_cast<T*>(problem.out) + row * problem.out_stride + column;
  const auto* bias = static_cast<const T*>(problem.bias);
  for (int64_t k = 0; k < count; k += kLanes) {
    const int64_t part = count - k < kLanes ? count - k : kLanes;
    if (part == kLanes) {
      const Float added = bias == nullptr ? Float{} : load<T>(bias + column + k);
      store(out + k, bias == nullptr ? load<float>(results + k) : load<float>(results + k) + added);
      continue;
    }
    Float value = load_partial<float>(results + k, part);
    if (bias != nullptr) {
      value += load_partial<T>(bias + column + k, part);
    }
    store_partial(out + k, value, part);
  }
}

// Eight results of a row of x, with the bias.
static inline void store_sums(const PackedProblem& problem, int64_t row, int64_t column,
                              Float8 sums) {
  if (problem.dtype == Dtype::kFloat32 && problem.bias == nullptr &&
      column + kPackedRows <= problem.columns) {
    float* out = static_cast<float*>(problem.out) + row * problem.out_stride + column;
    std::memcpy(out, &sums, sizeof sums);
    return;
  }
  const int64_t left = problem.columns - column;
  float results[kPackedRows];
  std::memcpy(results, &sums, sizeof results);
  with_type(problem.dtype, [&]<typename T>(T*) {
    store_results<T>(problem, row, column, results, left < kPackedRows ? left : kPackedRows);
  });
}

// The code of the weight's block format as a constant: calls run with it as template argument.
template <int kIndex = 0, typename Run>
static inline void with_format(const PackedFormat& format, const Run& run) {
  constexpr int kCount = sizeof(linear::kPackedFormats) / sizeof(PackedFormat);
  if constexpr (kIndex < kCount) {
    if (format.type == linear::kPackedFormats[kIndex].type) {
      return run.template operator()<kIndex>();
    }
    with_format<kIndex + 1>(format, run);
  }
}

// Asks for the chunk that comes so many bytes later.
inline constexpr int64_t kPackedAheadBytes = 1024;

template <const PackedFormat& kFormat>
static inline void prefetch_chunk(const uint8_t* chunk) {
  for (int line = 0; line < kFormat.chunk_bytes(); line += 64) {
    _mm_prefetch(reinterpret_cast<const char*>(chunk) + kPackedAheadBytes + line, _MM_HINT_T0);
  }
}

// Groups [begin, end) as kStreams streams far from each other: the processor fetches ahead within a
// page of 4 KiB only, and so in several pages at once. Calls run(number constant, groups).
inline constexpr int kPackedStreams = 4;

template <typename Run>
static inline void for_streams(int64_t begin, int64_t end, const Run& run) {
  const int64_t distance = (end - begin) / kPackedStreams;
  for (int64_t group = begin; group < begin + distance; ++group) {
    int64_t groups[kPackedStreams];
    for (int i = 0; i < kPackedStreams; ++i) {
      groups[i] = group + i * distance;
    }
    run.template operator()<kPackedStreams>(groups);
  }
  for (int64_t group = begin + kPackedStreams * distance; group < end; ++group) {
    run.template operator()<1>(&group);
  }
}

}  // namespace graft_kernels::GRAFT_ISA
