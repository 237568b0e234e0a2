// Attention of new tokens that join the cache in the same call, as functions on tensors.
#pragma once

#include <optional>

#include "kernels/attention/attention_decode_ops.h"

namespace graft_kernels::attention {

// What attention_append_out takes beside Arguments and CacheArguments.
struct AppendArguments {
  const Tensor& new_key;
  const Tensor& new_value;
  const std::optional<Tensor>& cos;
  const std::optional<Tensor>& sin;
  const std::optional<Tensor>& positions;
  bool interleaved;
};

// Throws std::runtime_error `[op] argument: expected …, got …`.
DecodeProblem check_append(const char* op, const Arguments& arguments, const CacheArguments& cache,
                           const AppendArguments& append);

// The two ops for a device whose work is done by kRun; `like` is a tensor of the call, for further memory
// and its device.
template <void (*kRun)(DecodeProblem problem, const Tensor& like)>
struct CacheOps {
  using Optional = std::optional<Tensor>;
  static void attention_decode_out(Tensor out, const Optional& lse, const Tensor& query,
                                   const Tensor& key, const Tensor& value, const Optional& lengths,
                                   const Optional& block_table, const Optional& mask,
                                   const Optional& sinks, double scale, double softcap,
                                   int64_t window, bool causal, int64_t splits) {
    kRun(
        check_decode("attention_decode_out", {out, query, key, value, mask, scale, softcap, causal},
                     {lse, lengths, block_table, sinks, window, splits}),
        query);
  }
  static void attention_append_out(Tensor out, const Optional& lse, Tensor key, Tensor value,
                                   const Tensor& query, const Tensor& new_key,
                                   const Tensor& new_value, const Optional& cos,
                                   const Optional& sin, const Optional& lengths,
                                   const Optional& positions, const Optional& block_table,
                                   const Optional& sinks, double scale, double softcap,
                                   int64_t window, bool causal, bool interleaved, int64_t splits) {
    const Optional none;
    kRun(
        check_append("attention_append_out", {out, query, key, value, none, scale, softcap, causal},
                     {lse, lengths, block_table, sinks, window, splits},
                     {new_key, new_value, cos, sin, positions, interleaved}),
        query);
  }
  static void implement(torch::stable::detail::StableLibrary& library) {
    library.impl("attention_decode_out", TORCH_BOX(&attention_decode_out));
    library.impl("attention_append_out", TORCH_BOX(&attention_append_out));
  }
};

}  // namespace graft_kernels::attention
