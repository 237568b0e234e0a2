#include <limits>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "graft/layers/exact.h"
#include "graft/layers/guard.h"
#include "graft/layers/guard_check.h"

namespace graft::layers {

at::Tensor exact_rms_norm(RmsNormVariant variant, const at::Tensor& x, const at::Tensor& weight,
                          double eps) {
  const at::Tensor wide = to_exact(x), scale = to_exact(weight);
  const at::Tensor norm = wide * at::rsqrt(wide.pow(2).mean(-1, true) + eps);
  return norm * (variant == RmsNormVariant::kZeroCentered ? 1.0 + scale : scale);
}

std::string guard(const RmsNorm::Spec& spec, const RmsNorm::Kernel& candidate,
                  const RmsNorm::Kernel& reference, at::ScalarType dtype, at::Device device) {
  GuardInputs inputs(dtype, device);
  // A kernel made for certain rows and one eps is asked for those of its slot.
  const double eps = spec.eps > 0.0 ? spec.eps : 1e-5;
  // Rows that the kernel refuses by name are no fault of it.
  const auto served = [&](int64_t hidden) { return candidate.row_refusal(hidden).empty(); };
  const auto width = [&](int64_t hidden) {
    return served(hidden) || spec.hidden_size == 0 ? hidden : spec.hidden_size;
  };
  const auto forward = [&](const std::string& what, const at::Tensor& x, const at::Tensor& weight) {
    return !served(x.size(-1)) ? std::string() : attempt(what, [&] {
      return compare(what, candidate.forward(x, weight, eps), reference.forward(x, weight, eps),
                     exact_rms_norm(spec.variant, x, weight, eps));
    });
  };
  const auto with_nan = [&] {
    at::Tensor x = inputs.normal({3, width(64)});
    x[1][5] = std::numeric_limits<double>::quiet_NaN();
    return forward(fmt::format("forward {} with NaN", x.sizes()), x, inputs.normal({width(64)}));
  };
  const auto add = [&] {
    const int64_t hidden = width(200);
    const std::string what = fmt::format("add_forward [5, {}]", hidden);
    return !served(hidden) ? std::string() : attempt(what, [&] {
      const at::Tensor x = inputs.normal({5, hidden}), residual = inputs.normal({5, hidden}),
                       weight = inputs.normal({hidden});
      const auto ours = candidate.add_forward(x, residual, weight, eps),
                 theirs = reference.add_forward(x, residual, weight, eps);
      if (!at::equal(ours.second, theirs.second)) {
        return what + ": expected the sum of the reference, got another";
      }
      return compare(what, ours.first, theirs.first,
                     exact_rms_norm(spec.variant, theirs.second, weight, eps));
    });
  };
  const auto backward = [&](at::IntArrayRef sizes) {
    return !served(sizes.back()) ? std::string()
                                 : compare_gradients(
                                       fmt::format("backward {}", sizes),
                                       {inputs.normal(sizes), inputs.normal(sizes.back())},
                                       [&](const auto& in) -> std::vector<at::Tensor> {
                                         return {candidate.forward(in[0], in[1], eps)};
                                       },
                                       [&](const auto& in) -> std::vector<at::Tensor> {
                                         return {reference.forward(in[0], in[1], eps)};
                                       },
                                       [&](const auto& in) -> std::vector<at::Tensor> {
                                         return {exact_rms_norm(spec.variant, in[0], in[1], eps)};
                                       });
  };
  const auto add_backward = [&] {
    const int64_t hidden = width(200);
    const auto both = [](const std::pair<at::Tensor, at::Tensor>& out) {
      return std::vector<at::Tensor>{out.first, out.second};
    };
    return !served(hidden) ? std::string()
                           : compare_gradients(
                                 fmt::format("backward of add_forward [5, {}]", hidden),
                                 {inputs.normal({5, hidden}), inputs.normal({5, hidden}),
                                  inputs.normal({hidden})},
                                 [&](const auto& in) {
                                   return both(candidate.add_forward(in[0], in[1], in[2], eps));
                                 },
                                 [&](const auto& in) {
                                   return both(reference.add_forward(in[0], in[1], in[2], eps));
                                 },
                                 [&](const auto& in) -> std::vector<at::Tensor> {
                                   const at::Tensor sum = in[0] + in[1];
                                   return {exact_rms_norm(spec.variant, sum, in[2], eps), sum};
                                 });
  };
  const int64_t narrow = width(64), odd = width(257), middle = width(128), strided = width(96);
  const auto named = [&](at::IntArrayRef sizes, const char* more = "") {
    return fmt::format("forward {}{}", sizes, more);
  };
  const std::string refusal = first_refusal(
      {[&] {
         return forward(named({1, narrow}), inputs.normal({1, narrow}), inputs.normal({narrow}));
       },
       [&] {
         return forward(named({2, 3, odd}), inputs.normal({2, 3, odd}, 30.0), inputs.normal({odd}));
       },
       [&] {  // small values, so that a wrong eps shows in every dtype
         return forward(named({2, middle}, ", small"), inputs.normal({2, middle}, 1e-3),
                        inputs.normal({middle}));
       },
       [&] {
         return forward(named({4, strided}, ", strided"),
                        inputs.normal({4, 3, strided}).select(1, 1), inputs.normal({strided}));
       },
       [&] {
         return forward(named({0, narrow}), inputs.normal({0, narrow}), inputs.normal({narrow}));
       },
       with_nan, add});
  if (!refusal.empty() || !candidate.has_backward()) {
    return refusal;
  }
  return first_refusal({[&] {
                          return backward({1, narrow});
                        },
                        [&] {
                          return backward({2, 3, odd});
                        },
                        add_backward});
}

}  // namespace graft::layers
