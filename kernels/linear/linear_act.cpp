// out = act(x weight^T + bias) + residual, in one call.
//
// out       [..., M]  x's dtype                    contiguous; may be the residual
// x         [..., K]  float32, bfloat16, float16   last dimension contiguous, rows strided
// weight    [M, K]    x's dtype                    contiguous, read where it lies
// bias      [M]       x's dtype                    may be absent
// act       0 none, 1 silu, 2 gelu, 3 gelu_tanh, 4 gelu_quick, 5 relu
// residual  [..., M]  x's dtype                    contiguous, may be absent
// Sums, activation and the residual's addition are float32. Where our own products run (few rows, Hopper's tiles)
// the result is rounded once; where ATen's do, its sums are rounded before.
// Throws   std::runtime_error `[op] argument: expected …, got …`
// Devices  cpu, cuda
// Autograd no, deterministic yes (independent of threads), thread-safe yes, graph-capturable yes
// Source   torch.nn.functional.linear, silu, gelu, relu; gelu_quick is transformers' QuickGELUActivation

#include "kernels/linear/linear_act_ops.h"

namespace graft_kernels::linear {

Activation check_act_arguments(const char* op, const Tensor& out, const ActArguments& arguments) {
  check_arguments(op, out, arguments.x, {{arguments.weight, arguments.bias}});
  if (arguments.residual) {
    const NamedTensor residual{"residual", *arguments.residual};
    check_same_shape(op, residual, {"out", out});
    check_dtype(op, residual, scalar_type_of(arguments.x), "that of x");
    check_same_device(op, residual, {"x", arguments.x});
    if (!residual.tensor.is_contiguous()) {
      fail(op, "residual", "contiguous memory", "strides");
    }
  }
  if (arguments.act < 0 || arguments.act > static_cast<int64_t>(Activation::kRelu)) {
    fail(op, "act", "0 (none), 1 (silu), 2 (gelu), 3 (gelu_tanh), 4 (gelu_quick) or 5 (relu)",
         std::to_string(arguments.act));
  }
  return static_cast<Activation>(arguments.act);
}

namespace {

// Meta tensors have no memory: the checks are all there is to do.
void run_meta(const char*, Tensor&, const ActArguments&, Activation, int64_t) {}

}  // namespace

using ActMetaOps = ActOps<&run_meta>;

}  // namespace graft_kernels::linear

GRAFT_OPS_IMPL(Meta, ops) { graft_kernels::linear::ActMetaOps::implement(ops); }
