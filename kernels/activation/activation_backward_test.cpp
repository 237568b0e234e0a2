// Gradients of the activations against autograd through eager ATen and in float64, one suite for all
// devices and dtypes.

#include <cmath>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "kernels/common/test_suite.h"

namespace graft_kernels::activation {
namespace {

using testing::is_same_bits;
using testing::is_small_run;
using testing::Package;
using Function = std::function<at::Tensor(const at::Tensor&)>;

const std::map<std::string, Function>& functions() {
  static const std::map<std::string, Function> functions = {
      {"silu", [](const at::Tensor& x) { return at::silu(x); }},
      {"gelu", [](const at::Tensor& x) { return at::gelu(x); }},
      {"gelu_tanh", [](const at::Tensor& x) { return at::gelu(x, "tanh"); }},
      {"gelu_new",
       [](const at::Tensor& x) {
         return 0.5 * x *
                (1.0 + at::tanh(std::sqrt(2.0 / M_PI) * (x + 0.044715 * at::pow(x, 3.0))));
       }},
      {"gelu_fast",
       [](const at::Tensor& x) {
         return 0.5 * x * (1.0 + at::tanh(x * 0.7978845608 * (1.0 + 0.044715 * x * x)));
       }},
      {"gelu_quick", [](const at::Tensor& x) { return x * at::sigmoid(1.702 * x); }}};
  return functions;
}

at::Tensor with_gradient(const at::Tensor& x, at::ScalarType dtype) {
  return x.detach().to(dtype).clone().set_requires_grad(true);
}

class ActivationBackward : public testing::OnEachDevice {
 protected:
  at::Tensor random(at::IntArrayRef shape) const {
    return (3 * at::randn(shape, at::kFloat)).to(GetParam().dtype).to(GetParam().device);
  }
  const Package& package() const { return Package::for_device("activation", GetParam().device); }
  at::Tensor backward(const std::string& op, const at::Tensor& grad_out,
                      const at::Tensor& x) const {
    at::Tensor grad = at::empty(x.sizes(), x.options());
    package()(op + "_backward", grad, grad_out, x);
    return grad;
  }

  // Error at most twice autograd's own in this dtype, plus a few units in the last place of what is
  // multiplied.
  void expect_as_good(const at::Tensor& ours, const at::Tensor& theirs, const at::Tensor& exact,
                      const at::Tensor& magnitude, const std::string& what) const {
    const auto error = [&](const at::Tensor& value) {
      return ((value.to(at::kDouble) - exact).abs() / (magnitude + 1e-3)).max().item<double>();
    };
    EXPECT_LE(error(ours), 2 * error(theirs) + 4 * 0x1p-24) << what;
  }

