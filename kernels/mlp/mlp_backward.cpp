// Gradients of the gated MLP, in two forms: mlp_backward makes gate and up again from x, so that the forward keeps
// nothing else; mlp_train is a forward that hands them out, and mlp_train_backward takes them back, a fifth fewer
// products for 2 I values a row. What both make again is the activation.
//
//   h = act(x gate^T) * (x up^T),  grad_h = grad_out down
//   grad_gate = grad_h * (x up^T) * act'(x gate^T),  grad_up = grad_h * act(x gate^T)
//   grad_x = grad_gate gate + grad_up up
//   grad_down_weight = grad_out^T h,  grad_gate_weight = grad_gate^T x,  grad_up_weight = grad_up^T x
//   and the sums over rows of grad_gate, grad_up, grad_out for the biases
//
// grad_out  [..., H]  x's shape and dtype, contiguous; the other arguments as in the forward (mlp.cpp)
// gate, up  [..., I]  x's dtype, contiguous: as mlp_train gave them; not written to
// weights   whether anybody wants the gradients of weights and biases
// returns   grad_x, then those of gate, up and down weight, then those of their biases, in the dtypes of what they
//           belong to; those that nobody wants or that belong to no bias have no elements
// Products by ATen: in float32 on the CPU, in the dtype with float32 sums on CUDA. There many rows of a 16-bit dtype have
// grad_h from Hopper's tiles, which finish it to grad_gate, grad_up and h; it is rounded to the dtype before, as ATen's.
// Throws   std::runtime_error `[op] argument: expected …, got …`
// Devices  cpu, cuda   deterministic as ATen's products are, thread-safe yes

#include <vector>

#include "kernels/mlp/mlp_backward_ops.h"

namespace graft_kernels::mlp {

namespace {

// Meta tensors have no memory: the checks are all there is to do.
void train_meta(Tensor&, Tensor&, Tensor&, const Arguments&, Function) {}
void run_meta(Gradients&, const Tensor&, const Arguments&, const Kept*, Function) {}

Tensor like(const Tensor& tensor) { return new_tensor(tensor, tensor.sizes()); }
std::optional<Tensor> like(const std::optional<Tensor>& tensor) {
  return tensor ? std::optional<Tensor>(like(*tensor)) : std::nullopt;
}

}  // namespace

Function check_backward(const char* op, const Tensor& grad_out, const Arguments& arguments) {
  check_same_shape(op, {"grad_out", grad_out}, {"x", arguments.x});
  check_like(op, {"grad_out", grad_out}, {"x", arguments.x});
  if (!grad_out.is_contiguous()) {
    fail(op, "grad_out", "contiguous memory", "strides");
  }
  return check_arguments(op, grad_out, arguments);
}

Tensor new_inner(const Arguments& arguments) {
  std::vector<int64_t> sizes;
  for (int64_t dim = 0; dim + 1 < arguments.x.dim(); ++dim) {
    sizes.push_back(arguments.x.size(dim));
  }
  sizes.push_back(arguments.gate_weight.size(0));
  return new_tensor(arguments.x, sizes);
}

void check_kept(const char* op, const Kept& kept, const Arguments& arguments) {
  const int64_t rows = count_rows(arguments.x), inner = arguments.gate_weight.size(0);
  for (const NamedTensor& value : {NamedTensor{"gate", kept.gate}, NamedTensor{"up", kept.up}}) {
    check_has_rows(op, value);
    if (value.tensor.size(value.tensor.dim() - 1) != inner ||
        value.tensor.numel() != rows * inner) {
      fail(op, value.name, std::to_string(rows) + " rows of " + std::to_string(inner),
           shape_text(value.tensor));
    }
    check_like(op, value, {"x", arguments.x});
    if (!value.tensor.is_contiguous()) {
      fail(op, value.name, "contiguous memory", "strides");
    }
  }
}

Gradients new_gradients(const Arguments& arguments, bool weights) {
  Gradients gradients{like(arguments.x), {}, {}, {}, {}, {}, {}};
  if (weights) {
    gradients.gate_weight = like(arguments.gate_weight);
    gradients.up_weight = like(arguments.up_weight);
    gradients.down_weight = like(arguments.down_weight);
    gradients.gate_bias = like(arguments.gate_bias);
    gradients.up_bias = like(arguments.up_bias);
    gradients.down_bias = like(arguments.down_bias);
  }
  return gradients;
}

using MetaBackwardOps = BackwardOps<&train_meta, &run_meta>;

}  // namespace graft_kernels::mlp

GRAFT_OPS_IMPL(Meta, ops) { graft_kernels::mlp::MetaBackwardOps::implement(ops); }
