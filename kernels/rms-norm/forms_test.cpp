// Gated RMSNorm and LayerNorm, forward and backward, against eager ATen and float64: one suite for all devices and
// dtypes.

#include <cmath>
#include <optional>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "kernels/common/test_support.h"

namespace graft_kernels::rms_norm {
namespace {

using testing::is_same_bits;
using testing::is_small_run;
using testing::largest_error;
using testing::Package;
using Tensors = std::vector<at::Tensor>;

constexpr double kEps = 1e-5;

struct Case {
  at::DeviceType device;
  at::ScalarType dtype;
};

std::string case_name(const ::testing::TestParamInfo<Case>& info) {
  return std::string(info.param.device == at::kCUDA ? "cuda_" : "cpu_") +
         c10::toString(info.param.dtype);
}

std::vector<Case> cases() {
  std::vector<Case> all;
  for (const at::DeviceType device : {at::kCPU, at::kCUDA}) {
    for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16, at::kHalf}) {
      all.push_back({device, dtype});
    }
  }
  return all;
}

class Forms : public ::testing::TestWithParam<Case> {
 protected:
  void SetUp() override {
    if (GetParam().device == at::kCUDA && !testing::why_no_cuda().empty()) {
      GTEST_SKIP() << testing::why_no_cuda();
    }
    at::manual_seed(0);
  }
  at::Tensor random(at::IntArrayRef shape) const {
    return at::randn(shape, at::kFloat).to(GetParam().dtype).to(GetParam().device);
  }
  const Package& package() const { return Package::for_device("rms-norm", GetParam().device); }

  // Error no worse than twice eager's, and what the order of float32 sums may cost.
  void expect_no_worse(const at::Tensor& ours, const at::Tensor& eager, const at::Tensor& exact,
                       const std::string& what, double slack = 0) const {
    ASSERT_EQ(ours.sizes(), exact.sizes()) << what;
    const double scale = exact.numel() == 0 ? 0 : exact.abs().max().item<double>();
    EXPECT_LE(largest_error(ours, exact), 2 * largest_error(eager, exact) + 4e-7 * scale + slack)
        << what;
  }
};

std::vector<std::vector<int64_t>> shapes() {
  if (is_small_run()) {
    return {{3, 1}, {5, 7}, {300, 128}, {3, 1031}, {3, 4096}, {2, 16392}};
  }
  return {{1, 1},     {3, 2},     {5, 3},     {33, 8},    {7, 64},    {1, 127},
          {9, 128},   {35, 256},  {3, 257},   {17, 512},  {5, 576},   {3, 1000},
          {60, 1024}, {2, 1031},  {5, 2048},  {33, 4096}, {3, 5003},  {4, 8192},
          {3, 16384}, {3, 16392}, {2, 40000}, {2500, 64}, {1639, 128}};
}

std::string name_of(at::IntArrayRef shape, const std::string& what) {
  std::string name = what + ", shape";
  for (const int64_t size : shape) {
    name += " " + std::to_string(size);
  }
  return name;
}

// ---- gated RMSNorm

struct Gated {
  at::Tensor x, gate, weight, grad_out;
  int64_t variant = 0;
  int64_t act = 0;
  bool gate_first = false;

  Gated in(at::ScalarType dtype) const {
    Gated other = *this;
    for (at::Tensor* tensor : {&other.x, &other.gate, &other.weight, &other.grad_out}) {
      *tensor = tensor->to(dtype);
    }
    return other;
  }
  std::string name() const {
    return name_of(x.sizes(), "variant " + std::to_string(variant) + ", act " +
                                  std::to_string(act) + (gate_first ? ", gate first" : ""));
  }
};

