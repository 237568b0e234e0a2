// Matrix products of attention on the CPU for one instruction set. The algorithm around them knows three forms of
// product (Products): vectors of float32, pairs of bfloat16, tiles of them. Included by *_simd.cpp alone (see
// common/simd.h).
//
// a: rows of words, a word being one float32 or two bfloat16; b: panels [panel][word][lane]; sums are float32.
#pragma once

#include "kernels/attention/attention_blocks.h"
#include "kernels/common/simd_tiles.h"

namespace graft_kernels::GRAFT_ISA {

namespace {

struct FloatForm {
  using Word = float;
  static constexpr int64_t kElements = 1;  // of a word
  static constexpr bool kTiles = false;
  static inline Float multiply(Float factor, Float b, Float sum) {
    return multiply_add(factor, b, sum);
  }
};

#if defined(__AVX512F__)

struct PairForm {
  using Word = uint32_t;
  static constexpr int64_t kElements = 2;
  static constexpr bool kTiles = false;
  static inline Float multiply(Float factor, Float b, Float sum) {
    __asm__("vdpbf16ps %2, %1, %0" : "+v"(sum) : "v"(factor), "v"(b));
    return sum;
  }
};

struct TileForm : PairForm {
  static constexpr bool kTiles = true;
};

#endif

// Both sides of a product. Strides in words and in elements of sums.
template <typename Form>
struct Factors {
  const typename Form::Word* a;
  int64_t a_stride;
  const typename Form::Word* b;
  int64_t panel_stride;
  int64_t words;  // summed over
  float* sums;
  int64_t sums_stride;
};

// What was there is added last: a sum over thousands of items is one of sums over a block, which round less.
template <typename Form, int kRows, int kVectors, bool kAdd>
inline void multiply_vectors(const Factors<Form>& f) {
  Float sums[kRows][kVectors];
#pragma GCC unroll 8
  for (int row = 0; row < kRows; ++row) {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      sums[row][v] = Float{};
    }
  }
  for (int64_t word = 0; word < f.words; ++word) {
    Float b[kVectors];
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      b[v] = load(reinterpret_cast<const float*>(f.b + v * f.panel_stride + word * kLanes));
    }
#pragma GCC unroll 8
    for (int row = 0; row < kRows; ++row) {
      float value;
      std::memcpy(&value, f.a + row * f.a_stride + word, sizeof value);
      const Float factor = splat(value);
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) {
        sums[row][v] = Form::multiply(factor, b[v], sums[row][v]);
      }
    }
  }
#pragma GCC unroll 8
  for (int row = 0; row < kRows; ++row) {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      float* to = f.sums + row * f.sums_stride + v * kLanes;
      store(to, kAdd ? load(to) + sums[row][v] : sums[row][v]);
    }
  }
}

#if defined(__AVX512F__)

// 16 or 32 rows, two panels; words in whole tiles. Tiles 4 and 5 are rows of a, 6 and 7 panels of b.
template <bool kSecond, bool kAdd>
inline void multiply_tiles(const Factors<TileForm>& f) {
  constexpr int64_t kTileWords = 16;
  const int64_t sums_bytes = f.sums_stride * 4, a_bytes = f.a_stride * 4;
  float* const lower = f.sums + 16 * f.sums_stride;
  if constexpr (kAdd) {
    tile_load<0>(f.sums, sums_bytes);
    tile_load<1>(f.sums + 16, sums_bytes);
    if constexpr (kSecond) {
      tile_load<2>(lower, sums_bytes);
      tile_load<3>(lower + 16, sums_bytes);
    }
  } else {
    tile_zero<0>();
    tile_zero<1>();
    tile_zero<2>();
    tile_zero<3>();
  }
  for (int64_t word = 0; word < f.words; word += kTileWords) {
    tile_load<4>(f.a + word, a_bytes);
    tile_load<6>(f.b + word * 16, 64);
    tile_multiply<0, 4, 6>();
    tile_load<7>(f.b + f.panel_stride + word * 16, 64);
    tile_multiply<1, 4, 7>();
    if constexpr (kSecond) {
      tile_load<5>(f.a + 16 * f.a_stride + word, a_bytes);
      tile_multiply<2, 5, 6>();
      tile_multiply<3, 5, 7>();
    }
  }
  tile_store<0>(f.sums, sums_bytes);
  tile_store<1>(f.sums + 16, sums_bytes);
  if constexpr (kSecond) {
    tile_store<2>(lower, sums_bytes);
    tile_store<3>(lower + 16, sums_bytes);
  }
}

#endif

// sums (+)= a b for `rows` rows, of which an even number (tiles: 16 or 32) is worked on, and `panels` panels
// (tiles: an even number).
template <typename Form, bool kAdd>
void multiply(Factors<Form> f, int64_t rows, int64_t panels) {
  if constexpr (Form::kTiles) {
    for (int64_t panel = 0; panel < panels; panel += 2) {
      rows > 16 ? multiply_tiles<true, kAdd>(f) : multiply_tiles<false, kAdd>(f);
      f.b += 2 * f.panel_stride;
      f.sums += 2 * kLanes;
    }
  } else {
    constexpr int kRows = 6, kVectors = kLanes == 16 ? 4 : 2;  // sums that fill the registers
    const auto run = [&]<int kCount>() {
      Factors<Form> part = f;
      int64_t row = 0;
      for (; row + kRows <= rows; row += kRows) {
        multiply_vectors<Form, kRows, kCount, kAdd>(part);
        part.a += kRows * f.a_stride;
        part.sums += kRows * f.sums_stride;
      }
      for (; row < rows; row += 2) {
        multiply_vectors<Form, 2, kCount, kAdd>(part);
        part.a += 2 * f.a_stride;
        part.sums += 2 * f.sums_stride;
      }
      f.b += kCount * f.panel_stride;
      f.sums += kCount * kLanes;
    };
    int64_t panel = 0;
    for (; panel + kVectors <= panels; panel += kVectors) {
      run.template operator()<kVectors>();
    }
    for (; panel < panels; ++panel) {
      run.template operator()<1>();
    }
  }
}

// Calls fn with the form that a round asks for and the storage type of its dtype.
template <typename Fn>
inline void with_form(const attention::Round& round, const Fn& fn) {
#if defined(__AVX512F__)
  if (round.products == attention::Products::kTiles) {
    const TileScope tiles;
    return fn.template operator()<TileForm, Bf16>();
  }
  if (round.products == attention::Products::kPairs) {
    return fn.template operator()<PairForm, Bf16>();
  }
#endif
  with_type(round.problem->base.dtype,
            [&]<typename T>(T*) { fn.template operator()<FloatForm, T>(); });
}

}  // namespace

}  // namespace graft_kernels::GRAFT_ISA
