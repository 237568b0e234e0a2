// The ops of kernels-community/activation under their schemas, in a package without layers.json: with
// the stable ABI as on CUDA, all eleven.

#include <cmath>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <utility>

#include "published/stable_tensor.h"

namespace {

using graft_tests::StableTensor;

double silu(double x) { return x / (1.0 + std::exp(-x)); }
double gelu(double x) { return 0.5 * x * (1.0 + std::erf(x / std::sqrt(2.0))); }
double gelu_tanh(double x) {
  return 0.5 * x * (1.0 + std::tanh(std::sqrt(2.0 / M_PI) * (x + 0.044715 * x * x * x)));
}
double gelu_fast(double x) {
  return 0.5 * x * (1.0 + std::tanh(0.79788456 * x * (1.0 + 0.044715 * x * x)));
}
double gelu_quick(double x) { return x / (1.0 + std::exp(-1.702 * x)); }

void check(const StableTensor& out, const StableTensor& input) {
  if (!out.is_contiguous() || !input.is_contiguous() || out.scalar_type() != input.scalar_type()) {
    throw std::runtime_error("[activation] expected dense tensors of one dtype");
  }
}

template <double (*kFunction)(double)>
void plain(const StableTensor& out, const StableTensor& input) {
  check(out, input);
  for (int64_t i = 0; i < input.numel(); ++i) {
    const double x = graft_tests::load(input.const_data_ptr(), input.scalar_type(), i);
    graft_tests::store(out.mutable_data_ptr(), out.scalar_type(), i, kFunction(x));
  }
}

// The activated half, rounded to the storage dtype as published, times the other.
template <typename Function>
void gate(const StableTensor& out, const StableTensor& input, bool second_is_gate,
          const Function& function) {
  check(out, input);
  const int64_t width = out.size(out.dim() - 1);
  const auto dtype = out.scalar_type();
  for (int64_t i = 0; i < out.numel(); ++i) {
    const int64_t first = i / width * 2 * width + i % width;
    double x = graft_tests::load(input.const_data_ptr(), dtype, first);
    double y = graft_tests::load(input.const_data_ptr(), dtype, first + width);
    if (second_is_gate) {
      std::swap(x, y);
    }
    graft_tests::store(out.mutable_data_ptr(), dtype, i, function(x));
    graft_tests::store(out.mutable_data_ptr(), dtype, i,
                       graft_tests::load(out.const_data_ptr(), dtype, i) * y);
  }
}

void silu_and_mul(const StableTensor& out, const StableTensor& input) {
  gate(out, input, false, silu);
}
void mul_and_silu(const StableTensor& out, const StableTensor& input) {
  gate(out, input, true, silu);
}
void gelu_and_mul(const StableTensor& out, const StableTensor& input) {
  gate(out, input, false, gelu);
}
void gelu_tanh_and_mul(const StableTensor& out, const StableTensor& input) {
  gate(out, input, false, gelu_tanh);
}
void fatrelu_and_mul(const StableTensor& out, const StableTensor& input, double threshold) {
  gate(out, input, false, [&](double x) { return x > threshold ? x : 0.0; });
}

}  // namespace

GRAFT_OPS(ops) {
  for (const char* name : {"silu_and_mul", "mul_and_silu", "gelu_and_mul", "gelu_tanh_and_mul",
                           "gelu_new", "gelu_fast", "gelu_quick", "gelu_tanh", "silu", "gelu"}) {
    ops.def((std::string(name) + "(Tensor! out, Tensor input) -> ()").c_str());
  }
  ops.def("fatrelu_and_mul(Tensor! out, Tensor input, float threshold) -> ()");
}

GRAFT_OPS_IMPL(CPU, ops) {
  ops.impl("silu", TORCH_BOX(&plain<silu>));
  ops.impl("gelu", TORCH_BOX(&plain<gelu>));
  ops.impl("gelu_tanh", TORCH_BOX(&plain<gelu_tanh>));
  ops.impl("gelu_new", TORCH_BOX(&plain<gelu_tanh>));
  ops.impl("gelu_fast", TORCH_BOX(&plain<gelu_fast>));
  ops.impl("gelu_quick", TORCH_BOX(&plain<gelu_quick>));
  ops.impl("silu_and_mul", TORCH_BOX(&silu_and_mul));
  ops.impl("mul_and_silu", TORCH_BOX(&mul_and_silu));
  ops.impl("gelu_and_mul", TORCH_BOX(&gelu_and_mul));
  ops.impl("gelu_tanh_and_mul", TORCH_BOX(&gelu_tanh_and_mul));
  ops.impl("fatrelu_and_mul", TORCH_BOX(&fatrelu_and_mul));
}