// As the models write it: Qwen3NextRMSNormGated, KimiLinearRMSNormGated, MambaRMSNormGated. In double nothing is
// rounded.
at::Tensor eager_gated(const Gated& in) {
  const bool exact = in.x.scalar_type() == at::kDouble;
  const auto wide = [&](const at::Tensor& tensor) {
    return exact ? tensor : tensor.to(at::kFloat);
  };
  const at::Tensor gate = in.act == 0 ? at::silu(wide(in.gate)) : at::sigmoid(wide(in.gate));
  at::Tensor x = wide(in.x);
  if (in.gate_first) {
    x = x * gate;
  }
  at::Tensor norm = x * at::rsqrt(x.pow(2).mean(-1, true) + kEps);
  switch (in.variant) {
    case 0:
      norm = in.weight * norm.to(in.x.scalar_type());
      break;
    case 3:
      norm = norm * (1.0 + wide(in.weight));
      break;
    default:
      norm = wide(in.weight) * norm;
  }
  return (in.gate_first ? norm : norm * gate).to(in.x.scalar_type());
}

Tensors gradients_of(const Gated& in) {
  Gated leaf = in;
  for (at::Tensor* tensor : {&leaf.x, &leaf.gate, &leaf.weight}) {
    *tensor = tensor->detach().clone().set_requires_grad(true);
  }
  eager_gated(leaf).backward(in.grad_out);
  return {leaf.x.grad(), leaf.gate.grad(), leaf.weight.grad()};
}

class GatedRmsNorm : public Forms {
 protected:
  Gated inputs(at::IntArrayRef shape) const {
    return {random(shape), random(shape), random({shape.back()}), random(shape)};
  }
  at::Tensor forward(const Gated& in) const {
    return package()("gated_rms_norm", in.x, in.gate, in.weight, kEps, in.variant, in.act,
                     in.gate_first)
        .at(0)
        .toTensor();
  }
  Tensors backward(const Gated& in) const {
    const auto stack = package()("gated_rms_norm_backward", in.grad_out, in.x, in.gate, in.weight,
                                 kEps, in.variant, in.act, in.gate_first);
    return {stack.at(0).toTensor(), stack.at(1).toTensor(), stack.at(2).toTensor()};
  }
  void expect_like_eager(const Gated& in) const {
    expect_no_worse(forward(in), eager_gated(in), eager_gated(in.in(at::kDouble)), in.name());
    const Tensors ours = backward(in), eagers = gradients_of(in),
                  exact = gradients_of(in.in(at::kDouble));
    const char* names[] = {"grad_x, ", "grad_gate, ", "grad_weight, "};
    for (size_t i = 0; i < 3; ++i) {
      ASSERT_EQ(ours[i].scalar_type(), eagers[i].scalar_type());
      // The gradient of x is a difference; that of the weight a sum of many rows.
      const double slack = 3e-7 * std::sqrt(static_cast<double>(in.x.numel() / in.x.size(-1))) +
                           2e-6 * exact[i].abs().max().item<double>();
      expect_no_worse(ours[i], eagers[i], exact[i], names[i] + in.name(), slack);
    }
  }
};

TEST_P(GatedRmsNorm, IsNoWorseThanTwiceEagerInEveryShapeVariantAndOrder) {
  int64_t turn = 0;
  for (const std::vector<int64_t>& shape : shapes()) {
    Gated in = inputs(shape);
    for (const int64_t variant : {0, 2, 3}) {
      for (const bool gate_first : {false, true}) {
        in.variant = variant;
        in.gate_first = gate_first;
        in.act = turn++ % 3 == 0 ? 1 : 0;
        expect_like_eager(in);
      }
    }
  }
}

TEST_P(GatedRmsNorm, NormalizesGroupsWithAWeightEach) {
  for (const auto& [groups, size] :
       {std::pair<int64_t, int64_t>{1, 64}, {3, 40}, {8, 128}, {5, 7}, {2, 2048}}) {
    for (const bool gate_first : {false, true}) {
      Gated in = inputs({37, groups, size});
      in.weight = random({groups, size});
      in.variant = gate_first ? 0 : 2;
      in.gate_first = gate_first;
      expect_like_eager(in);
    }
  }
}

