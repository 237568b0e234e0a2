// Cross-entropy and its linear form beside PyTorch's own and in float64: one suite for all devices
// and dtypes.

#include <cmath>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "kernels/common/test_suite.h"

namespace graft_kernels::loss {
namespace {

using testing::is_same_bits;
using testing::is_small_run;
using testing::largest_error;
using testing::message_of;
using testing::Package;

struct Options {
  int64_t ignore_index = -100;
  double softcap = 0;
  double smoothing = 0;
};

const std::vector<Options>& all_options() {
  static const std::vector<Options> options = {
      {}, {3, 0, 0}, {-100, 2.5, 0}, {-100, 0, 0.1}, {-100, 30, 0.25}};
  return options;
}

at::Tensor capped(const at::Tensor& logits, const Options& options) {
  return options.softcap > 0 ? at::tanh(logits / options.softcap) * options.softcap : logits;
}

// One loss per row as PyTorch computes it: in float32 of 16-bit logits, as transformers does.
at::Tensor eager_loss(const at::Tensor& logits, const at::Tensor& labels, const Options& options) {
  const at::Tensor wide = logits.scalar_type() == at::kDouble ? logits : logits.to(at::kFloat);
  return at::cross_entropy_loss(capped(wide, options), labels, {}, at::Reduction::None,
                                options.ignore_index, options.smoothing);
}

struct Result {
  at::Tensor loss, lse;
  std::vector<at::Tensor> grads;
};

// Losses of `make_logits` of the inputs, and the gradients of the inputs.
Result by_autograd(const std::vector<at::Tensor>& inputs, const at::Tensor& labels,
                   const at::Tensor& grad_loss, const Options& options,
                   const std::function<at::Tensor(const std::vector<at::Tensor>&)>& make_logits) {
  std::vector<at::Tensor> leaves;
  for (const at::Tensor& input : inputs) {
    leaves.push_back(input.detach().clone().set_requires_grad(true));
  }
  const at::Tensor loss = eager_loss(make_logits(leaves), labels, options);
  loss.backward(grad_loss.to(loss.scalar_type()).contiguous());
  Result result{loss.detach(), {}, {}};
  for (const at::Tensor& leaf : leaves) {
    result.grads.push_back(leaf.grad());
  }
  return result;
}

at::Tensor itself(const std::vector<at::Tensor>& inputs) { return inputs[0]; }

at::Tensor linear(const std::vector<at::Tensor>& inputs) {
  const at::Tensor logits = at::matmul(inputs[0], inputs[1].t());
  return inputs.size() > 2 ? logits + inputs[2] : logits;
}

std::vector<at::Tensor> doubles(const std::vector<at::Tensor>& tensors) {
  std::vector<at::Tensor> wide;
  for (const at::Tensor& tensor : tensors) {
    wide.push_back(tensor.to(at::kDouble));
  }
  return wide;
}

class Loss : public testing::OnEachDevice {
 protected:
  at::Tensor random_factors(int64_t rows) const {
    return at::randn({rows}, at::kFloat).to(GetParam().device);
  }
  // Labels with some rows ignored.
  at::Tensor random_labels(int64_t rows, int64_t columns, const Options& options = {}) const {
    at::Tensor labels = at::randint(columns, {rows}, at::kLong);
    if (rows > 1) {
      labels[rows / 2] = options.ignore_index;
    }
    return labels.to(GetParam().device);
  }
  const Package& package() const { return Package::for_device("loss", GetParam().device); }

  Result forward_and_backward(const at::Tensor& logits, const at::Tensor& labels,
                              const at::Tensor& grad_loss, const Options& options) const {
    const auto made = package()("cross_entropy", logits, labels, options.ignore_index,
                                options.softcap, options.smoothing);
    const at::Tensor loss = made.at(0).toTensor(), lse = made.at(1).toTensor();
    const auto grad = package()("cross_entropy_backward", grad_loss, logits, labels, lse,
                                options.ignore_index, options.softcap, options.smoothing);
    return {loss, lse, {grad.at(0).toTensor()}};
  }

