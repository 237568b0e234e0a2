// What the files of attention on the CPU share, for the vectors of one instruction set: rows as float32, products of
// blocks, and the running softmax. Included by *_simd.cpp alone (see common/simd.h).
#pragma once

#include "kernels/attention/attention.h"
#include "kernels/common/simd.h"
#include "kernels/common/simd_math.h"

namespace graft_kernels::GRAFT_ISA {

namespace {

using attention::kMaxHeadDim;
using attention::kMaxTaskRows;

constexpr int64_t kBlockKeys = 32;
constexpr float kMinusInfinity = -__builtin_inff();
// The weight of a masked key. It is zero and its sign says that the value must not be read: there may
// be no number there.
constexpr float kMaskedWeight = -0.0F;

// Sums of the lanes of four vectors.
inline void sum_four(Float a, Float b, Float c, Float d, float* sums) {
#if defined(__AVX2__)
#if defined(__AVX512F__)
  const auto fold = [](Float x) {
    return _mm256_add_ps(_mm512_castps512_ps256((__m512)x), _mm512_extractf32x8_ps((__m512)x, 1));
  };
#else
  const auto fold = [](Float x) { return (__m256)x; };
#endif
  const __m256 pairs =
      _mm256_hadd_ps(_mm256_hadd_ps(fold(a), fold(b)), _mm256_hadd_ps(fold(c), fold(d)));
  _mm_storeu_ps(sums, _mm_add_ps(_mm256_castps256_ps128(pairs), _mm256_extractf128_ps(pairs, 1)));
#else
  sums[0] = sum_lanes(a);
  sums[1] = sum_lanes(b);
  sums[2] = sum_lanes(c);
  sums[3] = sum_lanes(d);
#endif
}

inline int64_t padded(int64_t head_dim) { return (head_dim + kLanes - 1) / kLanes * kLanes; }

// `count` rows of `size` elements as float32, `stride` elements apart.
template <typename T>
inline void widen_rows(const T* from, int64_t stride, int64_t count, int64_t size, float* to) {
  const int64_t width = padded(size);
  for (int64_t row = 0; row < count; ++row, from += stride, to += width) {
    int64_t i = 0;
    for (; i + kLanes <= size; i += kLanes) {
      store(to + i, load<T>(from + i));
    }
    if (i < size) {
      store(to + i, load_partial<T>(from + i, size - i));
    }
  }
}

// scores[j] += mask[j] for `keys` of them; what is masked becomes -infinity, whatever the score was.
template <typename M>
inline void add_mask(const M* mask, int64_t keys, float* scores) {
  for (int64_t j = 0; j < keys; ++j) {
    const float bias = load_partial<M>(mask + j, 1)[0];
    scores[j] = bias == kMinusInfinity ? kMinusInfinity : scores[j] + bias;
  }
}

// scores[row][key] = query . key for whole blocks of keys; what lies beyond `keys` is not read later.
inline void multiply_keys(const float* query, int64_t rows, const float* keys, int64_t width,
                          float* scores) {
  for (int64_t row = 0; row < rows; ++row, query += width, scores += kBlockKeys) {
    for (int64_t j = 0; j < kBlockKeys; j += 4) {
      const float* key = keys + j * width;
      Float sums[4] = {Float{}, Float{}, Float{}, Float{}};
      for (int64_t i = 0; i < width; i += kLanes) {
        const Float factor = load(query + i);
#pragma GCC unroll 4
        for (int k = 0; k < 4; ++k) {
          sums[k] = multiply_add(factor, load(key + k * width + i), sums[k]);
        }
      }
      sum_four(sums[0], sums[1], sums[2], sums[3], scores + j);
    }
  }
}

inline void scale_row(float* row, float factor, int64_t size) {
  int64_t i = 0;
  for (; i + kLanes <= size; i += kLanes) {
    store(row + i, load(row + i) * splat(factor));
  }
  for (; i < size; ++i) {
    row[i] *= factor;
  }
}

// Whether a comparison holds in no lane.
inline bool is_none(Int mask) {
#if defined(__AVX512F__)
  return _mm512_test_epi32_mask((__m512i)mask, (__m512i)mask) == 0;
#elif defined(__AVX2__)
  return _mm256_movemask_ps((__m256)mask) == 0;
#else
  return _mm_movemask_ps((__m128)mask) == 0;
#endif
}

// The largest lane of a vector without NaN.
inline float largest_lane(Float value) {
#if defined(__AVX512F__)
  return _mm512_reduce_max_ps((__m512)value);
#else
  float largest = value[0];
  for (int lane = 1; lane < kLanes; ++lane) {
    largest = value[lane] > largest ? value[lane] : largest;
  }
  return largest;
#endif
}

// Turns scores into weights against the row's running maximum and rescales what it holds.
// partial: largest score, sum of weights, weighted values.
inline void weigh(float* scores, float* partial, int64_t head_dim) {
  Float most = splat(partial[0]);
  for (int64_t j = 0; j < kBlockKeys; j += kLanes) {
    const Float score = load(scores + j);
    most = select(score > most, score, most);  // a NaN is not larger
  }
  const float largest = largest_lane(most);
  // Where everything is masked so far, any finite reference gives zero weights.
  const float reference = largest == kMinusInfinity ? 0.0F : largest;
  Float sum = {};
  for (int64_t j = 0; j < kBlockKeys; j += kLanes) {
    const Float score = load(scores + j);
    const Float weight = exp(score - splat(reference));
    sum = sum + weight;
    store(scores + j, select(score == splat(kMinusInfinity), splat(kMaskedWeight), weight));
  }
  const float old = partial[0] == largest ? 1.0F : exp(splat(partial[0] - reference))[0];
  partial[0] = largest;
  partial[1] = partial[1] * old + sum_lanes(sum);
  if (old != 1.0F) {
    scale_row(partial + 2, old, head_dim);
  }
}

// sums[0 .. kVectors) += weights . values over `keys` rows.
template <int kVectors>
inline void add_columns(const float* weights, const float* values, int64_t keys, int64_t width,
                        float* sums, int64_t columns) {
  Float held[kVectors];
#pragma GCC unroll 8
  for (int v = 0; v < kVectors; ++v) {
    held[v] = Float{};
  }
  for (int64_t j = 0; j < keys; ++j) {
    if (__builtin_signbit(weights[j]) != 0 && weights[j] == 0.0F) {
      continue;  // masked
    }
    const Float weight = splat(weights[j]);
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) {
      held[v] = multiply_add(weight, load(values + j * width + v * kLanes), held[v]);
    }
  }
  for (int v = 0; v < kVectors; ++v) {
    const int64_t rest = columns - v * kLanes;
    if (rest >= kLanes) {
      store(sums + v * kLanes, load(sums + v * kLanes) + held[v]);
    } else if (rest > 0) {
      store_partial(sums + v * kLanes, load_partial(sums + v * kLanes, rest) + held[v], rest);
    }
  }
}

inline void add_values(const float* weights, const float* values, int64_t keys, int64_t head_dim,
                       float* sums) {
  const int64_t width = padded(head_dim);
  int64_t i = 0;
  for (; i + 8 * kLanes <= width; i += 8 * kLanes) {
    add_columns<8>(weights, values + i, keys, width, sums + i, head_dim - i);
  }
  for (; i + 4 * kLanes <= width; i += 4 * kLanes) {
    add_columns<4>(weights, values + i, keys, width, sums + i, head_dim - i);
  }
  for (; i < width; i += kLanes) {
    add_columns<1>(weights, values + i, keys, width, sums + i, head_dim - i);
  }
}

}  // namespace

}  // namespace graft_kernels::GRAFT_ISA