TEST_P(GatedRmsNorm, TakesAFloat32WeightBesideA16BitInput) {
  for (const int64_t columns : {7, 128, 4096}) {
    Gated in = inputs({5, columns});
    in.weight = in.weight.to(at::kFloat);
    for (const int64_t variant : {0, 2, 3}) {
      in.variant = variant;
      expect_like_eager(in);
    }
    in.gate_first = true;
    in.variant = 2;
    expect_like_eager(in);
  }
}

TEST_P(GatedRmsNorm, ReadsAndWritesStridedRows) {
  const at::Tensor wide = random({6, 5, 7, 200}), gates = random({6, 5, 7, 200});
  const at::Tensor weight = random({72});
  const auto views = [](const at::Tensor& from) -> Tensors {
    return {from.slice(-1, 0, 72), from.slice(-1, 3, 75), from.slice(-1, 8, 80).slice(1, 0, 5, 2),
            from.slice(-1, 0, 72).transpose(0, 2),
            from.slice(0, 0, 1).slice(-1, 0, 72).expand({6, 5, 7, 72})};
  };
  for (size_t i = 0; i < 5; ++i) {
    Gated strided{views(wide)[i], views(gates)[i], weight, views(gates)[i]};
    Gated dense = strided;
    dense.x = strided.x.contiguous();
    dense.gate = dense.grad_out = strided.gate.contiguous();
    expect_no_worse(forward(strided), forward(dense), forward(dense).to(at::kDouble), "strided");
    at::Tensor storage =
        at::zeros({dense.x.size(0), dense.x.size(1), dense.x.size(2), 80}, weight.options());
    at::Tensor grad_x = storage.slice(-1, 0, 72), grad_gate = at::empty_like(dense.gate),
               grad_weight = at::empty_like(weight);
    package()("gated_rms_norm_backward_out", grad_x, grad_gate, grad_weight, strided.grad_out,
              strided.x, strided.gate, weight, kEps, int64_t{0}, int64_t{0}, false);
    const Tensors expected = backward(dense);
    const double scale = 4 * (GetParam().dtype == at::kFloat ? 0x1p-22 : 0x1p-8);
    EXPECT_LE(largest_error(grad_x, expected[0].to(at::kDouble)),
              scale * expected[0].abs().max().item<double>());
    EXPECT_LE(largest_error(grad_gate, expected[1].to(at::kDouble)),
              scale * expected[1].abs().max().item<double>());
    EXPECT_EQ(storage.slice(-1, 72, 80).abs().sum().item<double>(), 0) << "wrote between the rows";
  }
}

TEST_P(GatedRmsNorm, WorksInPlace) {
  for (const int64_t columns : {5, 128, 4096, 40000}) {
    for (const bool gate_first : {false, true}) {
      Gated in = inputs({9, columns});
      in.gate_first = gate_first;
      at::Tensor x = in.x.clone();
      package()("gated_rms_norm_out", x, x, in.gate, in.weight, kEps, in.variant, in.act,
                gate_first);
      EXPECT_TRUE(is_same_bits(x, forward(in)));
      at::Tensor grad_out = in.grad_out.clone(), gate = in.gate.clone(),
                 grad_weight = at::empty_like(in.weight);
      package()("gated_rms_norm_backward_out", grad_out, gate, grad_weight, grad_out, in.x, gate,
                in.weight, kEps, in.variant, in.act, gate_first);
      const Tensors expected = backward(in);
      EXPECT_TRUE(is_same_bits(grad_out, expected[0]));
      EXPECT_TRUE(is_same_bits(gate, expected[1]));
    }
  }
}

