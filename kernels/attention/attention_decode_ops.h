// Attention over a cache of keys as functions on tensors.
#pragma once

#include <optional>

#include "kernels/attention/attention_decode.h"
#include "kernels/attention/attention_ops.h"

namespace graft_kernels::attention {

// What attention_decode_out takes beside Arguments.
struct CacheArguments {
  const std::optional<Tensor>& lse;
  const std::optional<Tensor>& lengths;
  const std::optional<Tensor>& block_table;
  const std::optional<Tensor>& sinks;
  int64_t window;
  int64_t splits;
};

// Of shape [batch] or, with two dimensions, [batch, any]; int32, on query's device. Throws as check_decode().
void check_int32_rows(const char* op, NamedTensor value, int64_t dims, int64_t batch,
                      const Tensor& query);

// Throws std::runtime_error `[op] argument: expected …, got …`. `splits` is left as it was asked for.
DecodeProblem check_decode(const char* op, Arguments arguments, const CacheArguments& cache);

}  // namespace graft_kernels::attention
