// x as whole numbers (packed.h). Compiled once per instruction set: see common/simd.h.

#include "kernels/common/simd.h"
#include "kernels/linear/packed.h"

namespace graft_kernels::GRAFT_ISA {

namespace {

using linear::kPackedColumns;
using linear::RoundedX;

using Bytes = int8_t __attribute__((vector_size(kLanes)));

static inline Int to_nearest(Float value) {
#if defined(__AVX512F__)
  return (Int)_mm512_cvtps_epi32((__m512)value);
#elif defined(__AVX2__)
  return (Int)_mm256_cvtps_epi32((__m256)value);
#else
  return (Int)_mm_cvtps_epi32((__m128)value);
#endif
}

static inline void store_bytes(int8_t* to, Int value) {
#if defined(__AVX512F__)
  const __m128i bytes = _mm512_cvtepi32_epi8((__m512i)value);
  std::memcpy(to, &bytes, sizeof bytes);
#else
  const Bytes bytes = __builtin_convertvector(value, Bytes);
  std::memcpy(to, &bytes, sizeof bytes);
#endif
}

static inline float largest_lane(Float value) {
  for (int width = kLanes / 2; width > 0; width /= 2) {
    for (int lane = 0; lane < width; ++lane) {
      value[lane] = value[lane + width] > value[lane] ? value[lane + width] : value[lane];
    }
  }
  return value[0];
}

static inline int sum_of(Int value) {
  int sum = 0;
  for (int lane = 0; lane < kLanes; ++lane) {
    sum += value[lane];
  }
  return sum;
}

// The numbers of 16 elements; returns their sum.
static inline int round_half(const float* x, Float inverse, int limit, int8_t* high, int8_t* low) {
  Int sum = {};
  for (int k = 0; k < 16; k += kLanes) {
    // Of denormal blocks the scale has few digits: the number stays in range all the same.
    Int number = to_nearest(load<float>(x + k) * inverse);
    number = number > limit ? Int{} + limit : number;
    number = number < -limit ? Int{} - limit : number;
    sum += number;
    if (low == nullptr) {
      store_bytes(high + k, number);
      continue;
    }
    const Int upper = to_nearest(__builtin_convertvector(number, Float) * splat(1.0F / 255.0F));
    store_bytes(high + k, upper);
    store_bytes(low + k, number - upper * 255);
  }
  return sum_of(sum);
}

}  // namespace

void round_rows(const float* x, int64_t count, const RoundedX& to) {
  const int limit = to.low == nullptr ? 127 : 32512;
  for (int64_t at = 0; at < count; at += kPackedColumns) {
    Float largest = {}, probe = {};
    for (int k = 0; k < kPackedColumns; k += kLanes) {
      const Float value = load<float>(x + at + k), magnitude = absolute(value);
      largest = select((Int)(magnitude > largest), magnitude, largest);
      probe += value * splat(0.0F);  // NaN where a value is not finite
    }
    const float check = sum_lanes(probe);
    const float scale = largest_lane(largest) / static_cast<float>(limit);
    const float inverse = scale > 0.0F ? 1.0F / scale : 0.0F;
    // The inverse of a denormal scale may overflow.
    const bool usable = check == 0.0F && inverse <= 3.0e38F;
    for (int half = 0; half < 2; ++half) {
      const int64_t place = at + half * 16;
      const int sum = round_half(x + place, splat(usable ? inverse : 0.0F), limit, to.high + place,
                                 to.low == nullptr ? nullptr : to.low + place);
      to.counts[place / 16] = sum;
      to.sums[place / 16] = check == 0.0F ? scale * static_cast<float>(sum) : check;
    }
    to.scales[at / kPackedColumns] = check == 0.0F ? scale : check;
  }
}

#if defined(__AVX512F__)

void spread_rows(const int8_t* high, const int8_t* low, int64_t count, int8_t* spread) {
  const __m512i order = _mm512_setr_epi32(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1);
  for (int64_t at = 0; at < count; at += 8) {
    int64_t upper, lower;
    std::memcpy(&upper, high + at, sizeof upper);
    std::memcpy(&lower, low + at, sizeof lower);
    _mm512_storeu_si512(spread, _mm512_permutexvar_epi32(order, _mm512_set1_epi64(upper)));
    _mm512_storeu_si512(spread + 64, _mm512_permutexvar_epi32(order, _mm512_set1_epi64(lower)));
    spread += 128;
  }
}

#endif

}  // namespace graft_kernels::GRAFT_ISA
