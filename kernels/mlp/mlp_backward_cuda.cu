// The gated MLP that trains on CUDA. Forward: gate and up as one product of Hopper's tiles where they take it, else
// ATen's two with our activation after them. Backward: the product with down's weight, whose sums Hopper's tiles turn into
// the gradients of gate and up, elsewhere ATen's and a kernel of ours; then ATen's products.

#include <cstdint>

#include <torch/csrc/inductor/aoti_torch/generated/c_shim_cuda.h>

#include "kernels/common/aten.h"
#include "kernels/mlp/mlp_cuda.h"

namespace graft_kernels::mlp {

namespace {

// out = out + a b
void add_product(Tensor& out, const Tensor& a, const Tensor& b) {
  TORCH_ERROR_CODE_CHECK(
      aoti_torch_cuda_addmm_out(out.get(), out.get(), a.get(), b.get(), 1.0, 1.0));
}

// Gate and up become their gradients in grad_gate and grad_up, and `activated` act(gate) * up.
void make_gradients(const CudaScope& scope, const GradientProblem& problem) {
  if (takes_gradient_tiles(scope, problem)) {
    return run_gradient_tiles(scope, problem);
  }
  aten_product(problem.activated, problem.grad_out, problem.down_weight);
  over_vectors(scope, problem.products.gate, problem.products.up,
               [&](auto type, auto size, unsigned blocks, int64_t vectors) {
                 using T = decltype(type);
                 activate_backward_kernel<T, decltype(size)::value>
                     <<<blocks, kActivateThreads, 0, scope.stream()>>>(
                         problem.function, problem.pointers<T>(), vectors);
               });
}

// out = x weight^T + bias, all of one dtype, matrices.
void product_into(Tensor& out, const Tensor& x, const Tensor& weight,
                  const std::optional<Tensor>& bias) {
  if (bias) {
    TORCH_ERROR_CODE_CHECK(aoti_torch_cuda_addmm_out(out.get(), bias->get(), x.get(),
                                                     transposed(weight).get(), 1.0, 1.0));
  } else {
    aten_product(out, x, transposed(weight));
  }
}

void train_cuda(Tensor& out, Tensor& gate, Tensor& up, const Arguments& arguments,
                Function function) {
  const CudaScope scope(out);
  const int64_t rows = count_rows(arguments.x), hidden = arguments.down_weight.size(0);
  const int64_t inner = arguments.down_weight.size(1);
  const Tensor x = torch::stable::view(arguments.x, {rows, hidden});
  Tensor gates = torch::stable::view(gate, {rows, inner});
  Tensor ups = torch::stable::view(up, {rows, inner});
  const Tensor activated = new_tensor(x, {rows, inner});
  if (takes_tiles(scope, arguments, rows)) {
    GateUpProblem problem = describe_gate_up(arguments, function, rows, activated);
    problem.gate = gates.mutable_data_ptr();
    problem.up = ups.mutable_data_ptr();
    run_tiles(scope, dtype_of(x), problem);
  } else {
    product_into(gates, x, arguments.gate_weight, arguments.gate_bias);
    product_into(ups, x, arguments.up_weight, arguments.up_bias);
    activate_all(scope, function, gates, ups, activated);
  }
  Tensor matrix = torch::stable::view(out, {rows, hidden});
  product_into(matrix, activated, arguments.down_weight, arguments.down_bias);
}

// The gradients of a weight and its bias from the gradient of their product.
void store_gradients(std::optional<Tensor>& weight, std::optional<Tensor>& bias,
                     const Tensor& gradient, const Tensor& input) {
  aten_product(*weight, transposed(gradient), input);
  if (bias) {
    torch::stable::copy_(*bias, column_sums(gradient));
  }
}

void run_backward_cuda(Gradients& gradients, const Tensor& grad_out, const Arguments& arguments,
                       const Kept* kept, Function function) {
  const CudaScope scope(grad_out);
  const int64_t rows = count_rows(arguments.x), hidden = arguments.down_weight.size(0);
  const int64_t inner = arguments.down_weight.size(1);
  const Tensor x = torch::stable::view(arguments.x, {rows, hidden});
  const Tensor incoming = torch::stable::view(grad_out, {rows, hidden});
  // What was kept stays; products that are made here become their gradients where they lie.
  const auto inner_of = [&](const Tensor& weight, const std::optional<Tensor>& bias) {
    return kept == nullptr ? aten_linear(x, weight, bias) : new_tensor(x, {rows, inner});
  };
  Tensor gate = inner_of(arguments.gate_weight, arguments.gate_bias);
  Tensor up = inner_of(arguments.up_weight, arguments.up_bias);
  Tensor activated = new_tensor(x, {rows, inner});
  const Kept products = kept == nullptr ? Kept{gate, up} : *kept;
  make_gradients(scope, {incoming, arguments.down_weight, products, gate, up, activated, function});
  if (gradients.gate_weight) {
    store_gradients(gradients.down_weight, gradients.down_bias, incoming, activated);
    store_gradients(gradients.gate_weight, gradients.gate_bias, gate, x);
    store_gradients(gradients.up_weight, gradients.up_bias, up, x);
  }
  Tensor grad_x = torch::stable::view(gradients.x, {rows, hidden});
  aten_product(grad_x, gate, arguments.gate_weight);
  add_product(grad_x, up, arguments.up_weight);
}

}  // namespace

using CudaBackwardOps = BackwardOps<&train_cuda, &run_backward_cuda>;

}  // namespace graft_kernels::mlp

GRAFT_OPS_IMPL(CUDA, ops) { graft_kernels::mlp::CudaBackwardOps::implement(ops); }
