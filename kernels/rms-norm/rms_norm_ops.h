// The package's ops as functions on tensors; each device file implements `run`.
#pragma once

#include <tuple>

#include "kernels/common/registration.h"
#include "kernels/common/tensor_checks.h"
#include "kernels/rms-norm/rms_norm.h"

namespace graft_kernels::rms_norm {

// Checks the arguments of `op` and describes the call. `residual` and `sum` come together or not at
// all.
Problem check_problem(const char* op, NamedTensor out, const Tensor* sum, const Tensor& x,
                      const Tensor* residual, const Tensor& weight, double eps, int64_t variant);

// A new tensor with the shape of x and the dtype that the variant gives.
Tensor new_output(const Tensor& x, const Tensor& weight, int64_t variant);

// The four ops for a device whose work is done by kRun.
template <void (*kRun)(const Problem&, const Tensor& x)>
struct Ops {
  static void rms_norm_out(Tensor& out, const Tensor& x, const Tensor& weight, double eps,
                           int64_t variant) {
    kRun(check_problem("rms_norm_out", {"out", out}, nullptr, x, nullptr, weight, eps, variant), x);
  }
  static void add_rms_norm_out(Tensor& out, Tensor& sum_out, const Tensor& x,
                               const Tensor& residual, const Tensor& weight, double eps,
                               int64_t variant) {
    kRun(check_problem("add_rms_norm_out", {"out", out}, &sum_out, x, &residual, weight, eps,
                       variant),
         x);
  }
  static Tensor rms_norm(const Tensor& x, const Tensor& weight, double eps, int64_t variant) {
    Tensor out = new_output(x, weight, variant);
    kRun(check_problem("rms_norm", {"out", out}, nullptr, x, nullptr, weight, eps, variant), x);
    return out;
  }
  static std::tuple<Tensor, Tensor> add_rms_norm(const Tensor& x, const Tensor& residual,
                                                 const Tensor& weight, double eps,
                                                 int64_t variant) {
    Tensor out = new_output(x, weight, variant);
    Tensor sum = new_tensor(x, x.sizes());
    kRun(check_problem("add_rms_norm", {"out", out}, &sum, x, &residual, weight, eps, variant), x);
    return {out, sum};
  }
  static void implement(torch::stable::detail::StableLibrary& library) {
    library.impl("rms_norm_out", TORCH_BOX(&rms_norm_out));
    library.impl("add_rms_norm_out", TORCH_BOX(&add_rms_norm_out));
    library.impl("rms_norm", TORCH_BOX(&rms_norm));
    library.impl("add_rms_norm", TORCH_BOX(&add_rms_norm));
  }
};

}  // namespace graft_kernels::rms_norm
