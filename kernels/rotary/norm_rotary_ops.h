// The ops with a norm as functions on tensors; each device file implements `run`.
#pragma once

#include <tuple>

#include "kernels/rotary/rotary_append_ops.h"
#include "kernels/rotary/rotary_ops.h"

namespace graft_kernels::rotary {

// What the norm of a call is given.
struct NormArguments {
  const Tensor& query_weight;
  const Tensor& key_weight;
  double eps;
  int64_t variant;
};

// Checks the norm of `op` and adds it to a checked call. Throws std::runtime_error
// `[op] argument: expected …, got …`.
void add_norm(const char* op, const NormArguments& arguments, const Tensor& query,
              Problem& problem);

// The two ops for a device whose work is done by kRun.
template <void (*kRun)(const Problem&, const Tensor& query)>
struct NormOps {
  static void run(const char* op, const Arguments& arguments, const NormArguments& norm,
                  bool interleaved) {
    Problem problem = check_problem(op, arguments, interleaved, /*inverse=*/false);
    add_norm(op, norm, arguments.query, problem);
    kRun(problem, arguments.query);
  }
  static void norm_rotary_out(Tensor query_out, Tensor key_out, const Tensor& query,
                              const Tensor& key, const Tensor& query_weight,
                              const Tensor& key_weight, const Tensor& cos, const Tensor& sin,
                              double eps, int64_t variant, bool interleaved) {
    run("norm_rotary_out", {query_out, key_out, query, key, cos, sin},
        {query_weight, key_weight, eps, variant}, interleaved);
  }
  static std::tuple<Tensor, Tensor> norm_rotary(const Tensor& query, const Tensor& key,
                                                const Tensor& query_weight,
                                                const Tensor& key_weight, const Tensor& cos,
                                                const Tensor& sin, double eps, int64_t variant,
                                                bool interleaved) {
    Tensor query_out = new_tensor(query, query.sizes());
    Tensor key_out = new_tensor(key, key.sizes());
    run("norm_rotary", {query_out, key_out, query, key, cos, sin},
        {query_weight, key_weight, eps, variant}, interleaved);
    return {query_out, key_out};
  }
  static void implement(torch::stable::detail::StableLibrary& library) {
    library.impl("norm_rotary_out", TORCH_BOX(&norm_rotary_out));
    library.impl("norm_rotary", TORCH_BOX(&norm_rotary));
  }
};

template <void (*kRun)(const AppendProblem&, const Tensor& query)>
struct NormAppendOps {
  static void norm_rotary_append_out(Tensor query_out, Tensor keys, Tensor values,
                                     const Tensor& query, const Tensor& key, const Tensor& value,
                                     const Tensor& query_weight, const Tensor& key_weight,
                                     const Tensor& cos, const Tensor& sin, const Tensor& lengths,
                                     const Tensor& positions, double eps, int64_t variant,
                                     bool interleaved) {
    constexpr char kOp[] = "norm_rotary_append_out";
    AppendProblem problem = check_append(
        kOp, {query_out, keys, values, query, key, value, cos, sin, lengths, positions},
        interleaved);
    add_norm(kOp, {query_weight, key_weight, eps, variant}, query, problem.base);
    kRun(problem, query);
  }
  static void implement(torch::stable::detail::StableLibrary& library) {
    library.impl("norm_rotary_append_out", TORCH_BOX(&norm_rotary_append_out));
  }
};

}  // namespace graft_kernels::rotary