TEST_P(GatedRmsNorm, TakesNoRowsAtAll) {
  const Tensors empty = backward(inputs({0, 64}));
  EXPECT_EQ(empty[0].numel(), 0);
  EXPECT_EQ(empty[2].abs().sum().item<double>(), 0);
  EXPECT_EQ(forward(inputs({3, 0})).numel(), 0);
  EXPECT_EQ(backward(inputs({3, 0}))[2].numel(), 0);
}

TEST_P(GatedRmsNorm, CarriesNanAsEagerDoes) {
  Gated in = inputs({4, 200});
  in.x[0][3] = std::nan("");
  in.gate[1][4] = std::nan("");
  in.grad_out[2][5] = std::nan("");
  for (const bool gate_first : {false, true}) {
    in.gate_first = gate_first;
    EXPECT_TRUE(at::equal(forward(in).isnan(), eager_gated(in).isnan()));
    const Tensors ours = backward(in), theirs = gradients_of(in);
    for (size_t i = 0; i < 3; ++i) {
      EXPECT_TRUE(at::equal(ours[i].isnan(), theirs[i].isnan())) << i << gate_first;
    }
  }
}

TEST_P(GatedRmsNorm, GivesTheSameBitsEveryTime) {
  for (const std::vector<int64_t>& shape :
       std::vector<std::vector<int64_t>>{{700, 2048}, {900, 128}, {5, 40000}}) {
    const Gated in = inputs(shape);
    const at::Tensor first = forward(in);
    const Tensors gradients = backward(in);
    const int threads = at::get_num_threads();
    for (int repeat = 0; repeat < (is_small_run() ? 2 : 20); ++repeat) {
      at::set_num_threads(1 + repeat % 2);
      ASSERT_TRUE(is_same_bits(forward(in), first));
      const Tensors again = backward(in);
      for (size_t i = 0; i < 3; ++i) {
        ASSERT_TRUE(is_same_bits(again[i], gradients[i]));
      }
    }
    at::set_num_threads(threads);
  }
}

TEST_P(GatedRmsNorm, NamesTheArgumentThatIsWrong) {
  const Gated good = inputs({2, 64});
  const auto message = [&](const Gated& in) -> std::string {
    try {
      forward(in);
    } catch (const std::exception& error) {
      return error.what();
    }
    return "no error";
  };
  Gated in = good;
  in.gate = random({2, 32});
  EXPECT_THAT(message(in), ::testing::HasSubstr("[gated_rms_norm] gate: expected shape [2, 64]"));
  in = good;
  in.weight = random({3, 64});
  EXPECT_THAT(message(in), ::testing::HasSubstr("[gated_rms_norm] weight: expected shape [64]"));
  in = good;
  in.variant = 4;
  EXPECT_THAT(message(in), ::testing::HasSubstr("variant: expected 0, 1, 2 or 3, got 4"));
  in = good;
  in.act = 2;
  EXPECT_THAT(message(in), ::testing::HasSubstr("act: expected 0 (silu) or 1 (sigmoid), got 2"));
  if (GetParam().dtype != at::kFloat) {
    in = good;
    in.gate_first = true;
    in.weight = good.weight.to(at::kFloat);
    EXPECT_THAT(message(in), ::testing::HasSubstr("in variant 0 with the gate first"));
  }
}

TEST_P(GatedRmsNorm, InfersShapesOnMetaTensors) {
  const at::Tensor x = random({2, 64}).to(at::kMeta), weight = random({64}).to(at::kMeta);
  const auto all =
      package()("gated_rms_norm_backward", x, x, x, weight, kEps, int64_t{0}, int64_t{0}, false);
  EXPECT_EQ(all.at(1).toTensor().sizes(), x.sizes());
  EXPECT_EQ(all.at(2).toTensor().sizes(), weight.sizes());
}

INSTANTIATE_TEST_SUITE_P(Devices, GatedRmsNorm, ::testing::ValuesIn(cases()), case_name);

