// Gated MLPs for the tests of kernelize: a right one in float32 on the CPU, and others that are wrong in one way each.
// layers.json gives every one a layer of its own.

#include <cmath>
#include <cstdint>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include <torch/csrc/stable/ops.h>

#include "kernels/common/registration.h"

namespace {

using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;

const float* values(const Tensor& tensor) {
  if (tensor.scalar_type() != torch::headeronly::ScalarType::Float || !tensor.is_contiguous()) {
    throw std::runtime_error("[test_mlp] expected dense float32, got something else");
  }
  return static_cast<const float*>(tensor.const_data_ptr());
}

double silu(double x) { return x / (1.0 + std::exp(-x)); }
double relu(double x) { return x > 0.0 ? x : 0.0; }

struct Layer {
  const Tensor& weight;
  const OptionalTensor& bias;

  std::vector<double> operator()(const std::vector<double>& x) const {
    const int64_t rows = weight.size(0), columns = weight.size(1);
    std::vector<double> out(static_cast<size_t>(rows));
    for (int64_t row = 0; row < rows; ++row) {
      double sum = bias ? values(*bias)[row] : 0.0;
      for (int64_t column = 0; column < columns; ++column) {
        sum += values(weight)[row * columns + column] * x[static_cast<size_t>(column)];
      }
      out[static_cast<size_t>(row)] = sum;
    }
    return out;
  }
};

template <double (*kFunction)(double)>
void run(const Tensor& out, const Tensor& x, const Layer& gate, const Layer& up,
         const Layer& down) {
  const int64_t hidden = x.size(x.dim() - 1);
  auto* to = static_cast<float*>(out.mutable_data_ptr());
  for (int64_t start = 0; start < x.numel(); start += hidden) {
    const std::vector<double> row(values(x) + start, values(x) + start + hidden);
    std::vector<double> product = up(row);
    const std::vector<double> gates = gate(row);
    for (size_t i = 0; i < product.size(); ++i) {
      product[i] *= kFunction(gates[i]);
    }
    for (const double value : down(product)) {
      *to++ = static_cast<float>(value);
    }
  }
}

void mlp(Tensor out, const Tensor& x, const Tensor& gate, const Tensor& up, const Tensor& down,
         int64_t, const OptionalTensor& gate_bias, const OptionalTensor& up_bias,
         const OptionalTensor& down_bias) {
  run<silu>(out, x, {gate, gate_bias}, {up, up_bias}, {down, down_bias});
}

// Activates the other half, which many checkpoints of fused projections have first.
void mlp_swapped(Tensor out, const Tensor& x, const Tensor& gate, const Tensor& up,
                 const Tensor& down, int64_t, const OptionalTensor& gate_bias,
                 const OptionalTensor& up_bias, const OptionalTensor& down_bias) {
  run<silu>(out, x, {up, up_bias}, {gate, gate_bias}, {down, down_bias});
}

void mlp_relu(Tensor out, const Tensor& x, const Tensor& gate, const Tensor& up, const Tensor& down,
              int64_t, const OptionalTensor& gate_bias, const OptionalTensor& up_bias,
              const OptionalTensor& down_bias) {
  run<relu>(out, x, {gate, gate_bias}, {up, up_bias}, {down, down_bias});
}

// Right wherever nobody has biases.
void mlp_without_bias(Tensor out, const Tensor& x, const Tensor& gate, const Tensor& up,
                      const Tensor& down, int64_t, const OptionalTensor&, const OptionalTensor&,
                      const OptionalTensor& down_bias) {
  run<silu>(out, x, {gate, std::nullopt}, {up, std::nullopt}, {down, down_bias});
}

}  // namespace

GRAFT_OPS(ops) {
  for (const char* name : {"mlp", "mlp_swapped", "mlp_relu", "mlp_without_bias"}) {
    ops.def((std::string(name) + "(Tensor! out, Tensor x, Tensor gate_weight, Tensor up_weight, "
                                 "Tensor down_weight, int act, Tensor? "
                                 "gate_bias, Tensor? up_bias, Tensor? down_bias) -> ()")
                .c_str());
  }
}

GRAFT_OPS_IMPL(CPU, ops) {
  ops.impl("mlp", TORCH_BOX(&mlp));
  ops.impl("mlp_swapped", TORCH_BOX(&mlp_swapped));
  ops.impl("mlp_relu", TORCH_BOX(&mlp_relu));
  ops.impl("mlp_without_bias", TORCH_BOX(&mlp_without_bias));
}
