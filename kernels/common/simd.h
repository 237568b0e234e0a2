// Float vectors of one instruction set. Included by *_simd.cpp alone, which are compiled once per
// set with GRAFT_ISA=plain|avx2|avx512; everything here lives in that namespace, so that no inline
// function of one set can be picked by the linker for another. For the same reason these files
// include no Torch and no standard containers.
#pragma once

#include <cstdint>
#include <cstring>

#include <immintrin.h>

#include "kernels/common/dtype.h"

#ifndef GRAFT_ISA
#define GRAFT_ISA plain  // for editors and clang-tidy
#endif

namespace graft_kernels::GRAFT_ISA {

#if defined(__AVX512F__)
inline constexpr int kLanes = 16;
#elif defined(__AVX2__)
inline constexpr int kLanes = 8;
#else
inline constexpr int kLanes = 4;
#endif

using Float = float __attribute__((vector_size(kLanes * 4)));
using Int = int32_t __attribute__((vector_size(kLanes * 4)));
using Uint = uint32_t __attribute__((vector_size(kLanes * 4)));
using Ushort = uint16_t __attribute__((vector_size(kLanes * 2)));

// Storage types: bits alone, no arithmetic.
struct Bf16 {
  uint16_t bits;
};
struct Fp16 {
  uint16_t bits;
};

static inline Float splat(float value) {
#if defined(__AVX512F__)
  return (Float)_mm512_set1_ps(value);
#elif defined(__AVX2__)
  return (Float)_mm256_set1_ps(value);
#else
  return Float{value, value, value, value};  // `Float{} + value` would lose the sign of zero
#endif
}

// a * b + c; fused where the set can (nothing that fixes a rounding may depend on it).
static inline Float multiply_add(Float a, Float b, Float c) {
#if defined(__AVX512F__)
  return (Float)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__FMA__)
  return (Float)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#else
  return a * b + c;
#endif
}

static inline Float select(Int mask, Float a, Float b) {
  return (Float)(((Int)a & mask) | ((Int)b & ~mask));
}
static inline Float absolute(Float a) { return (Float)((Uint)a & 0x7fffffffU); }
static inline Float copy_sign(Float magnitude, Float sign) {
  return (Float)(((Uint)magnitude & 0x7fffffffU) | ((Uint)sign & 0x80000000U));
}

// Zero-extends, and keeps the low half of each lane. GCC 12 turns the generic conversion into scalar moves.
static inline Uint widen(Ushort raw) {
#if defined(__AVX512F__)
  return (Uint)_mm512_cvtepu16_epi32((__m256i)raw);
#elif defined(__AVX2__)
  return (Uint)_mm256_cvtepu16_epi32((__m128i)raw);
#else
  return __builtin_convertvector(raw, Uint);
#endif
}
static inline Ushort narrow(Uint wide) {
#if defined(__AVX512F__)
  return (Ushort)_mm512_cvtepi32_epi16((__m512i)wide);
#elif defined(__AVX2__)
  const __m256i packed = _mm256_packus_epi32((__m256i)wide, (__m256i)wide);
  return (Ushort)_mm256_castsi256_si128(_mm256_permute4x64_epi64(packed, 0x08));
#else
  return __builtin_convertvector(wide, Ushort);
#endif
}

static inline Float from_bf16_bits(Ushort raw) { return (Float)(widen(raw) << 16); }

// Rounds to nearest even, NaN to the quiet NaN, and keeps denormals (VCVTNEPS2BF16 would flush
// them). The bits of the bfloat16 are the upper halves; the lower ones are left over.
static inline Uint rounded_bits(Float value) {
  const Uint bits = (Uint)value;
#if defined(__AVX512F__)
  const __mmask16 odd = _mm512_test_epi32_mask((__m512i)bits, _mm512_set1_epi32(1 << 16));
  const __m512i half = _mm512_set1_epi32(0x7fff);
  const __m512i up = _mm512_add_epi32((__m512i)bits, half);
  const __m512i even = _mm512_mask_sub_epi32(up, odd, up, _mm512_set1_epi32(-1));
  const __mmask16 is_nan = _mm512_cmp_ps_mask((__m512)value, (__m512)value, _CMP_UNORD_Q);
  return (Uint)_mm512_mask_mov_epi32(even, is_nan, _mm512_set1_epi32(0x7fc00000));
#else
  const Uint rounded = bits + 0x7fffU + ((bits >> 16) & 1U);
  const Uint is_nan = (Uint)(value != value);
  return (rounded & ~is_nan) | (0x7fc00000U & is_nan);
#endif
}
static inline Uint bf16_bits(Float value) { return rounded_bits(value) >> 16; }

