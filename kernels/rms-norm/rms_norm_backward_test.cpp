// RMSNorm's backward against autograd through eager ATen and in float64, one suite for all devices
// and dtypes.

#include <cmath>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "kernels/common/test_suite.h"

namespace graft_kernels::rms_norm {
namespace {

using testing::is_same_bits;
using testing::is_small_run;
using testing::largest_error;
using testing::Package;

constexpr double kEps = 1e-5;

// The contract with separate ATen operations, as models write it, in any dtype.
at::Tensor eager(const at::Tensor& x, const at::Tensor& weight, int64_t variant) {
  const bool exact = x.scalar_type() == at::kDouble;
  const at::Tensor wide = exact ? x : x.to(at::kFloat);
  const at::Tensor norm = wide * at::rsqrt(wide.pow(2).mean(-1, true) + kEps);
  switch (variant) {
    case 0:
      return weight * norm.to(x.scalar_type());
    case 3:
      return (norm * (1.0 + weight.to(norm.scalar_type()))).to(x.scalar_type());
    default:
      return (weight.to(norm.scalar_type()) * norm).to(x.scalar_type());
  }
}

struct Gradients {
  at::Tensor x, weight;
};

struct Inputs {
  at::Tensor x, weight, grad_out;
  at::Tensor grad_sum;  // undefined without an addition

  Inputs in(at::ScalarType dtype) const {
    return {x.to(dtype), weight.to(dtype), grad_out.to(dtype),
            grad_sum.defined() ? grad_sum.to(dtype) : grad_sum};
  }
};

Gradients by_autograd(const Inputs& inputs, int64_t variant) {
  const at::Tensor x = inputs.x.detach().clone().set_requires_grad(true);
  const at::Tensor weight = inputs.weight.detach().clone().set_requires_grad(true);
  eager(x, weight, variant).backward(inputs.grad_out);
  const at::Tensor grad_x = inputs.grad_sum.defined() ? x.grad() + inputs.grad_sum : x.grad();
  return {grad_x, weight.grad()};
}

class RmsNormBackward : public testing::OnEachDevice {
 protected:
  Inputs random_inputs(at::IntArrayRef shape, bool add = false) const {
    return {random(shape), random({shape.back()}), random(shape),
            add ? random(shape) : at::Tensor()};
  }
  const Package& package() const { return Package::for_device("rms-norm", GetParam().device); }

  Gradients backward(const Inputs& inputs, int64_t variant) const {
    const auto both = inputs.grad_sum.defined()
                          ? package()("add_rms_norm_backward", inputs.grad_out, inputs.grad_sum,
                                      inputs.x, inputs.weight, kEps, variant)
                          : package()("rms_norm_backward", inputs.grad_out, inputs.x, inputs.weight,
                                      kEps, variant);
    return {both.at(0).toTensor(), both.at(1).toTensor()};
  }

