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

class GuardOfMlp {
 public:
  GuardOfMlp(const Mlp::Spec& spec, const Mlp::Kernel& candidate, const Mlp::Kernel& reference,
             at::ScalarType dtype, at::Device device)
      : spec_(spec), candidate_(candidate), reference_(reference), inputs_(dtype, device) {}

  std::string check_forward(const Shape& shape, bool with_nan = false) {
    const std::string what = fmt::format("forward {}{}", text(shape), with_nan ? ", NaN" : "");
    return attempt(what, [&] {
      at::Tensor x = inputs_.normal(shape.x);
      if (with_nan) {
        x[1][5] = std::numeric_limits<double>::quiet_NaN();
      }
      const Mlp::Weights weights = make_weights(inputs_, shape), exact = exact_weights(weights);
      return compare(what, candidate_.forward(x, weights), reference_.forward(x, weights),
                     reference_.forward(to_exact(x), exact),
                     order_slack(spec_, to_exact(x), exact));
    });
  }

  std::string check_backward(const Shape& shape) {
    const Mlp::Weights weights = make_weights(inputs_, shape);
    std::vector<at::Tensor> tensors = {inputs_.normal(shape.x), weights.gate, weights.up,
                                       weights.down};
    if (shape.bias) {
      tensors.insert(tensors.end(), {weights.gate_bias, weights.up_bias, weights.down_bias});
    }
    // Float32 sums of a few dozen products, in any order, through two products.
    const double slack = 8 * rounding_unit(at::kFloat);
    return compare_gradients(fmt::format("backward {}", text(shape)), tensors, call(candidate_),
                             call(reference_), call(reference_), slack);
  }

 private:
  static std::string text(const Shape& shape) {
    return fmt::format("{} inner {}{}", c10::str(at::IntArrayRef(shape.x)), shape.inner,
                       shape.bias ? ", biases" : "");
  }
  static GuardFunction call(const Mlp::Kernel& kernel) {
    return [&kernel](const std::vector<at::Tensor>& in) -> std::vector<at::Tensor> {
      const auto bias = [&](size_t index) { return index < in.size() ? in[index] : at::Tensor(); };
      return {kernel.forward(in[0], {in[1], in[2], in[3], bias(4), bias(5), bias(6)})};
    };
  }

  const Mlp::Spec& spec_;
  const Mlp::Kernel& candidate_;
  const Mlp::Kernel& reference_;
  GuardInputs inputs_;
};

}  // namespace

std::string guard(const Mlp::Spec& spec, const Mlp::Kernel& candidate, const Mlp::Kernel& reference,
                  at::ScalarType dtype, at::Device device) {
  GuardOfMlp guard(spec, candidate, reference, dtype, device);
  for (const Shape& shape :
       {Shape{{1, 64}, 48, false}, Shape{{1, 5, 99}, 33, true}, Shape{{40, 64}, 96, false},
        Shape{{33, 24}, 40, true}, Shape{{0, 64}, 48, false}}) {
    if (std::string refusal = guard.check_forward(shape); !refusal.empty()) {
      return refusal;
    }
  }
  if (std::string refusal = guard.check_forward({{3, 64}, 48, false}, /*with_nan=*/true);
      !refusal.empty() || !candidate.has_backward()) {
    return refusal;
  }
  return first_refusal({[&] {
                          return guard.check_backward({{3, 5, 64}, 48, false});
                        },
                        [&] {
                          return guard.check_backward({{7, 24}, 40, true});
                        }});
}

}  // namespace graft::layers
