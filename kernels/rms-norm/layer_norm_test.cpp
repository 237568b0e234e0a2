// LayerNorm, forward and backward.

#include "kernels/rms-norm/forms_test.h"

namespace graft_kernels::rms_norm {
namespace {

struct Layer {
  at::Tensor x, grad_out;
  std::optional<at::Tensor> weight, bias;

  Layer in(at::ScalarType dtype) const {
    const auto cast = [&](const std::optional<at::Tensor>& tensor) {
      return tensor ? std::optional<at::Tensor>(tensor->to(dtype)) : std::nullopt;
    };
    return {x.to(dtype), grad_out.to(dtype), cast(weight), cast(bias)};
  }
};

c10::IValue value_of(const std::optional<at::Tensor>& tensor) {
  return tensor ? c10::IValue(*tensor) : c10::IValue();
}

// ATen takes a float32 weight beside a 16-bit input on the CPU alone.
at::Tensor eager_layer(const Layer& in) {
  const bool mixed = in.weight && in.weight->scalar_type() != in.x.scalar_type();
  const at::Tensor x = mixed ? in.x.to(in.weight->scalar_type()) : in.x;
  return at::layer_norm(x, {x.size(-1)}, in.weight, in.bias, kEps).to(in.x.scalar_type());
}

Tensors gradients_of(const Layer& in) {
  const auto leaf = [](const at::Tensor& from) {
    return from.detach().clone().set_requires_grad(true);
  };
  const at::Tensor x = leaf(in.x);
  const at::Tensor ones =
      at::ones({in.x.size(-1)}, in.weight ? in.weight->options() : in.x.options());
  const at::Tensor weight = leaf(in.weight.value_or(ones)), bias = leaf(in.bias.value_or(0 * ones));
  eager_layer({x, in.grad_out, weight, bias}).backward(in.grad_out);
  return {x.grad(), weight.grad(), bias.grad()};
}

class LayerNorm : public Forms {
 protected:
  Layer inputs(at::IntArrayRef shape) const {
    return {random(shape), random(shape), random({shape.back()}), random({shape.back()})};
  }
  at::Tensor forward(const Layer& in) const {
    return package()("layer_norm", in.x, value_of(in.weight), value_of(in.bias), kEps)
        .at(0)
        .toTensor();
  }
  Tensors backward(const Layer& in) const {
    const auto stack =
        package()("layer_norm_backward", in.grad_out, in.x, value_of(in.weight), kEps);
    return {stack.at(0).toTensor(), stack.at(1).toTensor(), stack.at(2).toTensor()};
  }
  void expect_like_eager(const Layer& in, const std::string& what) const {
    const double spread = 2e-6;
    const at::Tensor exact_out = eager_layer(in.in(at::kDouble));
    expect_no_worse(forward(in), eager_layer(in), exact_out, what,
                    spread * in.x.abs().max().item<double>());
    const Tensors ours = backward(in), eagers = gradients_of(in),
                  exact = gradients_of(in.in(at::kDouble));
    const char* names[] = {"grad_x, ", "grad_weight, ", "grad_bias, "};
    for (size_t i = 0; i < 3; ++i) {
      ASSERT_EQ(ours[i].scalar_type(), eagers[i].scalar_type());
      const double slack = 3e-7 * std::sqrt(static_cast<double>(in.x.numel() / in.x.size(-1))) +
                           spread * exact[i].abs().max().item<double>();
      expect_no_worse(ours[i], eagers[i], exact[i], names[i] + what, slack);
    }
  }
};

TEST_P(LayerNorm, IsNoWorseThanTwiceEagerInEveryShape) {
  for (const std::vector<int64_t>& shape : shapes()) {
    if (shape.back() < 3) {
      continue;  // two elements are one standard deviation from their mean: the gradient is all cancellation
    }
    expect_like_eager(inputs(shape), name_of(shape, "layer_norm"));
  }
  const Layer single = inputs({3, 1});  // nothing is left of x but its bias
  EXPECT_LE(largest_error(forward(single), single.bias->to(at::kDouble).expand({3, 1})), 0);
}

TEST_P(LayerNorm, GoesWithoutWeightOrBias) {
  for (const int64_t columns : {7, 128, 4096}) {
    Layer in = inputs({9, columns});
    in.bias.reset();
    expect_like_eager(in, "no bias");
    in.weight.reset();
    expect_like_eager(in, "neither");
  }
}

TEST_P(LayerNorm, TakesAFloat32WeightBesideA16BitInput) {
  Layer in = inputs({9, 576});
  in.weight = in.weight->to(at::kFloat);
  in.bias = in.bias->to(at::kFloat);
  expect_like_eager(in, "float32 weight");
}

TEST_P(LayerNorm, KeepsItsDigitsFarFromZero) {
  Layer in = inputs({6, 1031});
  in.x = (in.x.to(at::kFloat) + 300.0).to(GetParam().dtype);
  expect_like_eager(in, "mean 300");
}

TEST_P(LayerNorm, ReadsStridedRowsAndWorksInPlace) {
  const at::Tensor wide = random({6, 5, 7, 200});
  for (const at::Tensor& view :
       {wide.slice(-1, 0, 72), wide.slice(-1, 3, 75), wide.slice(-1, 0, 72).transpose(0, 2)}) {
    Layer in = inputs({72});
    in.x = in.grad_out = view;
    expect_like_eager(in, "strided");
  }
  for (const int64_t columns : {5, 576, 40000}) {
    const Layer in = inputs({9, columns});
    at::Tensor x = in.x.clone(), grad = in.grad_out.clone();
    package()("layer_norm_out", x, x, value_of(in.weight), value_of(in.bias), kEps);
    EXPECT_TRUE(is_same_bits(x, forward(in)));
    at::Tensor grad_weight = at::empty_like(*in.weight), grad_bias = at::empty_like(*in.bias);
    package()("layer_norm_backward_out", grad, grad_weight, grad_bias, grad, in.x,
              value_of(in.weight), kEps);
    const Tensors expected = backward(in);
    EXPECT_TRUE(is_same_bits(grad, expected[0]));
    EXPECT_TRUE(is_same_bits(grad_bias, expected[2]));
  }
}

TEST_P(LayerNorm, TakesNoRowsAtAllAndCarriesNan) {
  EXPECT_EQ(forward(inputs({0, 64})).numel(), 0);
  EXPECT_EQ(backward(inputs({0, 64}))[2].abs().sum().item<double>(), 0);
  Layer in = inputs({4, 200});
  in.x[0][3] = std::nan("");
  in.grad_out[1][4] = std::nan("");
  EXPECT_TRUE(at::equal(forward(in).isnan(), eager_layer(in).isnan()));
  const Tensors ours = backward(in), theirs = gradients_of(in);
  for (size_t i = 0; i < 3; ++i) {
    EXPECT_TRUE(at::equal(ours[i].isnan(), theirs[i].isnan())) << i;
  }
}

TEST_P(LayerNorm, GivesTheSameBitsEveryTime) {
  const Layer in = inputs({700, 2048});
  const at::Tensor first = forward(in);
  const Tensors gradients = backward(in);
  for (int repeat = 0; repeat < (is_small_run() ? 2 : 20); ++repeat) {
    ASSERT_TRUE(is_same_bits(forward(in), first));
    const Tensors again = backward(in);
    for (size_t i = 0; i < 3; ++i) {
      ASSERT_TRUE(is_same_bits(again[i], gradients[i]));
    }
  }
}

TEST_P(LayerNorm, NamesTheArgumentThatIsWrong) {
  const auto message = [&](const Layer& in) { return testing::message_of([&] { forward(in); }); };
  Layer in = inputs({2, 64});
  in.weight = random({32});
  EXPECT_THAT(message(in), ::testing::HasSubstr("[layer_norm] weight: expected shape [64]"));
  in = inputs({2, 64});
  in.bias = random({1, 64});
  EXPECT_THAT(message(in), ::testing::HasSubstr("[layer_norm] bias: expected shape [64]"));
}

INSTANTIATE_TEST_SUITE_P(Devices, LayerNorm, ::testing::ValuesIn(testing::device_cases()),
                         testing::case_name);

}  // namespace
}  // namespace graft_kernels::rms_norm
