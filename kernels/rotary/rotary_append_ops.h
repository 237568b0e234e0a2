// The op as a function on tensors; each device file implements `run`.
#pragma once

#include "kernels/rotary/rotary_append.h"
#include "kernels/rotary/rotary_ops.h"

namespace graft_kernels::rotary {

// The tensors of a call, in the order of the schema.
struct AppendArguments {
  const Tensor& query_out;
  const Tensor& keys;
  const Tensor& values;
  const Tensor& query;
  const Tensor& key;
  const Tensor& value;
  const Tensor& cos;
  const Tensor& sin;
  const Tensor& lengths;
  const Tensor& positions;
};

// Throws std::runtime_error `[op] argument: expected …, got …`.
AppendProblem check_append(const char* op, const AppendArguments& arguments, bool interleaved);

template <void (*kRun)(const AppendProblem&, const Tensor& query)>
struct AppendOps {
  static void rotary_append_out(Tensor query_out, Tensor keys, Tensor values, const Tensor& query,
                                const Tensor& key, const Tensor& value, const Tensor& cos,
                                const Tensor& sin, const Tensor& lengths, const Tensor& positions,
                                bool interleaved) {
    kRun(check_append("rotary_append_out",
                      {query_out, keys, values, query, key, value, cos, sin, lengths, positions},
                      interleaved),
         query);
  }
  static void implement(torch::stable::detail::StableLibrary& library) {
    library.impl("rotary_append_out", TORCH_BOX(&rotary_append_out));
  }
};

}  // namespace graft_kernels::rotary
