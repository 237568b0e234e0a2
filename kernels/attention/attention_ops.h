// The package's ops as functions on tensors.
#pragma once

#include <optional>

#include "kernels/attention/attention.h"
#include "kernels/common/registration.h"
#include "kernels/common/tensor_checks.h"

namespace graft_kernels::attention {

// The arguments of a call, in the order of the schema.
struct Arguments {
  const Tensor& out;
  const Tensor& query;
  const Tensor& key;
  const Tensor& value;
  const std::optional<Tensor>& mask;
  double scale;
  double softcap;
  bool causal;
  bool paged = false;  // keys and values [pages, Hk, page, D]: their batch is not the query's
};

// Both throw std::runtime_error `[op] argument: expected …, got …`.
Problem check_problem(const char* op, const Arguments& arguments);
// query [..., Hq, D]; sinks [Hq] or absent.
Sinks check_sinks(const char* op, const std::optional<Tensor>& sinks, const Tensor& query);

// The two ops for a device whose work is done by kRun.
template <void (*kRun)(const Problem&)>
struct Ops {
  static void attention_out(Tensor out, const Tensor& query, const Tensor& key, const Tensor& value,
                            const std::optional<Tensor>& mask, double scale, double softcap,
                            bool causal) {
    kRun(check_problem("attention_out", {out, query, key, value, mask, scale, softcap, causal}));
  }
  static Tensor attention(const Tensor& query, const Tensor& key, const Tensor& value,
                          const std::optional<Tensor>& mask, double scale, double softcap,
                          bool causal) {
    Tensor out = torch::stable::new_empty(query, query.sizes());
    kRun(check_problem("attention", {out, query, key, value, mask, scale, softcap, causal}));
    return out;
  }
  static void implement(torch::stable::detail::StableLibrary& library) {
    library.impl("attention_out", TORCH_BOX(&attention_out));
    library.impl("attention", TORCH_BOX(&attention));
  }
};

}  // namespace graft_kernels::attention
