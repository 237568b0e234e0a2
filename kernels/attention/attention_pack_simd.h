// Operands of attention's products, packed (attention_blocks.h). Included by *_simd.cpp alone (see common/simd.h).
#pragma once

#include "kernels/attention/attention_products_simd.h"
#include "kernels/attention/attention_rows_simd.h"

namespace graft_kernels::GRAFT_ISA {

namespace {

using attention::kPassItems;
using attention::kPassRows;

// Words of a row of a head, and panels over its elements; both with zeros behind the last element.
template <typename Form>
inline int64_t words_of(int64_t head_dim) {
  return Form::kElements == 1 ? padded(head_dim) : (head_dim + 31) / 32 * 16;
}
template <typename Form>
inline int64_t panels_of(int64_t head_dim) {
  return Form::kElements == 1 ? padded(head_dim) / kLanes : (head_dim + 31) / 32 * 2;
}

// One item as words.
template <typename Form, typename T>
inline void stage_row(const T* from, int64_t head_dim, typename Form::Word* to) {
  if constexpr (Form::kElements == 1) {
    widen_rows(from, 0, 1, head_dim, to);
  } else {
    std::memset(to + words_of<Form>(head_dim) - 16, 0, 64);
    std::memcpy(to, from, static_cast<size_t>(head_dim) * sizeof(T));
  }
}

#if defined(__AVX512F__)

// 16 rows of 16 words, turned.
inline void turn_words(const void* from, int64_t stride_words, void* to, int64_t to_stride = 16) {
  __m512i a[16], b[16];
  const int32_t* rows = static_cast<const int32_t*>(from);
#pragma GCC unroll 16
  for (int i = 0; i < 16; ++i) {
    a[i] = _mm512_loadu_si512(rows + i * stride_words);
  }
#pragma GCC unroll 8
  for (int i = 0; i < 16; i += 2) {
    b[i] = _mm512_unpacklo_epi32(a[i], a[i + 1]);
    b[i + 1] = _mm512_unpackhi_epi32(a[i], a[i + 1]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 16; i += 4) {
    a[i] = _mm512_unpacklo_epi64(b[i], b[i + 2]);
    a[i + 1] = _mm512_unpackhi_epi64(b[i], b[i + 2]);
    a[i + 2] = _mm512_unpacklo_epi64(b[i + 1], b[i + 3]);
    a[i + 3] = _mm512_unpackhi_epi64(b[i + 1], b[i + 3]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    b[i] = _mm512_shuffle_i32x4(a[i], a[i + 4], 0x88);
    b[i + 4] = _mm512_shuffle_i32x4(a[i], a[i + 4], 0xdd);
    b[i + 8] = _mm512_shuffle_i32x4(a[i + 8], a[i + 12], 0x88);
    b[i + 12] = _mm512_shuffle_i32x4(a[i + 8], a[i + 12], 0xdd);
  }
  int32_t* out = static_cast<int32_t*>(to);
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    _mm512_storeu_si512(out + i * to_stride, _mm512_shuffle_i32x4(b[i], b[i + 8], 0x88));
    _mm512_storeu_si512(out + (i + 4) * to_stride, _mm512_shuffle_i32x4(b[i + 4], b[i + 12], 0x88));
    _mm512_storeu_si512(out + (i + 8) * to_stride, _mm512_shuffle_i32x4(b[i], b[i + 8], 0xdd));
    _mm512_storeu_si512(out + (i + 12) * to_stride,
                        _mm512_shuffle_i32x4(b[i + 4], b[i + 12], 0xdd));
  }
}

#else

inline void turn_words(const void* from, int64_t stride_words, void* to) {
  const float* rows = static_cast<const float*>(from);
  for (int i = 0; i < kLanes; ++i) {
    for (int j = 0; j < kLanes; ++j) {
      static_cast<float*>(to)[j * kLanes + i] = rows[i * stride_words + j];
    }
  }
}

#endif

// kLanes items as columns: [word][item].
template <typename Form>
inline void pack_across(const typename Form::Word* items, int64_t words,
                        typename Form::Word* panel) {
  for (int64_t word = 0; word < words; word += kLanes) {
    turn_words(items + word, words, panel + word * kLanes);
  }
}

// Whether none of a vector's numbers, float32 or bfloat16, is infinite or NaN.
template <typename Form>
inline bool is_finite(Float value) {
#if defined(__AVX512F__)
  if constexpr (Form::kElements == 2) {
    const __m512i exponents = _mm512_set1_epi16(0x7f80);
    return _mm512_cmpeq_epi16_mask(_mm512_and_si512((__m512i)value, exponents), exponents) == 0;
  }
#endif
  const Float difference = value - value;
  return is_none(difference != Float{});
}

// kLanes items to be summed over, as words [item / kElements] of every panel. Returns whether all are finite.
template <typename Form>
inline bool pack_down(const typename Form::Word* items, int64_t words, int64_t panel_stride,
                      typename Form::Word* to) {
  bool finite = true;
  for (int64_t item = 0; item < kLanes; item += Form::kElements) {
    const typename Form::Word* row = items + item * words;
    typename Form::Word* place = to + item / Form::kElements * kLanes;
    if constexpr (Form::kElements == 1) {
      for (int64_t word = 0; word < words; word += kLanes, place += panel_stride) {
        const Float value = load(row + word);
        finite &= is_finite<Form>(value);
        store(place, value);
      }
    } else {
#if defined(__AVX512F__)
      for (int64_t word = 0; word < words; word += 8, place += panel_stride) {
        const __m512i even =
            _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(row + word)));
        const __m512i odd = _mm512_cvtepu16_epi32(
            _mm256_loadu_si256(reinterpret_cast<const __m256i*>(row + words + word)));
        const __m512i both = _mm512_or_si512(even, _mm512_slli_epi32(odd, 16));
        finite &= is_finite<Form>((Float)both);
        _mm512_storeu_si512(place, both);
      }
#endif
    }
  }
  return finite;
}

// A block of `count` items, zeros behind them. item(i) is where one lies; null operands are left out.
template <typename Form, typename T, typename Item>
void pack_block(const Item& item, int64_t count, int64_t head_dim, void* across, void* down,
                uint8_t* hazard) {
  using Word = typename Form::Word;
  const int64_t words = words_of<Form>(head_dim);
  const int64_t down_stride = kPassItems / Form::kElements * kLanes;
  alignas(64) Word rows[kLanes * kMaxHeadDim];
  bool finite = true;
  for (int64_t first = 0; first < kPassItems; first += kLanes) {
    for (int64_t i = 0; i < kLanes; ++i) {
      Word* row = rows + i * words;
      if (first + i < count) {
        stage_row<Form, T>(item(first + i), head_dim, row);
      } else {
        std::memset(row, 0, static_cast<size_t>(words) * sizeof(Word));
      }
    }
    if (across != nullptr) {
      pack_across<Form>(rows, words, static_cast<Word*>(across) + first * words);
    }
    if (down != nullptr) {
      finite &= pack_down<Form>(rows, words, down_stride,
                                static_cast<Word*>(down) + first / Form::kElements * kLanes);
    }
  }
  if (hazard != nullptr) {
    *hazard = finite ? 0 : 1;
  }
}

}  // namespace

}  // namespace graft_kernels::GRAFT_ISA
