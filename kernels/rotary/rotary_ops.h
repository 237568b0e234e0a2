// The package's ops as functions on tensors; each device file implements `run`.
#pragma once

#include <tuple>

#include "kernels/common/registration.h"
#include "kernels/common/tensor_checks.h"
#include "kernels/rotary/rotary.h"

namespace graft_kernels::rotary {

// The tensors of a call, in the order of the schema.
struct Arguments {
  const Tensor& query_out;
  const Tensor& key_out;
  const Tensor& query;
  const Tensor& key;
  const Tensor& cos;
  const Tensor& sin;
};

Problem check_problem(const char* op, const Arguments& arguments, bool interleaved, bool inverse);

// The two ops for a device whose work is done by kRun.
template <void (*kRun)(const Problem&, const Tensor& query)>
struct Ops {
  static void rotary_out(Tensor query_out, Tensor key_out, const Tensor& query, const Tensor& key,
                         const Tensor& cos, const Tensor& sin, bool interleaved, bool inverse) {
    kRun(check_problem("rotary_out", {query_out, key_out, query, key, cos, sin}, interleaved,
                       inverse),
         query);
  }
  static std::tuple<Tensor, Tensor> rotary(const Tensor& query, const Tensor& key,
                                           const Tensor& cos, const Tensor& sin, bool interleaved,
                                           bool inverse) {
    Tensor query_out = new_tensor(query, query.sizes());
    Tensor key_out = new_tensor(key, key.sizes());
    kRun(check_problem("rotary", {query_out, key_out, query, key, cos, sin}, interleaved, inverse),
         query);
    return {query_out, key_out};
  }
  static void implement(torch::stable::detail::StableLibrary& library) {
    library.impl("rotary_out", TORCH_BOX(&rotary_out));
    library.impl("rotary", TORCH_BOX(&rotary));
  }
};

}  // namespace graft_kernels::rotary
