#include "graft/layers/guard.h"

#include <cmath>
#include <functional>
#include <limits>

#include <ATen/CPUGeneratorImpl.h>
#include <c10/core/InferenceMode.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

namespace graft::layers {

namespace {

constexpr double kAllowedRatio = 2.0;  // of the reference's own error
constexpr uint64_t kSeed = 20'261'123;

double epsilon(at::ScalarType dtype) {
  switch (dtype) {
    case at::kBFloat16:
      return 0x1p-8;
    case at::kHalf:
      return 0x1p-11;
    default:
      return 0x1p-24;
  }
}

// Seeded inputs, made on the CPU so that every device sees the same numbers.
class Inputs {
 public:
  Inputs(at::ScalarType dtype, at::Device device)
      : dtype_(dtype), device_(device), generator_(at::detail::createCPUGenerator(kSeed)) {}

  at::Tensor normal(at::IntArrayRef sizes, double scale = 1.0) {
    return at::randn(sizes, generator_, at::TensorOptions().dtype(at::kDouble))
        .mul_(scale)
        .to(dtype_)
        .to(device_);
  }

 private:
  at::ScalarType dtype_;
  at::Device device_;
  at::Generator generator_;
};

double largest(const at::Tensor& x) {
  if (x.numel() == 0) {
    return 0.0;
  }
  return at::nan_to_num(x.abs(), 0.0, 0.0, 0.0).max().item<double>();
}

// Holds one pair of results against the exact one. `slack` is what float32 sums may lose by their
// order alone.
std::string compare(const std::string& what, const at::Tensor& candidate,
                    const at::Tensor& reference, const at::Tensor& exact, double slack = 0.0) {
  if (candidate.sizes() != reference.sizes() ||
      candidate.scalar_type() != reference.scalar_type()) {
    return fmt::format("{}: expected {} {}, got {} {}", what,
                       c10::toString(reference.scalar_type()), c10::str(reference.sizes()),
                       c10::toString(candidate.scalar_type()), c10::str(candidate.sizes()));
  }
  const at::Tensor ours = candidate.to(at::kCPU).to(at::kDouble),
                   theirs = reference.to(at::kCPU).to(at::kDouble);
  if (!at::equal(ours.isnan(), theirs.isnan())) {
    return fmt::format("{}: expected NaN exactly where the reference has it", what);
  }
  // Infinities are compared as such; their difference is no number.
  const at::Tensor finite = exact.isfinite().logical_and(theirs.isfinite());
  if (!at::equal(ours.isinf(), theirs.isinf())) {
    return fmt::format("{}: expected infinities exactly where the reference has them", what);
  }
  const at::Tensor zero = at::zeros({}, at::kDouble);
  const double error = largest(at::where(finite, ours - exact, zero)),
               own = largest(at::where(finite, theirs - exact, zero));
  const double floor =
      0.5 * epsilon(reference.scalar_type()) * largest(at::where(finite, exact, zero)) + slack;
  if (error > kAllowedRatio * own + floor) {
    return fmt::format(
        "{}: expected an error of at most twice the reference's {:.3g} against float64, got {:.3g}",
        what, own, error);
  }
  return "";
}

// Runs one check; a kernel that throws is refused with its words.
std::string attempt(const std::string& what, const std::function<std::string()>& check) {
  const c10::InferenceMode inference;
  try {
    return check();
  } catch (const std::exception& error) {
    return fmt::format("{}: expected a result, got an error: {}", what,
                       std::string(error.what()).substr(0, 400));
  }
}

at::Tensor to_exact(const at::Tensor& x) { return x.to(at::kCPU).to(at::kDouble); }

at::Tensor exact_rms_norm(RmsNormVariant variant, const at::Tensor& x, const at::Tensor& weight,
                          double eps) {
  const at::Tensor wide = to_exact(x), scale = to_exact(weight);
  const at::Tensor norm = wide * at::rsqrt(wide.pow(2).mean(-1, true) + eps);
  return norm * (variant == RmsNormVariant::kZeroCentered ? 1.0 + scale : scale);
}

at::Tensor exact_activation(ActivationKind kind, const at::Tensor& input) {
  const at::Tensor x = to_exact(input);
  switch (kind) {
    case ActivationKind::kSilu:
      return at::silu(x);
    case ActivationKind::kGelu:
      return at::gelu(x);
    case ActivationKind::kGeluTanh:
      return at::gelu(x, "tanh");
    case ActivationKind::kGeluNew:
      return 0.5 * x * (1.0 + at::tanh(std::sqrt(2.0 / M_PI) * (x + 0.044715 * at::pow(x, 3.0))));
    case ActivationKind::kGeluFast:
      return 0.5 * x * (1.0 + at::tanh(x * 0.7978845608 * (1.0 + 0.044715 * x * x)));
    case ActivationKind::kQuickGelu:
      return x * at::sigmoid(1.702 * x);
  }
  return {};
}

// Values at which formulas part: they are set into a tensor of normal numbers.
at::Tensor with_special_values(at::Tensor x) {
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  const at::Tensor special = at::tensor({std::numeric_limits<double>::quiet_NaN(), kInfinity,
                                         -kInfinity, 0.0, -0.0, 3e4, -3e4, 88.0, -88.0},
                                        at::kDouble);
  x.flatten().narrow(0, 3, special.numel()).copy_(special);
  return x;
}

// First refusal of a list of checks.
std::string first_refusal(std::initializer_list<std::function<std::string()>> checks) {
  for (const auto& check : checks) {
    if (auto reason = check(); !reason.empty()) {
      return reason;
    }
  }
  return "";
}

}  // namespace

std::string guard(const RmsNorm::Spec& spec, const RmsNorm::Kernel& candidate,
                  const RmsNorm::Kernel& reference, at::ScalarType dtype, at::Device device) {
  Inputs inputs(dtype, device);
  constexpr double kEps = 1e-5;
  const auto forward = [&](const std::string& what, const at::Tensor& x, const at::Tensor& weight) {
    return attempt(what, [&] {
      return compare(what, candidate.forward(x, weight, kEps), reference.forward(x, weight, kEps),
                     exact_rms_norm(spec.variant, x, weight, kEps));
    });
  };
  const auto with_nan = [&] {
    at::Tensor x = inputs.normal({3, 64});
    x[1][5] = std::numeric_limits<double>::quiet_NaN();
    return forward("forward [3, 64] with NaN", x, inputs.normal({64}));
  };
  const auto add = [&] {
    return attempt("add_forward [5, 200]", [&] {
      const at::Tensor x = inputs.normal({5, 200}), residual = inputs.normal({5, 200}),
                       weight = inputs.normal({200});
      const auto ours = candidate.add_forward(x, residual, weight, kEps),
                 theirs = reference.add_forward(x, residual, weight, kEps);
      if (!at::equal(ours.second, theirs.second)) {
        return std::string("add_forward [5, 200]: expected the sum of the reference, got another");
      }
      return compare("add_forward [5, 200]", ours.first, theirs.first,
                     exact_rms_norm(spec.variant, theirs.second, weight, kEps));
    });
  };
  return first_refusal(
      {[&] {
         return forward("forward [1, 64]", inputs.normal({1, 64}), inputs.normal({64}));
       },
       [&] {
         return forward("forward [2, 3, 257]", inputs.normal({2, 3, 257}, 30.0),
                        inputs.normal({257}));
       },
       [&] {  // small values, so that a wrong eps shows in every dtype
         return forward("forward [2, 128], small", inputs.normal({2, 128}, 1e-3),
                        inputs.normal({128}));
       },
       [&] {
         return forward("forward [4, 96], strided", inputs.normal({4, 3, 96}).select(1, 1),
                        inputs.normal({96}));
       },
       [&] {
         return forward("forward [0, 64]", inputs.normal({0, 64}), inputs.normal({64}));
       },
       with_nan, add});
}

std::string guard(const Activation::Spec& spec, const Activation::Kernel& candidate,
                  const Activation::Kernel& reference, at::ScalarType dtype, at::Device device) {
  Inputs inputs(dtype, device);
  const auto check = [&](const std::string& what, const at::Tensor& x) {
    return attempt(what, [&] {
      return compare(what, candidate.forward(x), reference.forward(x),
                     exact_activation(spec.kind, x));
    });
  };
  return first_refusal({[&] { return check("forward [1]", inputs.normal({1})); },
                        [&] {
                          return check("forward [3, 1001]", inputs.normal({3, 1001}, 3.0));
                        },
                        [&] {
                          return check("forward [64], special values",
                                       with_special_values(inputs.normal({64})));
                        },
                        [&] {
                          return check("forward [0, 8]", inputs.normal({0, 8}));
                        }});
}

std::string guard(const GatedActivation::Spec& spec, const GatedActivation::Kernel& candidate,
                  const GatedActivation::Kernel& reference, at::ScalarType dtype,
                  at::Device device) {
  Inputs inputs(dtype, device);
  const auto check = [&](const std::string& what, const at::Tensor& gate, const at::Tensor& up) {
    return attempt(what, [&] {
      return compare(what, candidate.forward(gate, up), reference.forward(gate, up),
                     exact_activation(spec.kind, gate) * to_exact(up));
    });
  };
  const at::Tensor fused = inputs.normal({4, 202}, 2.0);
  return first_refusal(
      {[&] {
         return check("forward [1, 64]", inputs.normal({1, 64}), inputs.normal({1, 64}));
       },
       [&] {
         return check("forward [3, 1001]", inputs.normal({3, 1001}, 3.0), inputs.normal({3, 1001}));
       },
       [&] {
         return check("forward [4, 101], halves", fused.narrow(1, 0, 101),
                      fused.narrow(1, 101, 101));
       },
       [&] {
         return check("forward [2, 32], special values",
                      with_special_values(inputs.normal({2, 32})), inputs.normal({2, 32}));
       },
       [&] {
         return check("forward [0, 8]", inputs.normal({0, 8}), inputs.normal({0, 8}));
       }});
}

std::string guard(const Linear::Spec&, const Linear::Kernel& candidate,
                  const Linear::Kernel& reference, at::ScalarType dtype, at::Device device) {
  Inputs inputs(dtype, device);
  const auto check = [&](const std::string& what, const at::Tensor& x, const at::Tensor& weight,
                         const at::Tensor& bias) {
    return attempt(what, [&] {
      at::Tensor exact = at::matmul(to_exact(x), to_exact(weight).t());
      if (bias.defined()) {
        exact = exact + to_exact(bias);
      }
      const at::Tensor magnitude = at::matmul(to_exact(x).abs(), to_exact(weight).abs().t());
      return compare(what, candidate.forward(x, weight, bias), reference.forward(x, weight, bias),
                     exact, epsilon(at::kFloat) * largest(magnitude));
    });
  };
  return first_refusal(
      {[&] {
         return check("forward [1, 64] x [48, 64]", inputs.normal({1, 64}), inputs.normal({48, 64}),
                      {});
       },
       [&] {
         return check("forward [1, 5, 99] x [33, 99], bias", inputs.normal({1, 5, 99}),
                      inputs.normal({33, 99}), inputs.normal({33}));
       },
       [&] {
         return check("forward [40, 64] x [96, 64]", inputs.normal({40, 64}),
                      inputs.normal({96, 64}), {});
       },
       [&] {
         at::Tensor x = inputs.normal({3, 64});
         x[1][5] = std::numeric_limits<double>::quiet_NaN();
         return check("forward [3, 64] x [48, 64], NaN", x, inputs.normal({48, 64}), {});
       },
       [&] {
         return check("forward [0, 64] x [48, 64]", inputs.normal({0, 64}), inputs.normal({48, 64}),
                      {});
       }});
}

}  // namespace graft::layers
