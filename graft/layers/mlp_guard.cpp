#include <limits>

#include <fmt/format.h>

#include "graft/layers/guard.h"
#include "graft/layers/guard_check.h"

namespace graft::layers {

namespace {

struct Shape {
  std::vector<int64_t> x;  // [N..., H]
  int64_t inner;
  bool bias;
};

at::Tensor exact_or_none(const at::Tensor& x) { return x.defined() ? to_exact(x) : x; }

Mlp::Weights exact_weights(const Mlp::Weights& weights) {
  return {to_exact(weights.gate),         to_exact(weights.up),
          to_exact(weights.down),         exact_or_none(weights.gate_bias),
          exact_or_none(weights.up_bias), exact_or_none(weights.down_bias)};
}

// Gate and up are halves of one tensor, as some checkpoints have them.
Mlp::Weights make_weights(GuardInputs& inputs, const Shape& shape) {
  const int64_t hidden = shape.x.back(), inner = shape.inner;
  const at::Tensor fused = inputs.normal({2 * inner, hidden}, 0.3);
  Mlp::Weights weights;
  weights.gate = fused.narrow(0, 0, inner);
  weights.up = fused.narrow(0, inner, inner);
  weights.down = inputs.normal({hidden, inner}, 0.3);
  if (shape.bias) {
    weights.gate_bias = inputs.normal({inner});
    weights.up_bias = inputs.normal({inner});
    weights.down_bias = inputs.normal({hidden});
  }
  return weights;
}

// What float32 sums may lose by their order: of gate and up, carried through the product, and of the last.
double order_slack(const Mlp::Spec& spec, const at::Tensor& x, const Mlp::Weights& weights) {
  const auto product = [](const at::Tensor& a, const at::Tensor& b) {
    return at::matmul(a, b.t());
  };
  const auto activation = Activation::reference({spec.kind});
  const at::Tensor gate = product(x, weights.gate), up = product(x, weights.up);
  const at::Tensor gate_size = product(x.abs(), weights.gate.abs()),
                   up_size = product(x.abs(), weights.up.abs());
  const at::Tensor activated = activation->forward(gate).abs();
  const at::Tensor lost = up.abs() * gate_size * 1.1 + activated * (up_size + up.abs());
  return rounding_unit(at::kFloat) * largest(product(lost, weights.down.abs()));
}

}  // namespace

std::string guard(const Mlp::Spec& spec, const Mlp::Kernel& candidate, const Mlp::Kernel& reference,
                  at::ScalarType dtype, at::Device device) {
  GuardInputs inputs(dtype, device);
  const auto check = [&](const Shape& shape, bool with_nan) {
    const std::string what =
        fmt::format("forward {} inner {}{}{}", c10::str(at::IntArrayRef(shape.x)), shape.inner,
                    shape.bias ? ", biases" : "", with_nan ? ", NaN" : "");
    return attempt(what, [&] {
      at::Tensor x = inputs.normal(shape.x);
      if (with_nan) {
        x[1][5] = std::numeric_limits<double>::quiet_NaN();
      }
      const Mlp::Weights weights = make_weights(inputs, shape), exact = exact_weights(weights);
      return compare(what, candidate.forward(x, weights), reference.forward(x, weights),
                     reference.forward(to_exact(x), exact), order_slack(spec, to_exact(x), exact));
    });
  };
  return first_refusal({[&] {
                          return check({{1, 64}, 48, false}, false);
                        },
                        [&] {
                          return check({{1, 5, 99}, 33, true}, false);
                        },
                        [&] {
                          return check({{40, 64}, 96, false}, false);
                        },
                        [&] {
                          return check({{33, 24}, 40, true}, false);
                        },
                        [&] {
                          return check({{3, 64}, 48, false}, true);
                        },
                        [&] {
                          return check({{0, 64}, 48, false}, false);
                        }});
}

}  // namespace graft::layers