  Result train(const std::vector<at::Tensor>& inputs, const at::Tensor& labels,
               const at::Tensor& grad_loss, const Options& options, int64_t chunk_rows) const {
    const auto made = package()("linear_cross_entropy_train", grad_loss, inputs[0], inputs[1],
                                bias_of(inputs), labels, options.ignore_index, options.softcap,
                                options.smoothing, chunk_rows, true);
    Result result{made.at(0).toTensor(), made.at(1).toTensor(), {}};
    for (size_t i = 0; i < inputs.size(); ++i) {
      result.grads.push_back(made.at(2 + i).toTensor());
    }
    return result;
  }

  Result linear_apart(const std::vector<at::Tensor>& inputs, const at::Tensor& labels,
                      const at::Tensor& grad_loss, const Options& options,
                      int64_t chunk_rows) const {
    const auto made =
        package()("linear_cross_entropy", inputs[0], inputs[1], bias_of(inputs), labels,
                  options.ignore_index, options.softcap, options.smoothing, chunk_rows);
    Result result{made.at(0).toTensor(), made.at(1).toTensor(), {}};
    const auto grads = package()("linear_cross_entropy_backward", grad_loss, inputs[0], inputs[1],
                                 bias_of(inputs), labels, result.lse, options.ignore_index,
                                 options.softcap, options.smoothing, chunk_rows, true);
    for (size_t i = 0; i < inputs.size(); ++i) {
      result.grads.push_back(grads.at(i).toTensor());
    }
    return result;
  }

  static std::optional<at::Tensor> bias_of(const std::vector<at::Tensor>& inputs) {
    return inputs.size() > 2 ? std::optional<at::Tensor>(inputs[2]) : std::nullopt;
  }

  // What a rounding to the dtype costs at most, relative.
  static double unit_roundoff() {
    return GetParam().dtype == at::kFloat  ? 0x1p-24
           : GetParam().dtype == at::kHalf ? 0x1p-12
                                           : 0x1p-9;
  }