  void expect_like_autograd(const std::string& name, const at::Tensor& x,
                            const at::Tensor& grad_out) const {
    const auto gradient = [&](at::ScalarType dtype) {
      const at::Tensor leaf = with_gradient(x, dtype);
      functions().at(name)(leaf).backward(grad_out.to(dtype));
      return leaf.grad();
    };
    expect_as_good(backward(name, grad_out, x), gradient(GetParam().dtype), gradient(at::kDouble),
                   grad_out.to(at::kDouble).abs(), name);
  }
};

TEST_P(ActivationBackward, IsNoWorseThanTwiceAutogradOnEveryFinite16BitValue) {
  at::Tensor x = at::linspace(-30, 30, 60001, at::kFloat).to(GetParam().device);
  if (GetParam().dtype != at::kFloat) {
    x = at::arange(65536, at::kInt).to(at::kShort).view(GetParam().dtype).to(GetParam().device);
    // Where eager's own powers and products stay finite in float16.
    x = x.index({at::logical_and(x.isfinite(), x.abs() < 30)});
  }
  const at::Tensor grad_out = random({x.numel()});
  for (const auto& [name, function] : functions()) {
    expect_like_autograd(name, x, grad_out);
  }
}

TEST_P(ActivationBackward, DifferentiatesProducts) {
  for (const int64_t columns : {1, 3, 8, 17, 576, 1536, 4099}) {
    const at::Tensor gate = random({7, columns}), up = random({7, columns});
    const at::Tensor grad_out = random({7, columns});
    for (const std::string name : {"silu", "gelu", "gelu_tanh"}) {
      const auto gradients = [&](at::ScalarType dtype) {
        const at::Tensor gate_leaf = with_gradient(gate, dtype), up_leaf = with_gradient(up, dtype);
        (functions().at(name)(gate_leaf) * up_leaf).backward(grad_out.to(dtype));
        return std::make_pair(gate_leaf.grad(), up_leaf.grad());
      };
      at::Tensor grad_gate = at::empty_like(gate), grad_up = at::empty_like(up);
      package()(name + "_mul_backward", grad_gate, grad_up, grad_out, gate, up);
      const auto theirs = gradients(GetParam().dtype), exact = gradients(at::kDouble);
      const at::Tensor wide = grad_out.to(at::kDouble).abs();
      expect_as_good(grad_gate, theirs.first, exact.first, wide * up.to(at::kDouble).abs(),
                     name + " gate");
      expect_as_good(grad_up, theirs.second, exact.second, wide * gate.to(at::kDouble).abs(),
                     name + " up");
    }
  }
}

TEST_P(ActivationBackward, ReadsAndWritesHalvesOfAFusedProjection) {
  for (const int64_t columns : {3, 8, 576, 1001}) {
    const at::Tensor fused = random({4, 5, 2 * columns}), grad_out = random({4, 5, columns});
    const at::Tensor gate = fused.slice(-1, 0, columns), up = fused.slice(-1, columns);
    at::Tensor grad_gate = at::empty_like(grad_out), grad_up = at::empty_like(grad_out);
    package()("silu_mul_backward", grad_gate, grad_up, grad_out, gate.contiguous(),
              up.contiguous());
    at::Tensor grad = at::zeros_like(fused);
    package()("silu_mul_backward", grad.slice(-1, 0, columns), grad.slice(-1, columns), grad_out,
              gate, up);
    EXPECT_TRUE(is_same_bits(grad, at::cat({grad_gate, grad_up}, -1))) << columns;
    // Over the halves themselves.
    const at::Tensor target = fused.clone();
    package()("silu_mul_backward", target.slice(-1, 0, columns), target.slice(-1, columns),
              grad_out, target.slice(-1, 0, columns), target.slice(-1, columns));
    EXPECT_TRUE(is_same_bits(target, grad)) << columns;
  }
}

TEST_P(ActivationBackward, AcceptsAnyLayoutOfRows) {
  const at::Tensor wide = random({6, 5, 7, 80});
  for (const at::Tensor& view :
       {wide.slice(-1, 0, 72), wide.slice(-1, 3, 75), wide.slice(-1, 0, 64).transpose(0, 2),
        wide.slice(1, 0, 5, 2).slice(-1, 0, 72), wide.slice(0, 0, 1).expand({6, 5, 7, 80})}) {
    const at::Tensor dense = view.contiguous();
    for (const auto& [name, function] : functions()) {
      EXPECT_TRUE(is_same_bits(backward(name, view, view), backward(name, dense, dense)))
          << name << " " << view.strides();
    }
  }
  EXPECT_EQ(backward("silu", random({0, 8}), random({0, 8})).numel(), 0);
}

TEST_P(ActivationBackward, CarriesNanWhereAutogradDoes) {
  const at::Tensor x = random({64}), grad_out = random({64});
  x[3] = std::nan("");
  grad_out[5] = std::nan("");
  x[7].zero_();
  for (const auto& [name, function] : functions()) {
    const at::Tensor leaf = with_gradient(x, GetParam().dtype);
    function(leaf).backward(grad_out);
    EXPECT_TRUE(at::equal(backward(name, grad_out, x).isnan(), leaf.grad().isnan())) << name;
  }
}

TEST_P(ActivationBackward, GivesTheSameBitsEveryTime) {
  const at::Tensor x = random({300, 1031}), grad_out = random({300, 1031});
  const at::Tensor first = backward("gelu_tanh", grad_out, x);
  for (int repeat = 0; repeat < (is_small_run() ? 3 : 250); ++repeat) {
    ASSERT_TRUE(is_same_bits(backward("gelu_tanh", grad_out, x), first)) << repeat;
  }
}

TEST_P(ActivationBackward, NamesTheArgumentThatIsWrong) {
  const at::Tensor x = random({2, 8});
  const auto message = [&](const at::Tensor& grad_out, const at::Tensor& grad) {
    return testing::message_of([&] { package()("silu_backward", grad, grad_out, x); });
  };
  EXPECT_THAT(message(random({2, 9}), x),
              ::testing::HasSubstr("[silu_backward] grad_out: expected shape [2, 8]"));
  EXPECT_THAT(message(x, random({8})),
              ::testing::HasSubstr("[silu_backward] grad_input: expected shape [2, 8]"));
  EXPECT_THAT(message(x.to(at::kDouble), x),
              ::testing::HasSubstr("[silu_backward] grad_out: expected"));
}

INSTANTIATE_TEST_SUITE_P(Devices, ActivationBackward, ::testing::ValuesIn(testing::device_cases()),
                         testing::case_name);

}  // namespace
}  // namespace graft_kernels::activation
