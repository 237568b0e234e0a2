// Blocks of rows against packed operands on the CPU: what a call with many rows is made of.
//
// An operand of the matrix products is packed once per head into panels of one vector's width, in blocks of
// kPassItems items (keys, or rows of queries). Packed across, the items are the columns of a product and the head
// size is summed over; packed down, the items are summed over and the head size gives the columns.
#pragma once

#include <cstdint>

#include "kernels/attention/attention_train.h"

namespace graft_kernels::attention {

// Rows that a task works on, and items of a packed block.
inline constexpr int64_t kPassRows = 32;
inline constexpr int64_t kPassItems = 64;
// Packed operands of one round of heads: they stay in the second-level cache.
inline constexpr int64_t kPackedBytes = 1 << 20;

// How a product is made: vectors of float32, pairs of bfloat16 (AVX512_BF16), tiles of them (AMX_BF16).
enum class Products { kFloats, kPairs, kTiles };

inline int64_t blocks_of(int64_t items, int64_t size) { return (items + size - 1) / size; }

// One packed operand: [head of the round][block]. hazards[head][block] is not zero where a packed number is not
// finite: such blocks are multiplied one weight at a time, so that what is hidden is not read.
struct Operand {
  char* panels = nullptr;
  uint8_t* hazards = nullptr;
};

// Heads [first_head, first_head + heads) of batch * Hk. Keys are packed across for all passes.
struct Round {
  const TrainProblem* problem = nullptr;
  Products products = Products::kFloats;
  int64_t first_head = 0, heads = 0;
  Operand keys_across, values_across, keys_down, values_down;      // over keys
  Operand queries_across, grads_across, queries_down, grads_down;  // over rows

  int64_t key_blocks() const { return blocks_of(problem->base.keys, kPassItems); }
  int64_t row_blocks() const { return blocks_of(problem->base.rows(), kPassItems); }
  int64_t row_passes() const { return blocks_of(problem->base.rows(), kPassRows); }
  int64_t key_passes() const { return blocks_of(problem->base.keys, kPassRows); }
  int64_t block_bytes() const {
    const int64_t width = blocks_of(problem->base.head_dim, 32) * 32;
    return kPassItems * width * (products == Products::kFloats ? 4 : 2);
  }
};

// Tasks [begin, end) of a round. Packing: head and block of items; passes: head and block of rows or of keys,
// long and short ones in turns, since neighbouring tasks go to the same thread.
using RoundFunction = void (*)(const Round& round, int64_t begin, int64_t end);

inline int64_t balanced(int64_t task, int64_t tasks) {
  return task % 2 == 0 ? task / 2 : tasks - 1 - task / 2;
}

}  // namespace graft_kernels::attention

// One entry per instruction set (attention_forward_simd.cpp, attention_grad_simd.cpp).
#define GRAFT_ATTENTION_ROUNDS(isa)                                                 \
  namespace graft_kernels::isa {                                                    \
  void attention_pack_keys(const attention::Round&, int64_t begin, int64_t end);    \
  void attention_pack_rows(const attention::Round&, int64_t begin, int64_t end);    \
  void attention_forward_rows(const attention::Round&, int64_t begin, int64_t end); \
  void attention_grad_queries(const attention::Round&, int64_t begin, int64_t end); \
  void attention_grad_keys(const attention::Round&, int64_t begin, int64_t end);    \
  }
GRAFT_ATTENTION_ROUNDS(plain)
GRAFT_ATTENTION_ROUNDS(avx2)
GRAFT_ATTENTION_ROUNDS(avx512)
#undef GRAFT_ATTENTION_ROUNDS
