// What the host files of this package share: the checked call and the entries on the CPU.
#pragma once

#include <cstdint>

#include "kernels/common/dtype.h"

namespace graft_kernels::attention {

// Longest head on the CPU: what a task holds on its stack.
inline constexpr int64_t kMaxHeadDim = 256;
// Rows (queries times heads that share a key) of one task.
inline constexpr int64_t kMaxTaskRows = 16;
// Multiplications below which a second thread costs more than it saves.
inline constexpr int64_t kGrainMultiplications = 1 << 19;
// Keys of one task. Fixed, so that results do not depend on the number of threads.
inline constexpr int64_t kChunkKeys = 256;

// A score of each query head that takes weight and has no value.
struct Sinks {
  const void* values = nullptr;  // [Hq], or absent
  bool is_float = false;         // float32 beside 16-bit heads
};

// A checked call. B batch, S queries, T keys, Hq query heads, Hk key heads (Hq = groups * Hk), D head
// size. Strides in elements, D dense.
struct Problem {
  Dtype dtype = Dtype::kFloat32;
  int64_t batch = 0;
  int64_t queries = 0;
  int64_t keys = 0;
  int64_t key_heads = 0;
  int64_t groups = 0;
  int64_t head_dim = 0;
  const void* query = nullptr;   // [B, S, Hq, D]
  int64_t query_stride[3] = {};  // batch, position, head
  const void* key = nullptr;     // [B, Hk, T, D]
  int64_t key_stride[3] = {};    // batch, head, position
  const void* value = nullptr;   // [B, Hk, T, D]
  int64_t value_stride[3] = {};  // batch, head, position
  void* out = nullptr;           // [B, S, Hq, D]
  int64_t out_stride[3] = {};    // batch, position, head
  const void* mask = nullptr;    // [B or 1, Hq or 1, S or 1, T], added to the scores, or absent
  bool float_mask = false;       // float32 beside 16-bit heads
  int64_t mask_stride[3] = {};   // batch, head, position; zero where one serves all
  float scale = 1.0F;
  float softcap = 0.0F;  // scores become softcap * tanh(score / softcap); 0: off
  bool causal = false;   // query s sees keys up to T - S + s

  constexpr int64_t rows() const { return queries * groups; }  // that share a key head
  constexpr int64_t row_blocks() const { return (rows() + kMaxTaskRows - 1) / kMaxTaskRows; }
  int64_t chunks() const { return keys == 0 ? 1 : (keys + kChunkKeys - 1) / kChunkKeys; }
  int64_t blocks() const { return batch * key_heads * row_blocks(); }
};

// A task is one chunk of keys for one block of rows; task = block * chunks + chunk. It leaves for each
// row: a reference (its largest score or one not far below), the sum of exp(score - reference), and the weighted sum of
// values.
struct Partial {
  float* values = nullptr;  // [task][row][2 + D]
  static int64_t stride(const Problem& problem) { return problem.head_dim + 2; }
  static int64_t task_rows(const Problem& problem) {
    return problem.rows() < kMaxTaskRows ? problem.rows() : kMaxTaskRows;
  }
  float* row(const Problem& problem, int64_t task, int64_t row) const {
    return values + (task * task_rows(problem) + row) * stride(problem);
  }
};

// Tasks [begin, end), and blocks [begin, end) of rows merged from their chunks into out.
using TasksFunction = void (*)(const Problem& problem, const Partial& partial, int64_t begin,
                               int64_t end);

}  // namespace graft_kernels::attention

// One entry per instruction set (attention_simd.cpp).
namespace graft_kernels::plain {
void attention_tasks(const attention::Problem&, const attention::Partial&, int64_t, int64_t);
void attention_merge(const attention::Problem&, const attention::Partial&, int64_t, int64_t);
}  // namespace graft_kernels::plain
namespace graft_kernels::avx2 {
void attention_tasks(const attention::Problem&, const attention::Partial&, int64_t, int64_t);
void attention_merge(const attention::Problem&, const attention::Partial&, int64_t, int64_t);
}  // namespace graft_kernels::avx2
namespace graft_kernels::avx512 {
void attention_tasks(const attention::Problem&, const attention::Partial&, int64_t, int64_t);
void attention_merge(const attention::Problem&, const attention::Partial&, int64_t, int64_t);
}  // namespace graft_kernels::avx512
