#include <cmath>
#include <limits>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "graft/layers/guard.h"
#include "graft/layers/guard_check.h"

namespace graft::layers {

namespace {

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

}  // namespace

std::string guard(const Activation::Spec& spec, const Activation::Kernel& candidate,
                  const Activation::Kernel& reference, at::ScalarType dtype, at::Device device) {
  GuardInputs inputs(dtype, device);
  const auto check = [&](const std::string& what, const at::Tensor& x) {
    return attempt(what, [&] {
      return compare(what, candidate.forward(x), reference.forward(x),
                     exact_activation(spec.kind, x));
    });
  };
  const auto backward = [&](at::IntArrayRef sizes) {
    return compare_gradients(
        fmt::format("backward {}", sizes), {inputs.normal(sizes, 3.0)},
        [&](const auto& in) -> std::vector<at::Tensor> { return {candidate.forward(in[0])}; },
        [&](const auto& in) -> std::vector<at::Tensor> { return {reference.forward(in[0])}; },
        [&](const auto& in) -> std::vector<at::Tensor> {
          return {exact_activation(spec.kind, in[0])};
        });
  };
  const std::string refusal = first_refusal(
      {[&] { return check("forward [1]", inputs.normal({1})); },
       [&] {
         return check("forward [3, 1001]", inputs.normal({3, 1001}, 3.0));
       },
       [&] {
         return check("forward [64], special values", with_special_values(inputs.normal({64})));
       },
       [&] {
         return check("forward [0, 8]", inputs.normal({0, 8}));
       }});
  return refusal.empty() && candidate.has_backward() ? backward({3, 1001}) : refusal;
}

std::string guard(const GatedActivation::Spec& spec, const GatedActivation::Kernel& candidate,
                  const GatedActivation::Kernel& reference, at::ScalarType dtype,
                  at::Device device) {
  GuardInputs inputs(dtype, device);
  const auto check = [&](const std::string& what, const at::Tensor& gate, const at::Tensor& up) {
    return attempt(what, [&] {
      return compare(what, candidate.forward(gate, up), reference.forward(gate, up),
                     exact_activation(spec.kind, gate) * to_exact(up));
    });
  };
  const at::Tensor fused = inputs.normal({4, 202}, 2.0);
  const auto backward = [&](const at::Tensor& gate, const at::Tensor& up) {
    return compare_gradients(
        fmt::format("backward {}", gate.sizes()), {gate, up},
        [&](const auto& in) -> std::vector<at::Tensor> {
          return {candidate.forward(in[0], in[1])};
        },
        [&](const auto& in) -> std::vector<at::Tensor> {
          return {reference.forward(in[0], in[1])};
        },
        [&](const auto& in) -> std::vector<at::Tensor> {
          return {exact_activation(spec.kind, in[0]) * in[1]};
        });
  };
  const std::string refusal = first_refusal(
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
  return refusal.empty() && candidate.has_backward()
             ? backward(inputs.normal({3, 1001}, 3.0), inputs.normal({3, 1001}))
             : refusal;
}

}  // namespace graft::layers
