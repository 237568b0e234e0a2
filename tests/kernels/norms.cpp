// Ops for the tests of the loader and of kernelize: one right RMSNorm in float32 on the CPU, and
// others that are wrong in one way each. layers.json gives every one a layer of its own.

#include <cmath>
#include <cstdint>
#include <stdexcept>
#include <string>

#include <torch/csrc/stable/ops.h>

#include "kernels/common/registration.h"

namespace {

using torch::stable::Tensor;

constexpr int64_t kZeroCentered = 3;

struct Row {
  const float* x;
  const float* weight;
  float* out;
  int64_t size;
};

template <typename Compute>
void for_each_row(const Tensor& out, const Tensor& x, const Tensor& weight,
                  const Compute& compute) {
  if (x.scalar_type() != torch::headeronly::ScalarType::Float || !out.is_contiguous()) {
    throw std::runtime_error("[test_norm] x: expected float32, got another dtype");
  }
  const Tensor rows = torch::stable::contiguous(x);
  const int64_t size = x.size(x.dim() - 1);
  for (int64_t start = 0; start < x.numel(); start += size) {
    compute(Row{static_cast<const float*>(rows.const_data_ptr()) + start,
                static_cast<const float*>(weight.const_data_ptr()),
                static_cast<float*>(out.mutable_data_ptr()) + start, size});
  }
}

double mean_square(const Row& row) {
  double sum = 0.0;
  for (int64_t i = 0; i < row.size; ++i) {
    sum += static_cast<double>(row.x[i]) * row.x[i];
  }
  return sum / static_cast<double>(row.size);
}

void scale(const Row& row, double factor, int64_t variant) {
  const float offset = variant == kZeroCentered ? 1.0F : 0.0F;
  for (int64_t i = 0; i < row.size; ++i) {
    row.out[i] = (offset + row.weight[i]) * (row.x[i] * static_cast<float>(factor));
  }
}

void norm(const Tensor& out, const Tensor& x, const Tensor& weight, double eps, int64_t variant) {
  for_each_row(out, x, weight, [&](const Row& row) {
    scale(row, 1.0 / std::sqrt(mean_square(row) + eps), variant);
  });
}

// The same numbers under another order of arguments: a host cannot use its typed call.
void norm_reordered(const Tensor& x, double eps, const Tensor& weight, int64_t variant,
                    const Tensor& out) {
  norm(out, x, weight, eps, variant);
}

// With projection = 0 the gradient forgets that the norm depends on every element.
void gradients(const Tensor& grad_x, const Tensor& grad_weight, const Tensor& grad_out,
               const Tensor& x, const Tensor& weight, double eps, int64_t variant,
               double projection) {
  Tensor total = grad_weight;
  torch::stable::zero_(total);
  const Tensor dense = torch::stable::contiguous(grad_out);
  const auto* grads = static_cast<const float*>(dense.const_data_ptr());
  auto* sums = static_cast<float*>(total.mutable_data_ptr());
  const double offset = variant == kZeroCentered ? 1.0 : 0.0;
  for_each_row(grad_x, x, weight, [&](const Row& row) {
    const double inverse = 1.0 / std::sqrt(mean_square(row) + eps);
    double dot = 0.0;
    for (int64_t i = 0; i < row.size; ++i) {
      dot += grads[i] * (offset + row.weight[i]) * row.x[i];
    }
    const double shared = projection * dot * inverse * inverse / static_cast<double>(row.size);
    for (int64_t i = 0; i < row.size; ++i) {
      const double own = grads[i] * (offset + row.weight[i]);
      row.out[i] = static_cast<float>(inverse * (own - row.x[i] * shared));
      sums[i] += static_cast<float>(grads[i] * row.x[i] * inverse);
    }
    grads += row.size;
  });
}

void norm_backward(const Tensor& grad_x, const Tensor& grad_weight, const Tensor& grad_out,
                   const Tensor& x, const Tensor& weight, double eps, int64_t variant) {
  gradients(grad_x, grad_weight, grad_out, x, weight, eps, variant, 1.0);
}

void norm_backward_wrong(const Tensor& grad_x, const Tensor& grad_weight, const Tensor& grad_out,
                         const Tensor& x, const Tensor& weight, double eps, int64_t variant) {
  gradients(grad_x, grad_weight, grad_out, x, weight, eps, variant, 0.0);
}

// Off by one part in ten thousand.
void norm_wrong(const Tensor& out, const Tensor& x, const Tensor& weight, double eps,
                int64_t variant) {
  for_each_row(out, x, weight, [&](const Row& row) {
    scale(row, 1.0001 / std::sqrt(mean_square(row) + eps), variant);
  });
}

// Right for values of usual size, wrong for small ones.
void norm_without_eps(const Tensor& out, const Tensor& x, const Tensor& weight, double,
                      int64_t variant) {
  norm(out, x, weight, 0.0, variant);
}

// Zero where a number is none.
void norm_without_nan(const Tensor& out, const Tensor& x, const Tensor& weight, double eps,
                      int64_t variant) {
  norm(out, x, weight, eps, variant);
  for_each_row(out, x, weight, [&](const Row& row) {
    for (int64_t i = 0; i < row.size; ++i) {
      row.out[i] = std::isnan(row.out[i]) ? 0.0F : row.out[i];
    }
  });
}

void norm_that_throws(const Tensor&, const Tensor&, const Tensor&, double, int64_t) {
  throw std::runtime_error("[test_norm] this kernel has a bad day");
}

// eps is a whole number and the variant has another name.
void norm_of_other_schema(const Tensor& out, const Tensor& x, const Tensor& weight, int64_t eps,
                          int64_t kind) {
  norm(out, x, weight, static_cast<double>(eps), kind);
}

}  // namespace

