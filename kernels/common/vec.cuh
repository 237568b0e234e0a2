// Vectors of 16 bytes and conversions between storage types and float. Device code, no Torch.
#pragma once

#include <cstdint>

#include <cuda_bf16.h>
#include <cuda_fp16.h>

namespace graft_kernels {

using Bf16 = __nv_bfloat16;
using Fp16 = __half;

template <typename T>
inline constexpr int kVectorSize = 16 / sizeof(T);

__device__ __forceinline__ float to_float(float value) { return value; }
__device__ __forceinline__ float to_float(Bf16 value) { return __bfloat162float(value); }
__device__ __forceinline__ float to_float(Fp16 value) { return __half2float(value); }

template <typename T>
__device__ __forceinline__ T from_float(float value);
template <>
__device__ __forceinline__ float from_float(float value) {
  return value;
}
template <>
__device__ __forceinline__ Bf16 from_float(float value) {
  return __float2bfloat16_rn(value);
}
template <>
__device__ __forceinline__ Fp16 from_float(float value) {
  return __float2half_rn(value);
}

// The value after a round trip through T.
template <typename T>
__device__ __forceinline__ float round_to(float value) {
  return to_float(from_float<T>(value));
}

// Two 16-bit values in a register. Products and sums of two such values are rounded once, whether through float or by
// packed instructions (__hmul2_rn and its like, which never fuse).
template <typename T>
struct PackedOf {
  using type = __nv_bfloat162;
};
template <>
struct PackedOf<Fp16> {
  using type = __half2;
};
template <typename T>
using Packed = typename PackedOf<T>::type;

__device__ __forceinline__ float2 to_floats(__nv_bfloat162 pair) {
  return __bfloat1622float2(pair);
}
__device__ __forceinline__ float2 to_floats(__half2 pair) { return __half22float2(pair); }
template <typename T>
__device__ __forceinline__ Packed<T> from_floats(float2 values);
template <>
__device__ __forceinline__ __nv_bfloat162 from_floats<Bf16>(float2 values) {
  return __float22bfloat162_rn(values);
}
template <>
__device__ __forceinline__ __half2 from_floats<Fp16>(float2 values) {
  return __float22half2_rn(values);
}

// kSize elements that travel in one access of up to 16 bytes (or several, beyond that).
template <typename T, int kSize>
struct alignas(sizeof(T) * kSize < 16 ? sizeof(T) * kSize : 16) Vec {
  T data[kSize];
};

// Reads what is used once: does not displace L1. Not the read-only path, since an op may work in
// place.
template <typename T, int kSize>
__device__ __forceinline__ Vec<T, kSize> load_streaming(const T* from) {
  Vec<T, kSize> value;
  if constexpr (sizeof(value) % 16 == 0) {
    uint4* words = reinterpret_cast<uint4*>(&value);
#pragma unroll
    for (int part = 0; part < static_cast<int>(sizeof(value) / 16); ++part) {
      asm volatile("ld.global.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
                   : "=r"(words[part].x), "=r"(words[part].y), "=r"(words[part].z),
                     "=r"(words[part].w)
                   : "l"(reinterpret_cast<const uint4*>(from) + part));
    }
  } else {
    value = *reinterpret_cast<const Vec<T, kSize>*>(from);
  }
  return value;
}

// Reads what many blocks read: stays in L1.
template <typename T, int kSize>
__device__ __forceinline__ Vec<T, kSize> load_shared_data(const T* from) {
  Vec<T, kSize> value;
  if constexpr (sizeof(value) % 16 == 0) {
    uint4* words = reinterpret_cast<uint4*>(&value);
#pragma unroll
    for (int part = 0; part < static_cast<int>(sizeof(value) / 16); ++part) {
      words[part] = __ldg(reinterpret_cast<const uint4*>(from) + part);
    }
  } else {
    value = *reinterpret_cast<const Vec<T, kSize>*>(from);
  }
  return value;
}

// Makes the compiler forget what it knows of `value`: conversions made before are made again after,
// instead of being kept in registers (twice as many as the 16-bit values take).
template <typename T, int kSize>
__device__ __forceinline__ void forget(Vec<T, kSize>& value) {
  if constexpr (sizeof(value) % 4 == 0) {
    unsigned* words = reinterpret_cast<unsigned*>(&value);
#pragma unroll
    for (int word = 0; word < static_cast<int>(sizeof(value) / 4); ++word) {
      asm volatile("" : "+r"(words[word]));
    }
  }
}

template <typename T, int kSize>
__device__ __forceinline__ void store_vector(T* to, const Vec<T, kSize>& value) {
  if constexpr (sizeof(value) % 16 == 0) {
    const uint4* words = reinterpret_cast<const uint4*>(&value);
#pragma unroll
    for (int part = 0; part < static_cast<int>(sizeof(value) / 16); ++part) {
      reinterpret_cast<uint4*>(to)[part] = words[part];
    }
  } else {
    *reinterpret_cast<Vec<T, kSize>*>(to) = value;
  }
}

}  // namespace graft_kernels
