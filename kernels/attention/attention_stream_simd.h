// Keys and values of few rows, read once from where they lie: memory is the bound. Included by *_simd.cpp alone (see
// common/simd.h).
#pragma once

#include "kernels/attention/attention_rows_simd.h"

namespace graft_kernels::GRAFT_ISA {

namespace {

// Rows that share a conversion, as many as the registers hold.
constexpr int kStreamRows = kLanes == 16 ? 4 : 2;

// Asks for the line at `from`, into the first level of cache or into the second. In assembly: GCC takes a function that
// does nothing but _mm_prefetch for one without effect and leaves out its calls.
inline void fetch_near(const char* from) { __asm__ volatile("prefetcht0 %0" : : "m"(*from)); }
inline void fetch_far(const char* from) { __asm__ volatile("prefetcht1 %0" : : "m"(*from)); }

// Asks for what comes after `count` rows from `from` on, while they are worked on: in short steps, since a core has
// sixteen lines on their way and then waits, and twice, since memory is further away than these reach.
template <typename T>
inline void fetch_ahead(const T* from, int64_t stride, int64_t count, int64_t head_dim) {
  constexpr int64_t kNearBytes = 3 << 10, kFarBytes = 8 << 10, kLine = 64;
  const int64_t row_bytes = head_dim * static_cast<int64_t>(sizeof(T));
  const int64_t near = kNearBytes / row_bytes * stride, far = kFarBytes / row_bytes * stride;
  for (int64_t i = 0; i < count; ++i, from += stride) {
    for (int64_t at = 0; at < row_bytes; at += kLine) {
      fetch_near(reinterpret_cast<const char*>(from + near) + at);
      fetch_far(reinterpret_cast<const char*>(from + far) + at);
    }
  }
}

// The first vectors or, with `rest`, the last few elements at `from`.
template <typename T>
inline Float load_some(const T* from, int64_t rest) {
  return rest >= kLanes ? load<T>(from) : load_partial<T>(from, rest);
}

// kRows rows of scores against four keys.
template <typename T, int kRows>
inline void score_four(const float* query, int64_t width, const T* const (&keys)[4],
                       int64_t head_dim, float* scores) {
  Float sums[kRows][4] = {};
  const auto add = [&](int64_t i, const auto& load_key) {
    Float key[4];
#pragma GCC unroll 4
    for (int k = 0; k < 4; ++k) {
      key[k] = load_key(keys[k] + i);
    }
#pragma GCC unroll 4
    for (int row = 0; row < kRows; ++row) {
      const Float factor = load(query + row * width + i);
#pragma GCC unroll 4
      for (int k = 0; k < 4; ++k) {
        sums[row][k] = multiply_add(factor, key[k], sums[row][k]);
      }
    }
  };
  int64_t i = 0;
  for (; i + kLanes <= head_dim; i += kLanes) {
    add(i, [](const T* from) { return load<T>(from); });
  }
  if (i < head_dim) {
    add(i, [&](const T* from) { return load_partial<T>(from, head_dim - i); });
  }
#pragma GCC unroll 4
  for (int row = 0; row < kRows; ++row) {
    sum_four(sums[row][0], sums[row][1], sums[row][2], sums[row][3], scores + row * kBlockKeys);
  }
}

// scores[row][key] = query . key for up to kBlockKeys keys; four at a time, the last one repeated. Later keys and values
// are asked for meanwhile.
template <typename T>
void score_stream(const float* query, int64_t rows, int64_t width, const T* key, int64_t stride,
                  const T* value, int64_t value_stride, int64_t keys, int64_t head_dim,
                  float* scores) {
  for (int64_t j = 0; j < keys; j += 4) {
    const int64_t last = keys - 1;
    const T* four[4];
    for (int64_t k = 0; k < 4; ++k) {
      four[k] = key + (j + k < last ? j + k : last) * stride;
    }
    fetch_ahead(key + j * stride, stride, 4, head_dim);
    fetch_ahead(value + j * value_stride, value_stride, 4, head_dim);
    int64_t row = 0;
    for (; row + kStreamRows <= rows; row += kStreamRows) {
      score_four<T, kStreamRows>(query + row * width, width, four, head_dim,
                                 scores + row * kBlockKeys + j);
    }
    for (; row < rows; ++row) {
      score_four<T, 1>(query + row * width, width, four, head_dim, scores + row * kBlockKeys + j);
    }
  }
}

// sums[row] += weights[row] . values, kVectors vectors of columns at `from`, of which `rest` columns count.
template <typename T, int kRows, int kVectors>
inline void add_some(const float* weights, const T* value, int64_t stride, int64_t keys,
                     int64_t rest, float* sums, int64_t sums_stride) {
  Float held[kRows][kVectors] = {};
  for (int64_t j = 0; j < keys; ++j) {
    Float values[kVectors];
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      values[v] = load_some<T>(value + j * stride + v * kLanes, rest - v * kLanes);
    }
#pragma GCC unroll 4
    for (int row = 0; row < kRows; ++row) {
      const Float weight = splat(weights[row * kBlockKeys + j]);
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) {
        held[row][v] = multiply_add(weight, values[v], held[row][v]);
      }
    }
  }
  for (int row = 0; row < kRows; ++row) {
    for (int v = 0; v < kVectors; ++v) {
      float* to = sums + row * sums_stride + v * kLanes;
      const int64_t left = rest - v * kLanes;
      left >= kLanes ? store(to, load(to) + held[row][v])
                     : store_partial(to, load_partial(to, left) + held[row][v], left);
    }
  }
}

template <typename T, int kRows>
inline void add_rows(const float* weights, const T* value, int64_t stride, int64_t keys,
                     int64_t head_dim, float* sums, int64_t sums_stride) {
  int64_t i = 0;
  for (; i + 4 * kLanes <= head_dim; i += 4 * kLanes) {
    add_some<T, kRows, 4>(weights, value + i, stride, keys, 4 * kLanes, sums + i, sums_stride);
  }
  for (; i < head_dim; i += kLanes) {
    add_some<T, kRows, 1>(weights, value + i, stride, keys, head_dim - i, sums + i, sums_stride);
  }
}

// sums[row] += weights[row] . values for keys that every row sees.
template <typename T>
void add_stream(const float* weights, int64_t rows, const T* value, int64_t stride, int64_t keys,
                int64_t head_dim, float* sums, int64_t sums_stride) {
  int64_t row = 0;
  for (; row + kStreamRows <= rows; row += kStreamRows) {
    add_rows<T, kStreamRows>(weights + row * kBlockKeys, value, stride, keys, head_dim,
                             sums + row * sums_stride, sums_stride);
  }
  for (; row < rows; ++row) {
    add_rows<T, 1>(weights + row * kBlockKeys, value, stride, keys, head_dim,
                   sums + row * sums_stride, sums_stride);
  }
}

// Whether every row sees every key: no weight is kMaskedWeight.
inline bool are_all_seen(const float* weights, int64_t rows, int64_t keys) {
  Int hidden = {};
  const Int masked = (Int)splat(kMaskedWeight);
  for (int64_t row = 0; row < rows; ++row, weights += kBlockKeys) {
    int64_t j = 0;
    for (; j + kLanes <= keys; j += kLanes) {
      hidden |= (Int)load(weights + j) == masked;
    }
    if (j < keys) {
      hidden |= (Int)load_partial(weights + j, keys - j) == masked;
    }
  }
  return is_none(hidden);
}

}  // namespace

}  // namespace graft_kernels::GRAFT_ISA
