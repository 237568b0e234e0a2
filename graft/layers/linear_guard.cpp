#include <limits>

#include "graft/layers/guard.h"
#include "graft/layers/guard_check.h"

namespace graft::layers {

std::string guard(const Linear::Spec&, const Linear::Kernel& candidate,
                  const Linear::Kernel& reference, at::ScalarType dtype, at::Device device) {
  GuardInputs inputs(dtype, device);
  const auto check = [&](const std::string& what, const at::Tensor& x, const at::Tensor& weight,
                         const at::Tensor& bias) {
    return attempt(what, [&] {
      at::Tensor exact = at::matmul(to_exact(x), to_exact(weight).t());
      if (bias.defined()) {
        exact = exact + to_exact(bias);
      }
      const at::Tensor magnitude = at::matmul(to_exact(x).abs(), to_exact(weight).abs().t());
      return compare(what, candidate.forward(x, weight, bias), reference.forward(x, weight, bias),
                     exact, rounding_unit(at::kFloat) * largest(magnitude));
    });
  };
  // A model joins products of few rows; each must be what it would be alone.
  const auto joined = [&] {
    return attempt("join_forward [2, 99] x [33, 99], [7, 99], [16, 99]", [&] {
      const at::Tensor x = inputs.normal({2, 99}), bias = inputs.normal({7});
      const Linear::Factors factors = {{inputs.normal({33, 99}), at::Tensor()},
                                       {inputs.normal({7, 99}), bias},
                                       {inputs.normal({16, 99}), at::Tensor()}};
      const Linear::Products products = candidate.join_forward(x, factors);
      for (size_t i = 0; i < factors.size(); ++i) {
        const auto& [weight, factor_bias] = factors[i];
        if (products.size() != factors.size() ||
            !at::equal(products[i], candidate.forward(x, weight, factor_bias))) {
          return std::string("join_forward: expected the bits of separate calls, got others");
        }
      }
      return std::string();
    });
  };
  return first_refusal(
      {joined,
       [&] {
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
