// The gated MLP's backward on CUDA: ATen's products with one kernel of ours between them, which turns gate and up into
// their gradients in place.

#include <algorithm>

#include <torch/csrc/inductor/aoti_torch/generated/c_shim_cuda.h>

#include "kernels/common/aten.h"
#include "kernels/common/cuda_launch.h"
#include "kernels/mlp/mlp_backward_ops.h"
#include "kernels/mlp/mlp_kernel.cuh"

namespace graft_kernels::mlp {

namespace {

constexpr unsigned kActivateThreads = 256;

// out = out + a b
void add_product(Tensor& out, const Tensor& a, const Tensor& b) {
  TORCH_ERROR_CODE_CHECK(
      aoti_torch_cuda_addmm_out(out.get(), out.get(), a.get(), b.get(), 1.0, 1.0));
}

template <typename T>
void activate_backward(const CudaScope& scope, Function function, Tensor& gate, Tensor& up,
                       Tensor& grad) {
  const auto launch = [&](auto size) {
    constexpr int kSize = decltype(size)::value;
    const int64_t vectors = gate.numel() / kSize;
    const int64_t blocks = std::min<int64_t>((vectors + kActivateThreads - 1) / kActivateThreads,
                                             16 * scope.attribute(cudaDevAttrMultiProcessorCount));
    activate_backward_kernel<T, kSize>
        <<<static_cast<unsigned>(blocks), kActivateThreads, 0, scope.stream()>>>(
            function, static_cast<T*>(gate.mutable_data_ptr()),
            static_cast<T*>(up.mutable_data_ptr()), static_cast<T*>(grad.mutable_data_ptr()),
            vectors);
    check_cuda(cudaGetLastError(), "activate_backward_kernel");
  };
  if (gate.numel() == 0) {
    return;
  }
  // ATen's own results are aligned to far more than 16 bytes.
  gate.numel() % kVectorSize<T> == 0 ? launch(std::integral_constant<int, kVectorSize<T>>())
                                     : launch(std::integral_constant<int, 1>());
}

void activate_backward_of(const CudaScope& scope, Dtype dtype, Function function, Tensor& gate,
                          Tensor& up, Tensor& grad) {
  switch (dtype) {
    case Dtype::kFloat32:
      return activate_backward<float>(scope, function, gate, up, grad);
    case Dtype::kBfloat16:
      return activate_backward<Bf16>(scope, function, gate, up, grad);
    case Dtype::kFloat16:
      return activate_backward<Fp16>(scope, function, gate, up, grad);
  }
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
                       Function function) {
  const CudaScope scope(grad_out);
  const int64_t rows = count_rows(arguments.x), hidden = arguments.down_weight.size(0);
  const int64_t inner = arguments.down_weight.size(1);
  const Tensor x = torch::stable::view(arguments.x, {rows, hidden});
  const Tensor incoming = torch::stable::view(grad_out, {rows, hidden});
  Tensor gate = aten_linear(x, arguments.gate_weight, arguments.gate_bias);
  Tensor up = aten_linear(x, arguments.up_weight, arguments.up_bias);
  Tensor activated = torch::stable::new_empty(x, {rows, inner});
  aten_product(activated, incoming, arguments.down_weight);
  // Gate and up become their gradients, their gradient becomes act(gate) * up.
  activate_backward_of(scope, dtype_of(x), function, gate, up, activated);
  if (gradients.gate_weight) {
    store_gradients(gradients.gate_weight, gradients.gate_bias, gate, x);
    store_gradients(gradients.up_weight, gradients.up_bias, up, x);
    store_gradients(gradients.down_weight, gradients.down_bias, incoming, activated);
  }
  Tensor grad_x = torch::stable::view(gradients.x, {rows, hidden});
  aten_product(grad_x, gate, arguments.gate_weight);
  add_product(grad_x, up, arguments.up_weight);
}

}  // namespace

using CudaBackwardOps = BackwardOps<&run_backward_cuda>;

}  // namespace graft_kernels::mlp

GRAFT_OPS_IMPL(CUDA, ops) { graft_kernels::mlp::CudaBackwardOps::implement(ops); }
