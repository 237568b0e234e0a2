// A call of the attention kernels on CUDA: the problem, and what a cache of keys adds to it.
#pragma once

#include <cstdint>

#include "kernels/attention/attention.h"
#include "kernels/attention/attention_append.h"

namespace graft_kernels::attention {

// Rows of a block: the height of one tensor core product.
inline constexpr int kBlockRows = 16;
// Keys of a tile, the unit in which keys are divided among blocks and warps.
inline constexpr int kTileKeys = 16;
// Most parts that the keys of one block of rows are divided into.
inline constexpr int kMaxSplits = 128;

struct DecodeProblem {
  Problem base;                      // with pages: keys is what the block table has room for
  const int32_t* lengths = nullptr;  // [B] keys in use, on the device; absent: all
  const int32_t* table = nullptr;    // [B, pages of a row]; absent: keys lie in one piece
  int64_t table_stride = 0;
  int32_t page_keys = 1;
  Sinks sinks;
  int32_t window = 0;      // query s sees this many keys back, itself included; 0: all
  float* lse = nullptr;    // [B, Hq, S] or absent
  int32_t splits = 1;      // parts of the keys, each a block of threads
  float* parts = nullptr;  // [block][split][row][2 + D]: largest score, sum, weighted values
  int64_t pages = 0;       // that the cache has
  Append append;

  int64_t part_floats() const { return base.blocks() * splits * kBlockRows * (base.head_dim + 2); }
};

}  // namespace graft_kernels::attention