// ---- LayerNorm

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
  const auto message = [&](const Layer& in) -> std::string {
    try {
      forward(in);
    } catch (const std::exception& error) {
      return error.what();
    }
    return "no error";
  };
  Layer in = inputs({2, 64});
  in.weight = random({32});
  EXPECT_THAT(message(in), ::testing::HasSubstr("[layer_norm] weight: expected shape [64]"));
  in = inputs({2, 64});
  in.bias = random({1, 64});
  EXPECT_THAT(message(in), ::testing::HasSubstr("[layer_norm] bias: expected shape [64]"));
}

INSTANTIATE_TEST_SUITE_P(Devices, LayerNorm, ::testing::ValuesIn(cases()), case_name);

class FormsCuda : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!testing::why_no_cuda().empty()) {
      GTEST_SKIP() << testing::why_no_cuda();
    }
    at::manual_seed(0);
  }
};

TEST_F(FormsCuda, CanBeCapturedIntoAGraph) {
#ifdef GRAFT_WITH_CUDA
  const Package& package = Package::get("rms-norm", testing::kCudaVariant);
  const at::TensorOptions options = at::TensorOptions(at::kCUDA).dtype(at::kBFloat16);
  for (const int64_t columns : {128, 4096, 40000}) {
    const at::Tensor weight = at::randn({columns}, options),
                     gate = at::randn({40, columns}, options);
    const at::Tensor grad_out = at::randn({40, columns}, options),
                     fresh = at::randn({40, columns}, options);
    at::Tensor x = at::randn({40, columns}, options), grad_x = at::zeros_like(x),
               grad_gate = at::zeros_like(x), grad_weight = at::zeros_like(weight);
    const auto expected = package("gated_rms_norm_backward", grad_out, fresh, gate, weight, kEps,
                                  int64_t{0}, int64_t{0}, false);
    const auto normed = package("layer_norm", fresh, weight, weight, kEps);
    at::Tensor out = at::zeros_like(x);
    cudaDeviceSynchronize();
    const testing::CurrentStream stream;
    const auto work = [&] {
      package("gated_rms_norm_backward_out", grad_x, grad_gate, grad_weight, grad_out, x, gate,
              weight, kEps, int64_t{0}, int64_t{0}, false);
      package("layer_norm_out", out, x, weight, weight, kEps);
    };
    work();  // the partial sums come from PyTorch's allocator; this fills its pool
    stream.synchronize();
    const testing::CapturedGraph graph(stream, work);
    x.copy_(fresh);
    graph.launch();
    stream.synchronize();
    EXPECT_TRUE(is_same_bits(grad_x, expected.at(0).toTensor())) << columns;
    EXPECT_TRUE(is_same_bits(grad_gate, expected.at(1).toTensor())) << columns;
    EXPECT_TRUE(is_same_bits(grad_weight, expected.at(2).toTensor())) << columns;
    EXPECT_TRUE(is_same_bits(out, normed.at(0).toTensor())) << columns;
  }
#endif
}

TEST_F(FormsCuda, ReachesBeyondTwoToTheThirtyFirstElements) {
  const Package& package = Package::get("rms-norm", testing::kCudaVariant);
  const int64_t rows = is_small_run() ? 100 : (int64_t{1} << 31) / 4096 + 3;
  const at::TensorOptions options = at::TensorOptions(at::kCUDA).dtype(at::kBFloat16);
  const at::Tensor row = at::randn({1, 4096}, options), weight = at::randn({4096}, options);
  const at::Tensor x = row.expand({rows, 4096}).contiguous();
  at::Tensor out = at::empty_like(x);
  package("gated_rms_norm_out", out, x, x, weight, kEps, int64_t{0}, int64_t{0}, false);
  const auto expected =
      package("gated_rms_norm", row, row, weight, kEps, int64_t{0}, int64_t{0}, false);
  EXPECT_TRUE(is_same_bits(out.slice(0, rows - 1, rows), expected.at(0).toTensor()));
}

}  // namespace
}  // namespace graft_kernels::rms_norm