GRAFT_OPS(ops) {
  ops.def("norm(Tensor! out, Tensor x, Tensor weight, float eps, int variant) -> ()");
  for (const char* name : {"norm_backward", "norm_backward_wrong"}) {
    ops.def(
        (std::string(name) +
         "(Tensor! grad_x, Tensor! grad_weight, Tensor grad_out, Tensor x, Tensor weight, float "
         "eps, int variant) -> ()")
            .c_str());
  }
  ops.def("norm_reordered(Tensor x, float eps, Tensor weight, int variant, Tensor! out) -> ()");
  ops.def("norm_wrong(Tensor! out, Tensor x, Tensor weight, float eps, int variant) -> ()");
  ops.def("norm_without_eps(Tensor! out, Tensor x, Tensor weight, float eps, int variant) -> ()");
  ops.def("norm_without_nan(Tensor! out, Tensor x, Tensor weight, float eps, int variant) -> ()");
  ops.def("norm_that_throws(Tensor! out, Tensor x, Tensor weight, float eps, int variant) -> ()");
  ops.def("norm_of_other_schema(Tensor! out, Tensor x, Tensor weight, int eps, int kind) -> ()");
}

GRAFT_OPS_IMPL(CPU, ops) {
  ops.impl("norm", TORCH_BOX(&norm));
  ops.impl("norm_backward", TORCH_BOX(&norm_backward));
  ops.impl("norm_backward_wrong", TORCH_BOX(&norm_backward_wrong));
  ops.impl("norm_reordered", TORCH_BOX(&norm_reordered));
  ops.impl("norm_wrong", TORCH_BOX(&norm_wrong));
  ops.impl("norm_without_eps", TORCH_BOX(&norm_without_eps));
  ops.impl("norm_without_nan", TORCH_BOX(&norm_without_nan));
  ops.impl("norm_that_throws", TORCH_BOX(&norm_that_throws));
  ops.impl("norm_of_other_schema", TORCH_BOX(&norm_of_other_schema));
}
