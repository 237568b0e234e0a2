// Tiles of bfloat16 (AMX_BF16), eight registers of 16 rows of 64 bytes: 0 to 3 hold sums, 4 to 7 what is multiplied.
// For processors where multiplies_tiles() (isa.h). Included by *_simd.cpp alone (see simd.h).
//
// Intel SDM, chapter 18 (AMX). In assembly, since these files are compiled for AVX-512 without them.
#pragma once

#include "kernels/common/simd.h"

namespace graft_kernels::GRAFT_ISA {

#if defined(__AVX512F__)

// Two vectors of float32, `low` first, as 32 bfloat16 (AVX512_BF16).
static inline __m512i to_bf16(Float low, Float high) {
  __m512i both;
  __asm__("vcvtne2ps2bf16 %2, %1, %0" : "=v"(both) : "v"(high), "v"(low));
  return both;
}

struct alignas(64) TileConfig {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

// Sets the thread's tiles up, and gives them back as they were: libraries keep theirs from one call to the next.
class TileScope {
 public:
  TileScope() {
    __asm__ volatile("sttilecfg %0" : "=m"(before_));
    const TileConfig ours;
    __asm__ volatile("ldtilecfg %0" : : "m"(ours));
  }
  ~TileScope() {
    if (before_.palette == 0) {
      __asm__ volatile("tilerelease");
    } else {
      __asm__ volatile("ldtilecfg %0" : : "m"(before_));
    }
  }
  TileScope(const TileScope&) = delete;
  TileScope& operator=(const TileScope&) = delete;

 private:
  TileConfig before_;
};

template <int kTile>
static inline void tile_load(const void* from, int64_t row_bytes = 64) {
  __asm__ volatile("tileloadd (%0,%1,1), %%tmm%c2"
                   :
                   : "r"(from), "r"(row_bytes), "i"(kTile)
                   : "memory");
}
template <int kTile>
static inline void tile_store(float* to, int64_t row_bytes) {
  __asm__ volatile("tilestored %%tmm%c2, (%0,%1,1)"
                   :
                   : "r"(to), "r"(row_bytes), "i"(kTile)
                   : "memory");
}
template <int kTile>
static inline void tile_zero() {
  __asm__ volatile("tilezero %%tmm%c0" : : "i"(kTile));
}
template <int kSums, int kA, int kB>
static inline void tile_multiply() {
  __asm__ volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(kSums), "i"(kA), "i"(kB));
}

#endif

}  // namespace graft_kernels::GRAFT_ISA