#if !defined(__F16C__)
// Without F16C a half is converted by hand: the compiler's own way needs a symbol of a new libgcc.
static inline float float_of_bits(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}
static inline float half_to_float(uint16_t half) {
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000U) << 16;
  const uint32_t magnitude = half & 0x7fffU;
  if (magnitude >= 0x7c00U) {
    return float_of_bits(sign | 0x7f800000U | (magnitude & 0x3ffU) << 13);
  }
  // Scaling by 2^112 moves the exponent bias and makes denormals normal.
  const float scaled = float_of_bits(magnitude << 13) * float_of_bits(0x77800000U);
  return sign != 0 ? -scaled : scaled;
}
static inline uint16_t float_to_half(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  const uint32_t sign = (bits >> 16) & 0x8000U;
  bits &= 0x7fffffffU;
  if (bits > 0x7f800000U) {
    return static_cast<uint16_t>(sign | 0x7e00U);
  }
  if (bits >= 0x477ff000U) {  // 65520 and more round to infinity
    return static_cast<uint16_t>(sign | 0x7c00U);
  }
  if (bits < 0x38800000U) {  // denormal: adding 0.5 leaves the rounded half in the low bits
    const float shifted = float_of_bits(bits) + 0.5F;
    std::memcpy(&bits, &shifted, sizeof bits);
    return static_cast<uint16_t>(sign | (bits - 0x3f000000U));
  }
  return static_cast<uint16_t>(sign | ((bits + 0xfffU + ((bits >> 13) & 1U) - 0x38000000U) >> 13));
}
#endif

static inline Float from_fp16_bits(Ushort raw) {
#if defined(__AVX512F__)
  return (Float)_mm512_cvtph_ps((__m256i)raw);
#elif defined(__F16C__)
  return (Float)_mm256_cvtph_ps((__m128i)raw);
#else
  Float value;
  for (int lane = 0; lane < kLanes; ++lane) {
    value[lane] = half_to_float(raw[lane]);
  }
  return value;
#endif
}

static inline Ushort fp16_bits(Float value) {
#if defined(__AVX512F__)
  return (Ushort)_mm512_cvtps_ph((__m512)value, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#elif defined(__F16C__)
  return (Ushort)_mm256_cvtps_ph((__m256)value, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#else
  Ushort raw;
  for (int lane = 0; lane < kLanes; ++lane) {
    raw[lane] = float_to_half(value[lane]);
  }
  return raw;
#endif
}

template <typename T>
static inline Float load(const T* from);
template <>
inline Float load(const float* from) {
  Float value;
  std::memcpy(&value, from, sizeof value);
  return value;
}
template <>
inline Float load(const Bf16* from) {
  Ushort raw;
  std::memcpy(&raw, from, sizeof raw);
  return from_bf16_bits(raw);
}
template <>
inline Float load(const Fp16* from) {
  Ushort raw;
  std::memcpy(&raw, from, sizeof raw);
  return from_fp16_bits(raw);
}

static inline void store(float* to, Float value) { std::memcpy(to, &value, sizeof value); }
static inline void store(Bf16* to, Float value) {
#if defined(__AVX512BW__)
  const __m512i upper_halves =
      _mm512_set_epi16(0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 31, 29, 27, 25, 23, 21, 19,
                       17, 15, 13, 11, 9, 7, 5, 3, 1);
  const __m512i words = _mm512_permutexvar_epi16(upper_halves, (__m512i)rounded_bits(value));
  const auto raw = (Ushort)_mm512_castsi512_si256(words);
#else
  const Ushort raw = narrow(bf16_bits(value));
#endif
  std::memcpy(to, &raw, sizeof raw);
}
static inline void store(Fp16* to, Float value) {
  const Ushort raw = fp16_bits(value);
  std::memcpy(to, &raw, sizeof raw);
}

// The first `count` (< kLanes) elements; the other lanes are zero.
template <typename T>
static inline Float load_partial(const T* from, int64_t count) {
  T buffer[kLanes] = {};
  std::memcpy(buffer, from, static_cast<size_t>(count) * sizeof(T));
  return load<T>(buffer);
}
template <typename T>
static inline void store_partial(T* to, Float value, int64_t count) {
  T buffer[kLanes];
  store(buffer, value);
  std::memcpy(to, buffer, static_cast<size_t>(count) * sizeof(T));
}

// The value after a round trip through T: what a store and a load would give.
template <typename T>
static inline Float round_to(Float value);
template <>
inline Float round_to<float>(Float value) {
  return value;
}
template <>
inline Float round_to<Bf16>(Float value) {
  return (Float)(rounded_bits(value) & 0xffff0000U);
}
template <>
inline Float round_to<Fp16>(Float value) {
  return from_fp16_bits(fp16_bits(value));
}

// Sum of all lanes, pairwise.
static inline float sum_lanes(Float value) {
  for (int width = kLanes / 2; width > 0; width /= 2) {
    for (int lane = 0; lane < width; ++lane) {
      value[lane] += value[lane + width];
    }
  }
  return value[0];
}

// Calls fn with a null pointer of the dtype's storage type.
template <typename Fn>
static inline void with_type(Dtype dtype, const Fn& fn) {
  switch (dtype) {
    case Dtype::kFloat32:
      return fn(static_cast<float*>(nullptr));
    case Dtype::kBfloat16:
      return fn(static_cast<Bf16*>(nullptr));
    case Dtype::kFloat16:
      return fn(static_cast<Fp16*>(nullptr));
  }
}

// `count` elements as float32.
template <typename T>
static inline void widen_span(const T* from, float* to, int64_t count) {
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    store(to + i, load<T>(from + i));
  }
  if (i < count) {
    store_partial(to + i, load_partial<T>(from + i, count - i), count - i);
  }
}

// `count` elements, each times factor, rounded to T.
template <typename T>
static inline void store_scaled(T* to, const float* from, float factor, int64_t count) {
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    store(to + i, load(from + i) * splat(factor));
  }
  if (i < count) {
    store_partial(to + i, load_partial(from + i, count - i) * splat(factor), count - i);
  }
}

}  // namespace graft_kernels::GRAFT_ISA
