// Attention for training on the CPU: packed sequences are worked on one after another.

#include "kernels/attention/attention_rounds_cpu.h"
#include "kernels/attention/attention_train_ops.h"

namespace graft_kernels::attention {

namespace {

void run_dense(const TrainProblem& problem) {
  problem.backward ? run_backward(problem) : run_forward(problem);
}

// Never falling, from 0 to `last`.
const int32_t* check_starts(const char* argument, const Tensor& starts, int64_t last) {
  const int32_t* values = static_cast<const int32_t*>(read_pointer(starts));
  const int64_t count = starts.size(0);
  bool rises = values[0] == 0 && values[count - 1] == last;
  for (int64_t i = 1; i < count; ++i) {
    rises = rises && values[i] >= values[i - 1];
  }
  if (!rises) {
    fail("attention_varlen", argument,
         "numbers from 0 to " + std::to_string(last) + ", never falling", "others");
  }
  return values;
}

template <typename Pointer>
void advance(Pointer& pointer, int64_t bytes) {
  if (pointer != nullptr) {
    pointer = reinterpret_cast<Pointer>(reinterpret_cast<uintptr_t>(pointer) +
                                        static_cast<uintptr_t>(bytes));
  }
}

// The part of `all` that is one sequence.
TrainProblem part_of(const TrainProblem& all, int64_t query, int64_t queries, int64_t key,
                     int64_t keys) {
  TrainProblem part = all;
  Problem& base = part.base;
  const int64_t size = bytes_of(base.dtype);
  base.queries = queries;
  base.keys = keys;
  advance(base.query, query * base.query_stride[1] * size);
  advance(base.out, query * base.out_stride[1] * size);
  advance(part.grad_out, query * part.grad_out_stride[1] * size);
  advance(part.grad_query, query * part.grad_query_stride[1] * size);
  advance(part.lse, query * 4);
  advance(part.delta, query * 4);
  advance(base.key, key * base.key_stride[2] * size);
  advance(base.value, key * base.value_stride[2] * size);
  advance(part.grad_key, key * part.grad_key_stride[2] * size);
  advance(part.grad_value, key * part.grad_value_stride[2] * size);
  return part;
}

void run_cpu(const TrainProblem& problem, const Sequences* sequences, const Tensor&) {
  if (sequences == nullptr) {
    return run_dense(problem);
  }
  const int32_t* query = check_starts("cu_seqlens_q", sequences->query, problem.base.queries);
  const int32_t* key = check_starts("cu_seqlens_k", sequences->key, problem.base.keys);
  for (int64_t i = 0; i + 1 < sequences->query.size(0); ++i) {
    run_dense(part_of(problem, query[i], query[i + 1] - query[i], key[i], key[i + 1] - key[i]));
  }
}

using CpuTrainOps = TrainOps<&run_cpu>;

}  // namespace

}  // namespace graft_kernels::attention

GRAFT_OPS_IMPL(CPU, ops) { graft_kernels::attention::CpuTrainOps::implement(ops); }