  // Error no worse than twice eager's, plus what float32 sums in another order may cost, and what
  // the last rounding of a gradient may: which way it goes is luck. On CUDA the weight's gradient
  // (the second) is rounded once for each chunk.
  void expect_like_autograd(const Result& ours, const std::vector<at::Tensor>& inputs,
                            const at::Tensor& labels, const at::Tensor& grad_loss,
                            const Options& options,
                            at::Tensor (*make_logits)(const std::vector<at::Tensor>&),
                            int64_t chunks = 1) const {
    const Result eager = by_autograd(inputs, labels, grad_loss, options, make_logits);
    const Result exact = by_autograd(doubles(inputs), labels, grad_loss, options, make_logits);
    constexpr double kSlack = 0x1p-20;
    ASSERT_EQ(ours.loss.scalar_type(), at::kFloat);
    const auto largest = [](const at::Tensor& tensor) { return tensor.abs().max().item<double>(); };
    EXPECT_LE(largest_error(ours.loss, exact.loss),
              2 * largest_error(eager.loss, exact.loss) + kSlack * (1 + largest(exact.loss)))
        << "loss, shape " << inputs[0].sizes();
    for (size_t i = 0; i < inputs.size(); ++i) {
      const bool is_rounded_often = i == 1 && GetParam().device == at::kCUDA;
      const double roundings = static_cast<double>(is_rounded_often ? chunks : 1) * unit_roundoff();
      ASSERT_EQ(ours.grads[i].scalar_type(), inputs[i].scalar_type());
      ASSERT_EQ(ours.grads[i].sizes(), inputs[i].sizes());
      EXPECT_LE(largest_error(ours.grads[i], exact.grads[i]),
                2 * largest_error(eager.grads[i], exact.grads[i]) +
                    kSlack * (largest(grad_loss) + largest(exact.grads[i])) +
                    roundings * largest(exact.grads[i]))
          << "gradient " << i << ", shape " << inputs[0].sizes() << ", softcap " << options.softcap
          << ", smoothing " << options.smoothing;
    }
  }
};

std::vector<std::pair<int64_t, int64_t>> shapes() {
  if (is_small_run()) {
    return {{1, 5}, {3, 8}, {5, 257}, {9, 1000}, {2, 50257}, {2, 131072}};
  }
  return {{1, 5},    {3, 8},    {5, 31},     {33, 64},    {7, 257},    {300, 1000}, {64, 512},
          {9, 4099}, {5, 8192}, {33, 32000}, {13, 50257}, {5, 131072}, {2, 262144}};
}

TEST_P(Loss, IsNoWorseThanTwiceEagerInEveryShapeAndOption) {
  for (const auto& [rows, columns] : shapes()) {
    const at::Tensor logits = random({rows, columns}) * 3;
    const at::Tensor grad_loss = random_factors(rows);
    for (const Options& options : all_options()) {
      const at::Tensor labels = random_labels(rows, columns, options);
      expect_like_autograd(forward_and_backward(logits, labels, grad_loss, options), {logits},
                           labels, grad_loss, options, itself);
    }
  }
}

TEST_P(Loss, LinearFormsAreNoWorseThanTwiceEagerInEveryChunk) {
  struct Shape {
    int64_t rows, depth, columns, chunk_rows;
  };
  for (const Shape& shape :
       {Shape{1, 8, 5, 0},
        {64, 8, 5, 0},
        {70, 16, 64, 0},
        {40, 24, 257, 16},
        {150, 64, 1000, 64},
        {129, 32, 2051, 0},
        // Rows that one to eight blocks of a cluster keep, and one beyond that.
        {150, 8, 36003, 0},
        {5, 8, 131077, 0},
        {3, 8, 300007, 0},
        {2, 8, 700003, 0}}) {
    if (is_small_run() && shape.columns >= 300007) {
      continue;
    }
    if (shape.rows == 1 && GetParam().dtype != at::kFloat) {
      continue;  // how the rounding of a handful of logits compares to eager's is luck
    }
    const int64_t chunks =
        shape.chunk_rows == 0 ? 1 : (shape.rows + shape.chunk_rows - 1) / shape.chunk_rows;
    const at::Tensor hidden = random({shape.rows, shape.depth});
    const at::Tensor weight = random({shape.columns, shape.depth}) * 0.3;
    const at::Tensor grad_loss = random_factors(shape.rows);
    for (const Options& options : all_options()) {
      const at::Tensor labels = random_labels(shape.rows, shape.columns, options);
      for (std::vector<at::Tensor> inputs :
           {std::vector<at::Tensor>{hidden, weight}, {hidden, weight, random({shape.columns})}}) {
        expect_like_autograd(train(inputs, labels, grad_loss, options, shape.chunk_rows), inputs,
                             labels, grad_loss, options, linear, chunks);
        expect_like_autograd(linear_apart(inputs, labels, grad_loss, options, shape.chunk_rows),
                             inputs, labels, grad_loss, options, linear, chunks);
      }
    }
  }
}

TEST_P(Loss, ReadsAndWritesStridedTensors) {
  const at::Tensor wide = random({6, 5, 200});
  const at::Tensor labels = at::randint(72, {5, 6}, at::kLong).to(GetParam().device).t();
  const at::Tensor factor = random_factors(1).expand({6, 5});
  for (const at::Tensor& view :
       {wide.slice(-1, 0, 72), wide.slice(-1, 3, 75),
        wide.slice(-1, 8, 80).transpose(0, 1).contiguous().transpose(0, 1)}) {
    const Result ours = forward_and_backward(view, labels, factor, {});
    const Result dense =
        forward_and_backward(view.contiguous(), labels.contiguous(), factor.contiguous(), {});
    EXPECT_LE(largest_error(ours.loss, dense.loss.to(at::kDouble)), 1e-5);
    EXPECT_LE(largest_error(ours.grads[0], dense.grads[0].to(at::kDouble)),
              GetParam().dtype == at::kFloat ? 1e-6 : 1e-2);
    at::Tensor storage = at::zeros({6, 5, 80}, view.options());
    package()("cross_entropy_backward_out", storage.slice(-1, 0, 72), factor, view, labels,
              ours.lse, int64_t{-100}, 0.0, 0.0);
    EXPECT_TRUE(is_same_bits(storage.slice(-1, 0, 72), ours.grads[0]));
    EXPECT_EQ(storage.slice(-1, 72, 80).abs().sum().item<double>(), 0) << "wrote between the rows";
  }
  const at::Tensor hidden = random({40, 96}).slice(1, 8, 40);
  const at::Tensor weight = random({64, 50}).slice(1, 2, 34);
  const at::Tensor strided_labels =
      at::randint(64, {80}, at::kLong).to(GetParam().device).slice(0, 0, 80, 2);
  const Result ours = train({hidden, weight}, strided_labels, factor[0][0].expand({40}), {}, 16);
  expect_like_autograd(ours, {hidden, weight}, strided_labels, factor[0][0].expand({40}), {},
                       linear, /*chunks=*/3);
}

TEST_P(Loss, WritesTheGradientOverTheLogits) {
  for (const int64_t columns : {5, 1000, 131072}) {
    at::Tensor logits = random({9, columns});
    const at::Tensor labels = random_labels(9, columns), grad_loss = random_factors(9);
    const Options options{-100, 5, 0.1};
    const Result expected = forward_and_backward(logits, labels, grad_loss, options);
    package()("cross_entropy_backward_out", logits, grad_loss, logits, labels, expected.lse,
              options.ignore_index, options.softcap, options.smoothing);
    EXPECT_TRUE(is_same_bits(logits, expected.grads[0])) << columns << " columns";
  }
}

TEST_P(Loss, ARowThatIsIgnoredCountsForNothingEvenWithNan) {
  at::Tensor logits = random({4, 40});
  logits[1].fill_(std::nan(""));
  at::Tensor labels = random_labels(4, 40);
  labels.fill_(2);
  labels[1] = -100;
  const Result ours = forward_and_backward(logits, labels, random_factors(4), {});
  EXPECT_EQ(ours.loss[1].item<double>(), 0);
  EXPECT_EQ(ours.grads[0][1].abs().sum().item<double>(), 0);
  EXPECT_FALSE(ours.grads[0].isnan().any().item<bool>());
}

TEST_P(Loss, CarriesInfinitiesAndNanAsTorchDoes) {
  at::Tensor logits = random({6, 70});
  logits[0][3] = -INFINITY;
  logits[1].slice(0, 1, 70).fill_(-INFINITY);
  logits[2][5] = std::nan("");
  logits[3][69] = INFINITY;
  logits[4].fill_(-INFINITY);
  logits[5][0] = -INFINITY;
  const at::Tensor labels = at::zeros({6}, at::kLong).to(GetParam().device);
  const at::Tensor ones = at::ones({6}, at::kFloat).to(GetParam().device);
  const Result ours = forward_and_backward(logits, labels, ones, {});
  const Result theirs = by_autograd({logits}, labels, ones, {}, itself);
  EXPECT_TRUE(at::allclose(ours.loss, theirs.loss, 1e-5, 1e-5, /*equal_nan=*/true))
      << ours.loss << theirs.loss;
  for (const int64_t row : {0, 1, 2, 3}) {
    EXPECT_TRUE(at::allclose(ours.grads[0][row], theirs.grads[0][row], 1e-2, 1e-3,
                             /*equal_nan=*/true))
        << "row " << row;
  }
}

TEST_P(Loss, SharesOfALongRowMayHoldNothing) {
  const int64_t columns = 140000;
  const std::vector<at::Tensor> inputs = {random({4, 8}), random({columns, 8}), random({columns})};
  inputs[2].slice(0, 0, columns / 2).fill_(-INFINITY);
  const at::Tensor ones = at::ones({4}, at::kFloat).to(GetParam().device);
  const at::Tensor labels = at::full({4}, columns - 2, at::kLong).to(GetParam().device);
  const Result ours = train(inputs, labels, ones, {}, 0);
  const Result theirs = by_autograd(inputs, labels, ones, {}, linear);
  EXPECT_TRUE(at::allclose(ours.loss, theirs.loss, 1e-2, 1e-2)) << ours.loss << theirs.loss;
  EXPECT_EQ(ours.grads[2].slice(0, 0, columns / 2).abs().max().item<double>(), 0);
  EXPECT_TRUE(ours.grads[2].isfinite().all().item<bool>());
  const Result again = train(inputs, labels, ones, {}, 0);
  EXPECT_TRUE(testing::is_same_bits(ours.lse, again.lse));
  EXPECT_TRUE(testing::is_same_bits(ours.grads[1], again.grads[1]));
}

TEST_P(Loss, ScalesAGradientInPlaceWhereTheFactorLiesOnTheDevice) {
  const at::Tensor factor = at::full({}, -0.375, at::kFloat).to(GetParam().device);
  if (GetParam().device == at::kCPU) {
    const at::Tensor gradient = random({8});
    EXPECT_NE(message_of([&] { package()("scale_gradient_", gradient, factor); }), "no error");
    return;
  }
  for (const int64_t size : {1, 7, 4096, 100003}) {
    for (const int64_t offset : {0, 1}) {
      const at::Tensor room = random({size + offset}), gradient = room.narrow(0, offset, size);
      const at::Tensor before = gradient.clone();
      package()("scale_gradient_", gradient, at::ones_like(factor));
      EXPECT_TRUE(testing::is_same_bits(gradient, before));
      package()("scale_gradient_", gradient, factor);
      EXPECT_TRUE(
          testing::is_same_bits(gradient, (before.to(at::kFloat) * factor).to(before.dtype())));
    }
  }
  const at::Tensor gradient = random({8, 8});
  EXPECT_THAT(message_of([&] { package()("scale_gradient_", gradient.t(), factor); }),
              ::testing::HasSubstr("[scale_gradient_] gradient: expected contiguous memory"));
  EXPECT_THAT(message_of([&] { package()("scale_gradient_", gradient, gradient); }),
              ::testing::HasSubstr("[scale_gradient_] factor: expected one float32"));
}

TEST_P(Loss, AcceptsNoRows) {
  const at::Tensor labels = random_labels(0, 64), none = random_factors(0);
  EXPECT_EQ(forward_and_backward(random({0, 64}), labels, none, {}).grads[0].numel(), 0);
  const std::vector<at::Tensor> inputs = {random({0, 8}), random({64, 8}), random({64})};
  for (const Result& result :
       {train(inputs, labels, none, {}, 0), linear_apart(inputs, labels, none, {}, 0)}) {
    EXPECT_EQ(result.loss.numel(), 0);
    EXPECT_EQ(result.grads[1].abs().sum().item<double>(), 0);
    EXPECT_EQ(result.grads[2].abs().sum().item<double>(), 0);
  }
}

TEST_P(Loss, GivesTheSameBitsEveryTime) {
  const at::Tensor logits = random({30, 9001}), labels = random_labels(30, 9001);
  const at::Tensor grad_loss = random_factors(30);
  const std::vector<at::Tensor> inputs = {random({30, 48}), random({9001, 48}), random({9001})};
  const Result first = forward_and_backward(logits, labels, grad_loss, {});
  const Result first_linear = train(inputs, labels, grad_loss, {}, 16);
  const int threads = at::get_num_threads();
  const int repeats = is_small_run() ? 3 : GetParam().device == at::kCUDA ? 250 : 10;
  for (int repeat = 0; repeat < repeats; ++repeat) {
    at::set_num_threads(1 + repeat % 2);
    const Result again = forward_and_backward(logits, labels, grad_loss, {});
    ASSERT_TRUE(is_same_bits(again.loss, first.loss)) << repeat;
    ASSERT_TRUE(is_same_bits(again.grads[0], first.grads[0])) << repeat;
    at::set_num_threads(threads);  // ATen's product on the CPU knows how many threads it has
    const Result again_linear = train(inputs, labels, grad_loss, {}, 16);
    ASSERT_TRUE(is_same_bits(again_linear.loss, first_linear.loss)) << repeat;
    for (size_t i = 0; i < inputs.size(); ++i) {
      ASSERT_TRUE(is_same_bits(again_linear.grads[i], first_linear.grads[i]))
          << repeat << ", " << i;
    }
  }
}

TEST_P(Loss, NamesTheArgumentThatIsWrong) {
  const at::Tensor logits = random({2, 64}), labels = random_labels(2, 64);
  const auto plain = [&](const at::Tensor& x, const at::Tensor& y, double softcap,
                         double smoothing) {
    return testing::message_of(
        [&] { package()("cross_entropy", x, y, int64_t{-100}, softcap, smoothing); });
  };
  EXPECT_THAT(
      plain(logits, random_labels(3, 64), 0, 0),
      ::testing::HasSubstr("[cross_entropy] labels: expected shape [2] (one value per row of "
                           "logits), got [3]"));
  EXPECT_THAT(plain(logits, labels.to(at::kInt), 0, 0),
              ::testing::HasSubstr("[cross_entropy] labels: expected int64, got int32"));
  EXPECT_THAT(
      plain(logits.to(at::kDouble), labels, 0, 0),
      ::testing::HasSubstr("[cross_entropy] logits: expected float32, bfloat16 or float16"));
  EXPECT_THAT(plain(random({64, 2}).t(), labels, 0, 0),
              ::testing::HasSubstr("logits: expected a contiguous"));
  EXPECT_THAT(plain(logits, labels, -1, 0),
              ::testing::HasSubstr("[cross_entropy] softcap: expected"));
  EXPECT_THAT(plain(logits, labels, 0, 1.5),
              ::testing::HasSubstr("[cross_entropy] smoothing: expected"));
  const auto fused = [&](const at::Tensor& hidden, const at::Tensor& weight,
                         const std::optional<at::Tensor>& bias, int64_t chunk_rows) {
    return testing::message_of([&] {
      package()("linear_cross_entropy", hidden, weight, bias, labels, int64_t{-100}, 0.0, 0.0,
                chunk_rows);
    });
  };
  EXPECT_THAT(fused(random({2, 8}), random({64, 9}), {}, 0),
              ::testing::HasSubstr("[linear_cross_entropy] weight: expected shape [V, 8]"));
  EXPECT_THAT(fused(random({2, 8}), random({64, 8}), random({63}), 0),
              ::testing::HasSubstr("[linear_cross_entropy] bias: expected shape [64]"));
  EXPECT_THAT(fused(random({2, 2, 8}), random({64, 8}), {}, 0),
              ::testing::HasSubstr("[linear_cross_entropy] hidden: expected two dimensions"));
  EXPECT_THAT(fused(random({2, 8}), random({64, 8}), {}, -1),
              ::testing::HasSubstr("[linear_cross_entropy] chunk_rows: expected"));
}

TEST_P(Loss, ALabelOutOfRangeReadsNothing) {
  const at::Tensor logits = random({3, 64});
  for (const int64_t wrong : {int64_t{64}, int64_t{-1}, int64_t{1} << 40}) {
    at::Tensor labels = at::zeros({3}, at::kLong).to(GetParam().device);
    labels[1] = wrong;
    if (GetParam().device == at::kCPU) {
      EXPECT_THAT(
          message_of([&] { package()("cross_entropy", logits, labels, int64_t{-100}, 0.0, 0.0); }),
          ::testing::HasSubstr("labels: expected a column in [0, 64) or ignore_index (-100), got " +
                               std::to_string(wrong) + " in row 1"));
    } else {
      const Result result = forward_and_backward(logits, labels, random_factors(3), {});
      EXPECT_TRUE(result.loss[1].isnan().item<bool>());
      EXPECT_TRUE(result.grads[0][1].isnan().all().item<bool>());
      EXPECT_FALSE(result.loss[0].isnan().item<bool>());
    }
  }
}

TEST_P(Loss, InfersShapesOnMetaTensors) {
  const at::Tensor hidden = random({5, 8}).to(at::kMeta), weight = random({64, 8}).to(at::kMeta);
  const at::Tensor labels = random_labels(5, 64).to(at::kMeta);
  const auto made =
      package()("linear_cross_entropy_train", random_factors(5).to(at::kMeta), hidden, weight,
                std::optional<at::Tensor>(), labels, int64_t{-100}, 0.0, 0.0, int64_t{0}, true);
  EXPECT_EQ(made.at(0).toTensor().sizes(), at::IntArrayRef({5}));
  EXPECT_EQ(made.at(2).toTensor().sizes(), hidden.sizes());
  EXPECT_EQ(made.at(3).toTensor().sizes(), weight.sizes());
  EXPECT_TRUE(made.at(3).toTensor().is_meta());
}

INSTANTIATE_TEST_SUITE_P(Devices, Loss, ::testing::ValuesIn(testing::device_cases()),
                         testing::case_name);

}  // namespace
}  // namespace graft_kernels::loss
