#include <limits>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "graft/layers/guard.h"
#include "graft/layers/guard_check.h"

namespace graft::layers {

namespace {

at::Tensor exact_rms_norm(RmsNormVariant variant, const at::Tensor& x, const at::Tensor& weight,
                          double eps) {
  const at::Tensor wide = to_exact(x), scale = to_exact(weight);
  const at::Tensor norm = wide * at::rsqrt(wide.pow(2).mean(-1, true) + eps);
  return norm * (variant == RmsNormVariant::kZeroCentered ? 1.0 + scale : scale);
}

}  // namespace

std::string guard(const RmsNorm::Spec& spec, const RmsNorm::Kernel& candidate,
                  const RmsNorm::Kernel& reference, at::ScalarType dtype, at::Device device) {
  GuardInputs inputs(dtype, device);
  constexpr double kEps = 1e-5;
  // Rows that the kernel refuses by name are no fault of it.
  const auto served = [&](int64_t hidden) { return candidate.row_refusal(hidden).empty(); };
  const auto forward = [&](const std::string& what, const at::Tensor& x, const at::Tensor& weight) {
    return !served(x.size(-1)) ? std::string() : attempt(what, [&] {
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
  const auto backward = [&](at::IntArrayRef sizes) {
    return !served(sizes.back()) ? std::string()
                                 : compare_gradients(
                                       fmt::format("backward {}", sizes),
                                       {inputs.normal(sizes), inputs.normal(sizes.back())},
                                       [&](const auto& in) -> std::vector<at::Tensor> {
                                         return {candidate.forward(in[0], in[1], kEps)};
                                       },
                                       [&](const auto& in) -> std::vector<at::Tensor> {
                                         return {reference.forward(in[0], in[1], kEps)};
                                       },
                                       [&](const auto& in) -> std::vector<at::Tensor> {
                                         return {exact_rms_norm(spec.variant, in[0], in[1], kEps)};
                                       });
  };
  const auto add_backward = [&] {
    const auto both = [](const std::pair<at::Tensor, at::Tensor>& out) {
      return std::vector<at::Tensor>{out.first, out.second};
    };
    return compare_gradients(
        "backward of add_forward [5, 200]",
        {inputs.normal({5, 200}), inputs.normal({5, 200}), inputs.normal({200})},
        [&](const auto& in) { return both(candidate.add_forward(in[0], in[1], in[2], kEps)); },
        [&](const auto& in) { return both(reference.add_forward(in[0], in[1], in[2], kEps)); },
        [&](const auto& in) -> std::vector<at::Tensor> {
          const at::Tensor sum = in[0] + in[1];
          return {exact_rms_norm(spec.variant, sum, in[2], kEps), sum};
        });
  };
  const std::string refusal = first_refusal(
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
  if (!refusal.empty() || !candidate.has_backward()) {
    return refusal;
  }
  return first_refusal({[&] {
                          return backward({1, 64});
                        },
                        [&] {
                          return backward({2, 3, 257});
                        },
                        add_backward});
}

}  // namespace graft::layers
