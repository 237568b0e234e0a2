// The gated MLP's backward on the CPU: ATen's float32 products on blocks of rows, so that gate and up never exist for
// all of them.

#include <algorithm>

#include <torch/csrc/inductor/aoti_torch/generated/c_shim_cpu.h>

#include "kernels/common/aten.h"
#include "kernels/common/isa.h"
#include "kernels/common/parallel.h"
#include "kernels/mlp/mlp_backward_ops.h"

namespace graft_kernels::mlp {

namespace {

constexpr int64_t kGrainElements = 1 << 13;
constexpr int64_t kBlockRows = 512;

Tensor widened(const Tensor& tensor) { return torch::stable::to(tensor, ScalarType::Float); }
std::optional<Tensor> widened(const std::optional<Tensor>& tensor) {
  return tensor ? std::optional<Tensor>(widened(*tensor)) : std::nullopt;
}
// The value after a round trip through the dtype.
Tensor rounded(const Tensor& tensor, ScalarType dtype) {
  return dtype == ScalarType::Float ? tensor : widened(torch::stable::to(tensor, dtype));
}
Tensor product(const Tensor& a, const Tensor& b) {
  Tensor out = new_tensor(a, {a.size(0), b.size(1)});
  aten_product(out, a, b);
  return out;
}
// out = out + a b
void add_product(Tensor& out, const Tensor& a, const Tensor& b) {
  TORCH_ERROR_CODE_CHECK(
      aoti_torch_cpu_addmm_out(out.get(), out.get(), a.get(), b.get(), 1.0, 1.0));
}

void activate_backward(Dtype dtype, Function function, Tensor& gate, Tensor& up, Tensor& grad) {
  const auto run = choose_isa<ActivateBackwardFunction>(
      plain::mlp_activate_backward, avx2::mlp_activate_backward, avx512::mlp_activate_backward);
  auto* gates = static_cast<float*>(gate.mutable_data_ptr());
  auto* ups = static_cast<float*>(up.mutable_data_ptr());
  auto* grads = static_cast<float*>(grad.mutable_data_ptr());
  spread(gate.numel(), kGrainElements, [&](int64_t begin, int64_t end) {
    run(dtype, function, gates + begin, ups + begin, grads + begin, end - begin);
  });
}

// Sums over the blocks of rows, in float32.
struct Sums {
  Tensor weight;
  std::optional<Tensor> bias;