  // Error no worse than twice eager's, plus what the order of a float32 sum may cost.
  void expect_like_autograd(const Gradients& ours, const Inputs& inputs, int64_t variant) const {
    const Gradients eagers = by_autograd(inputs, variant);
    const Inputs exact_inputs = inputs.in(at::kDouble);
    const Gradients exact = by_autograd(exact_inputs, variant);
    const at::Tensor norm = eager(exact_inputs.x, at::ones_like(exact_inputs.weight), 2);
    const at::Tensor shares = (exact_inputs.grad_out * norm).abs();
    const double weight_slack =
        0x1p-24 * shares.reshape({-1, shares.size(-1)}).sum(0).max().item<double>();
    // The gradient is a difference; what it may lose is a matter of what is subtracted.
    const at::Tensor inverse = at::rsqrt(exact_inputs.x.pow(2).mean(-1, /*keepdim=*/true) + kEps);
    const at::Tensor minuend =
        exact_inputs.grad_out * inverse * (exact_inputs.weight + (variant == 3 ? 1.0 : 0.0));
    const double x_slack = 4 * 0x1p-24 * minuend.abs().max().item<double>();
    ASSERT_EQ(ours.x.scalar_type(), inputs.x.scalar_type());
    ASSERT_EQ(ours.weight.scalar_type(), inputs.weight.scalar_type());
    EXPECT_LE(largest_error(ours.x, exact.x), 2 * largest_error(eagers.x, exact.x) + x_slack)
        << "x, shape " << inputs.x.sizes() << " variant " << variant;
    EXPECT_LE(largest_error(ours.weight, exact.weight),
              2 * largest_error(eagers.weight, exact.weight) + weight_slack)
        << "weight, shape " << inputs.x.sizes() << " variant " << variant;
  }
};

std::vector<std::vector<int64_t>> shapes() {
  if (is_small_run()) {
    return {{3, 1}, {5, 7}, {2, 64}, {300, 256}, {3, 1031}, {3, 4096}, {3, 8192}, {2, 16384}};
  }
  return {{1, 1},      {3, 2},       {5, 3},       {33, 8},      {7, 64},     {1, 127},
          {9, 128},    {35, 256},    {3, 257},     {17, 512},    {5, 576},    {3, 1000},
          {600, 1024}, {2, 1031},    {5, 2048},    {1, 4096},    {333, 4096}, {3, 5003},
          {4, 8192},   {3, 12288},   {3, 16384},   {3, 16392},   {2, 32768},  {2, 65536},
          {20000, 64}, {16391, 128}, {300, 10240}, {150, 32768}, {70, 65536}, {20, 262144},
          {700, 5120}, {601, 8192}};
}

TEST_P(RmsNormBackward, IsNoWorseThanTwiceEagerInEveryShapeAndVariant) {
  for (const std::vector<int64_t>& shape : shapes()) {
    if (GetParam().device == at::kCPU && shape[0] * shape[1] > (1 << 22)) {
      continue;  // for the kernels whose blocks take long rows in turn
    }
    const Inputs inputs = random_inputs(shape);
    for (const int64_t variant : {0, 1, 2, 3}) {
      expect_like_autograd(backward(inputs, variant), inputs, variant);
    }
  }
}

TEST_P(RmsNormBackward, AddsTheGradientOfTheSum) {
  for (const std::vector<int64_t>& shape : shapes()) {
    if (GetParam().device == at::kCPU && shape[0] * shape[1] > (1 << 22)) {
      continue;
    }
    const Inputs inputs = random_inputs(shape, /*add=*/true);
    expect_like_autograd(backward(inputs, 0), inputs, 0);
  }
}

TEST_P(RmsNormBackward, TakesAFloat32WeightBesideA16BitInput) {
  for (const int64_t columns : {7, 576, 4096, 20000}) {
    Inputs inputs = random_inputs({5, columns});
    inputs.weight = inputs.weight.to(at::kFloat);
    for (const int64_t variant : {0, 2, 3}) {
      // Variant 0 promotes its output to the weight's dtype.
      inputs.grad_out = inputs.grad_out.to(variant == 0 ? at::kFloat : GetParam().dtype);
      expect_like_autograd(backward(inputs, variant), inputs, variant);
    }
  }
}

TEST_P(RmsNormBackward, ReadsAndWritesStridedRows) {
  const at::Tensor weight = random({72});
  const at::Tensor wide = random({6, 5, 7, 200});
  for (const at::Tensor& view :
       {wide.slice(-1, 0, 72), wide.slice(-1, 3, 75), wide.slice(-1, 0, 72).transpose(0, 2),
        wide.slice(-1, 8, 80).slice(1, 0, 5, 2),
        wide.slice(0, 0, 1).slice(-1, 0, 72).expand({6, 5, 7, 72})}) {
    const Inputs inputs{view, weight, view, {}};
    const Inputs dense{view.contiguous(), weight, view.contiguous(), {}};
    expect_like_autograd(backward(inputs, 0), dense, 0);
    at::Tensor storage = at::zeros({view.size(0), view.size(1), view.size(2), 80}, view.options());
    at::Tensor grad_x = storage.slice(-1, 0, 72);
    at::Tensor grad_weight = at::empty_like(weight);
    package()("rms_norm_backward_out", grad_x, grad_weight, view, view, weight, kEps, int64_t{0});
    expect_like_autograd({grad_x, grad_weight}, dense, 0);
    EXPECT_EQ(storage.slice(-1, 72, 80).abs().sum().item<double>(), 0) << "wrote between the rows";
  }
}

TEST_P(RmsNormBackward, WorksInPlaceOfTheIncomingGradient) {
  for (const int64_t columns : {5, 576, 4096, 40000}) {
    const Inputs inputs = random_inputs({9, columns}, /*add=*/true);
    const Gradients expected = backward(inputs, 0);
    at::Tensor grad_out = inputs.grad_out.clone();
    at::Tensor grad_weight = at::empty_like(inputs.weight);
    package()("add_rms_norm_backward_out", grad_out, grad_weight, grad_out, inputs.grad_sum,
              inputs.x, inputs.weight, kEps, int64_t{0});
    EXPECT_TRUE(is_same_bits(grad_out, expected.x));
    EXPECT_TRUE(is_same_bits(grad_weight, expected.weight));
  }
}

TEST_P(RmsNormBackward, GivesZeroForTheWeightWithoutRows) {
  const Gradients empty = backward(random_inputs({0, 64}), 0);
  EXPECT_EQ(empty.x.numel(), 0);
  EXPECT_EQ(empty.weight.abs().sum().item<double>(), 0);
  EXPECT_EQ(backward(random_inputs({3, 0}), 0).weight.numel(), 0);
}

TEST_P(RmsNormBackward, CarriesNanWhereAutogradDoes) {
  Inputs inputs = random_inputs({4, 200});
  inputs.x[0][3] = std::nan("");
  inputs.grad_out[1][4] = std::nan("");
  inputs.x[2].zero_();
  const Gradients ours = backward(inputs, 0), theirs = by_autograd(inputs, 0);
  EXPECT_TRUE(at::equal(ours.x.isnan(), theirs.x.isnan()));
  EXPECT_TRUE(at::equal(ours.weight.isnan(), theirs.weight.isnan()));
}

TEST_P(RmsNormBackward, GivesTheSameBitsEveryTime) {
  for (const std::vector<int64_t>& shape :
       std::vector<std::vector<int64_t>>{{700, 2048}, {900, 128}, {5, 40000}}) {
    const Inputs inputs = random_inputs(shape);
    const Gradients first = backward(inputs, 0);
    const int repeats = is_small_run() ? 3 : GetParam().device == at::kCUDA ? 250 : 25;
    const int threads = at::get_num_threads();
    for (int repeat = 0; repeat < repeats; ++repeat) {
      at::set_num_threads(1 + repeat % 2);
      const Gradients again = backward(inputs, 0);
      ASSERT_TRUE(is_same_bits(again.x, first.x)) << repeat;
      ASSERT_TRUE(is_same_bits(again.weight, first.weight)) << repeat;
    }
    at::set_num_threads(threads);
  }
}

TEST_P(RmsNormBackward, NamesTheArgumentThatIsWrong) {
  const Inputs inputs = random_inputs({2, 64});
  const auto message = [&](const at::Tensor& grad_x, const at::Tensor& grad_weight,
                           const at::Tensor& grad_out) {
    return testing::message_of([&] {
      package()("rms_norm_backward_out", grad_x, grad_weight, grad_out, inputs.x, inputs.weight,
                kEps, int64_t{0});
    });
  };
  const at::Tensor grad_x = at::empty_like(inputs.x), grad_weight = at::empty_like(inputs.weight);
  EXPECT_THAT(message(grad_x, grad_weight, random({2, 32})),
              ::testing::HasSubstr("[rms_norm_backward_out] grad_out: expected shape [2, 64]"));
  EXPECT_THAT(message(random({2, 32}), grad_weight, inputs.grad_out),
              ::testing::HasSubstr("[rms_norm_backward_out] grad_x: expected shape [2, 64]"));
  EXPECT_THAT(message(grad_x, random({32}), inputs.grad_out),
              ::testing::HasSubstr("[rms_norm_backward_out] grad_weight: expected shape [64]"));
  EXPECT_THAT(message(grad_x, grad_weight.to(at::kDouble), inputs.grad_out),
              ::testing::HasSubstr("grad_weight: expected"));
}

TEST_P(RmsNormBackward, InfersShapesOnMetaTensors) {
  const at::Tensor x = random({2, 64}).to(at::kMeta), weight = random({64}).to(at::kMeta);
  const auto both = package()("rms_norm_backward", x, x, weight, kEps, int64_t{0});
  EXPECT_EQ(both.at(0).toTensor().sizes(), x.sizes());
  EXPECT_EQ(both.at(1).toTensor().sizes(), weight.sizes());
  EXPECT_TRUE(both.at(0).toTensor().is_meta());
}

INSTANTIATE_TEST_SUITE_P(Devices, RmsNormBackward, ::testing::ValuesIn(testing::device_cases()),
                         testing::case_name);

using RmsNormBackwardCuda = testing::OnCuda;

TEST_F(RmsNormBackwardCuda, CanBeCapturedIntoAGraph) {
#ifdef GRAFT_WITH_CUDA
  const Package& package = Package::get("rms-norm", testing::kCudaVariant);
  for (const int64_t columns : {576, 4096, 65536}) {
    const at::TensorOptions options = at::TensorOptions(at::kCUDA).dtype(at::kBFloat16);
    const at::Tensor weight = at::randn({columns}, options);
    at::Tensor x = at::randn({40, columns}, options);
    const at::Tensor grad_out = at::randn({40, columns}, options);
    const at::Tensor fresh = at::randn({40, columns}, options);
    at::Tensor grad_x = at::zeros_like(x), grad_weight = at::zeros_like(weight);
    const auto expected = package("rms_norm_backward", grad_out, fresh, weight, kEps, int64_t{0});
    const testing::CurrentStream stream;
    // The partial sums come from PyTorch's allocator; one run outside the capture fills its pool.
    const auto work = [&] {
      package("rms_norm_backward_out", grad_x, grad_weight, grad_out, x, weight, kEps, int64_t{0});
    };
    work();
    stream.synchronize();
    const testing::CapturedGraph graph(stream, work);
    x.copy_(fresh);
    graph.launch();
    stream.synchronize();
    EXPECT_TRUE(is_same_bits(grad_x, expected.at(0).toTensor())) << columns << " columns";
    EXPECT_TRUE(is_same_bits(grad_weight, expected.at(1).toTensor())) << columns << " columns";
  }
#endif
}

TEST_F(RmsNormBackwardCuda, ReachesBeyondTwoToTheThirtyFirstElements) {
  const Package& package = Package::get("rms-norm", testing::kCudaVariant);
  const int64_t rows = is_small_run() ? 100 : (int64_t{1} << 31) / 4096 + 3;
  const at::TensorOptions options = at::TensorOptions(at::kCUDA).dtype(at::kBFloat16);
  const at::Tensor row = at::randn({1, 4096}, options), grad_row = at::randn({1, 4096}, options);
  const at::Tensor weight = at::randn({4096}, options);
  const at::Tensor x = row.expand({rows, 4096}).contiguous();
  at::Tensor grad = grad_row.expand({rows, 4096}).contiguous();
  at::Tensor grad_weight = at::empty_like(weight);
  package("rms_norm_backward_out", grad, grad_weight, grad, x, weight, kEps, int64_t{0});
  const auto expected = package("rms_norm_backward", grad_row, row, weight, kEps, int64_t{0});
  EXPECT_TRUE(is_same_bits(grad.slice(0, rows - 1, rows), expected.at(0).toTensor()));
  const at::Tensor share = expected.at(1).toTensor().to(at::kDouble) * static_cast<double>(rows);
  EXPECT_LE(
      ((grad_weight.to(at::kDouble) - share).abs() / (share.abs() + 1.0)).max().item<double>(),
      2e-2);
}

}  // namespace
}  // namespace graft_kernels::rms_norm