  Sums(const Tensor& of_weight, const std::optional<Tensor>& of_bias)
      : weight(zeros(of_weight)),
        bias(of_bias ? std::optional<Tensor>(zeros(*of_bias)) : std::nullopt) {}
  static Tensor zeros(const Tensor& like) {
    return torch::stable::new_zeros(like, like.sizes(), ScalarType::Float);
  }
  // The share of a block: its gradient [rows, columns of out], and what the weight was multiplied with.
  void add(const Tensor& gradient, const Tensor& input) {
    add_product(weight, transposed(gradient), input);
    if (bias) {
      torch::stable::copy_(*bias, torch::stable::subtract(*bias, column_sums(gradient), -1.0));
    }
  }
  void store(std::optional<Tensor>& to_weight, std::optional<Tensor>& to_bias) const {
    torch::stable::copy_(*to_weight, weight);
    if (bias) {
      torch::stable::copy_(*to_bias, *bias);
    }
  }
};

// A block of rows of gate or up in float32: what was kept of it, or the product again.
Tensor inner_block(std::optional<Tensor>& kept, int64_t begin, const Tensor& x,
                   const Tensor& weight, const std::optional<Tensor>& bias, ScalarType dtype) {
  if (!kept) {
    return rounded(aten_linear(x, weight, bias), dtype);
  }
  const Tensor block = torch::stable::narrow(*kept, 0, begin, x.size(0));
  // The block becomes its gradient: what was kept stays.
  return dtype == ScalarType::Float ? torch::stable::clone(block) : widened(block);
}

void train_cpu(Tensor& out, Tensor& gate, Tensor& up, const Arguments& arguments,
               Function function) {
  const auto product = [](Tensor& target, const Tensor& x, const Tensor& weight,
                          const std::optional<Tensor>& bias) {
    torch::stable::copy_(target, aten_linear(x, weight, bias));
  };
  product(gate, arguments.x, arguments.gate_weight, arguments.gate_bias);
  product(up, arguments.x, arguments.up_weight, arguments.up_bias);
  Tensor activated = torch::stable::clone(gate);
  const auto run =
      choose_isa<ActivateFunction>(plain::mlp_activate, avx2::mlp_activate, avx512::mlp_activate);
  const int64_t bytes = bytes_of(dtype_of(gate));
  auto* values = static_cast<char*>(activated.mutable_data_ptr());
  const auto* factors = static_cast<const char*>(up.const_data_ptr());
  spread(gate.numel(), kGrainElements, [&](int64_t begin, int64_t end) {
    run(dtype_of(gate), function, values + begin * bytes, factors + begin * bytes, end - begin);
  });
  product(out, activated, arguments.down_weight, arguments.down_bias);
}

void run_backward_cpu(Gradients& gradients, const Tensor& grad_out, const Arguments& arguments,
                      const Kept* kept, Function function) {
  const ScalarType dtype = scalar_type_of(arguments.x);
  const int64_t rows = count_rows(arguments.x), hidden = arguments.down_weight.size(0);
  const Tensor gate_weight = widened(arguments.gate_weight);
  const Tensor up_weight = widened(arguments.up_weight);
  const Tensor down_weight = widened(arguments.down_weight);
  const auto gate_bias = widened(arguments.gate_bias), up_bias = widened(arguments.up_bias);
  Tensor xs = torch::stable::reshape(arguments.x, {rows, hidden});
  Tensor grads_out = torch::stable::reshape(grad_out, {rows, hidden});
  Tensor grads_x = torch::stable::view(gradients.x, {rows, hidden});
  std::optional<Tensor> kept_gate, kept_up;
  if (kept != nullptr) {
    const int64_t inner = arguments.gate_weight.size(0);
    kept_gate = torch::stable::view(kept->gate, {rows, inner});
    kept_up = torch::stable::view(kept->up, {rows, inner});
  }
  std::optional<Sums> of_gate, of_up, of_down;
  if (gradients.gate_weight) {
    of_gate.emplace(*gradients.gate_weight, gradients.gate_bias);
    of_up.emplace(*gradients.up_weight, gradients.up_bias);
    of_down.emplace(*gradients.down_weight, gradients.down_bias);
  }
  for (int64_t begin = 0; begin < rows; begin += kBlockRows) {
    const int64_t count = std::min(kBlockRows, rows - begin);
    const Tensor x = widened(torch::stable::narrow(xs, 0, begin, count));
    const Tensor incoming = widened(torch::stable::narrow(grads_out, 0, begin, count));
    Tensor gate = inner_block(kept_gate, begin, x, gate_weight, gate_bias, dtype);
    Tensor up = inner_block(kept_up, begin, x, up_weight, up_bias, dtype);
    Tensor inner = product(incoming, down_weight);
    // Gate and up become their gradients, their gradient becomes act(gate) * up.
    activate_backward(dtype_of(arguments.x), function, gate, up, inner);
    if (of_gate) {
      of_gate->add(gate, x);
      of_up->add(up, x);
      of_down->add(incoming, inner);
    }
    Tensor grad_x = product(gate, gate_weight);
    add_product(grad_x, up, up_weight);
    Tensor target = torch::stable::narrow(grads_x, 0, begin, count);
    torch::stable::copy_(target, grad_x);
  }
  if (of_gate) {
    of_gate->store(gradients.gate_weight, gradients.gate_bias);
    of_up->store(gradients.up_weight, gradients.up_bias);
    of_down->store(gradients.down_weight, gradients.down_bias);
  }
}

}  // namespace

using CpuBackwardOps = BackwardOps<&train_cpu, &run_backward_cpu>;

}  // namespace graft_kernels::mlp

GRAFT_OPS_IMPL(CPU, ops) { graft_kernels::mlp::CpuBackwardOps::implement(ops); }
