// RMSNorm against eager ATen and float64, one suite for all devices and dtypes. The package is
// loaded as any host loads it and called through the dispatcher.

#include <cmath>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "kernels/common/test_suite.h"

namespace graft_kernels::rms_norm {
namespace {

using testing::count_different;
using testing::is_same_bits;
using testing::is_small_run;
using testing::largest_error;
using testing::Package;

constexpr double kEps = 1e-5;
constexpr int64_t kNumVariants = 4;

// The contract, written with separate ATen operations as models do.
at::Tensor eager(const at::Tensor& x, const at::Tensor& weight, double eps, int64_t variant) {
  const at::Tensor x_float = x.to(at::kFloat);
  const at::Tensor norm = x_float * at::rsqrt(x_float.pow(2).mean(-1, true) + eps);
  switch (variant) {
    case 0:
      return weight * norm.to(x.scalar_type());
    case 1:
      return (weight * norm).to(x.scalar_type());
    case 2:
      return (weight.to(at::kFloat) * norm).to(x.scalar_type());
    default:
      return (norm * (1.0 + weight.to(at::kFloat))).to(x.scalar_type());
  }
}

at::Tensor exact(const at::Tensor& x, const at::Tensor& weight, double eps, int64_t variant) {
  const at::Tensor x64 = x.to(at::kDouble);
  const at::Tensor weight64 = weight.to(at::kDouble);
  const at::Tensor norm = x64 * at::rsqrt(x64.pow(2).mean(-1, true) + eps);
  return norm * (variant == 3 ? weight64 + 1.0 : weight64);
}

class RmsNorm : public testing::OnEachDevice {
 protected:
  at::Tensor empty_like(const at::Tensor& x) const { return at::empty(x.sizes(), x.options()); }
  const Package& package() const { return Package::for_device("rms-norm", GetParam().device); }

  at::Tensor norm(const at::Tensor& x, const at::Tensor& weight, int64_t variant) const {
    at::Tensor out = empty_like(x);
    package()("rms_norm_out", out, x, weight, kEps, variant);
    return out;
  }

  // Error no worse than twice eager's, and the same bits in all but a few elements of the 16-bit
  // types.
  void expect_like_eager(const at::Tensor& out, const at::Tensor& x, const at::Tensor& weight,
                         int64_t variant) const {
    const at::Tensor reference = eager(x, weight, kEps, variant);
    const at::Tensor truth = exact(x, weight, kEps, variant);
    ASSERT_EQ(out.scalar_type(), reference.scalar_type());
    const double scale = truth.numel() == 0 ? 0 : truth.abs().max().item<double>();
    EXPECT_LE(largest_error(out, truth), 2 * largest_error(reference, truth) + 1.2e-7 * scale)
        << "shape " << x.sizes() << " variant " << variant;
    if (out.scalar_type() != at::kFloat) {
      EXPECT_LE(count_different(out, reference), 2 + out.numel() / 250)
          << "shape " << x.sizes() << " variant " << variant;
    }
  }
};

std::vector<std::vector<int64_t>> shapes() {
  if (is_small_run()) {
    return {{3, 1},    {5, 7},     {2, 64},    {9, 256},  {3, 1031},
            {3, 4096}, {2, 16384}, {1, 32768}, {1, 65536}};
  }
  return {{1, 1},      {3, 2},      {5, 3},      {4, 7},       {33, 8},     {7, 64},
          {1, 127},    {9, 128},    {2, 255},    {35, 256},    {3, 257},    {17, 512},
          {5, 576},    {3, 1000},   {6, 1024},   {2, 1031},    {5, 2048},   {1, 4096},
          {33, 4096},  {3, 5003},   {4, 8192},   {3, 12288},   {3, 16384},  {3, 16392},
          {2, 32768},  {2, 65536},  {2, 98304},  {2, 131072},  {2, 131080}, {2, 262144},
          {1, 262151}, {1, 300000}, {20000, 64}, {16391, 128}, {16391, 256}};
}

TEST_P(RmsNorm, IsNoWorseThanTwiceEagerInEveryShapeAndVariant) {
  for (const std::vector<int64_t>& shape : shapes()) {
    const at::Tensor x = random(shape);
    const at::Tensor weight = random({shape.back()});
    for (int64_t variant = 0; variant < kNumVariants; ++variant) {
      expect_like_eager(norm(x, weight, variant), x, weight, variant);
    }
  }
}

TEST_P(RmsNorm, AddsTheResidualAndNormalizesTheRoundedSum) {
  for (const std::vector<int64_t>& shape : shapes()) {
    const at::Tensor x = random(shape);
    const at::Tensor residual = random(shape);
    const at::Tensor weight = random({shape.back()});
    at::Tensor out = empty_like(x);
    at::Tensor sum = empty_like(x);
    package()("add_rms_norm_out", out, sum, x, residual, weight, kEps, int64_t{0});
    EXPECT_TRUE(is_same_bits(sum, residual + x)) << "shape " << x.sizes();
    EXPECT_TRUE(is_same_bits(out, norm(sum, weight, 0))) << "shape " << x.sizes();
  }
}

// More long rows than there are multiprocessors: each block takes several in turn.
TEST_P(RmsNorm, GivesEveryLongRowWhatItGetsAlone) {
  if (GetParam().device != at::kCUDA) {
    return;  // the CPU takes row by row anyway
  }
  for (const int64_t columns : {20480, 32768, 65536, 131072, 262144}) {
    const int64_t rows = is_small_run() ? 7 : 10'000'000 / columns + 2;
    const at::Tensor x = random({rows, columns}), residual = random({rows, columns});
    const at::Tensor weight = random({columns});
    at::Tensor out = empty_like(x), sum = empty_like(x);
    package()("add_rms_norm_out", out, sum, x, residual, weight, kEps, int64_t{0});
    EXPECT_TRUE(is_same_bits(sum, residual + x)) << columns;
    const at::Tensor together = norm(sum, weight, 0);
    EXPECT_TRUE(is_same_bits(out, together)) << columns;
    for (const int64_t row : {int64_t{0}, rows / 2, rows - 1}) {
      EXPECT_TRUE(is_same_bits(norm(sum[row], weight, 0), together[row])) << columns << " " << row;
    }
    expect_like_eager(together.narrow(0, 0, 3), sum.narrow(0, 0, 3), weight, 0);
  }
}

TEST_P(RmsNorm, ReturnsNewTensorsInTheFunctionalForm) {
  const at::Tensor x = random({4, 3, 576});
  const at::Tensor residual = random({4, 3, 576});
  const at::Tensor weight = random({576});
  for (int64_t variant = 0; variant < kNumVariants; ++variant) {
    const auto single = package()("rms_norm", x, weight, kEps, variant);
    EXPECT_TRUE(is_same_bits(single.at(0).toTensor(), norm(x, weight, variant)));
    const auto both = package()("add_rms_norm", x, residual, weight, kEps, variant);
    EXPECT_TRUE(is_same_bits(both.at(1).toTensor(), residual + x));
    EXPECT_TRUE(is_same_bits(both.at(0).toTensor(), norm(residual + x, weight, variant)));
  }
}

TEST_P(RmsNorm, AcceptsAnyLeadingDimensions) {
  const at::Tensor weight = random({96});
  for (const std::vector<int64_t>& shape :
       std::vector<std::vector<int64_t>>{{96}, {1, 96}, {2, 3, 4, 5, 96}}) {
    const at::Tensor x = random(shape);
    const at::Tensor flat = norm(x.reshape({-1, 96}), weight, 0);
    EXPECT_TRUE(is_same_bits(norm(x, weight, 0).reshape({-1, 96}), flat));
  }
}

TEST_P(RmsNorm, ReadsAndWritesStridedRows) {
  const at::Tensor weight = random({72});
  const at::Tensor wide = random({6, 5, 7, 200});
  const std::vector<at::Tensor> views = {
      wide.slice(-1, 0, 72),                                       // one stride
      wide.slice(-1, 3, 75),                                       // not aligned to 16 bytes
      wide.slice(-1, 8, 80).slice(1, 0, 5, 2),                     // two strides
      wide.slice(-1, 0, 72).transpose(0, 2),                       // rows in another order
      wide.slice(0, 0, 1).slice(-1, 0, 72).expand({6, 5, 7, 72}),  // broadcast rows
  };
  for (const at::Tensor& view : views) {
    const at::Tensor expected = norm(view.contiguous(), weight, 0);
    EXPECT_TRUE(is_same_bits(norm(view, weight, 0), expected)) << view.strides();
    at::Tensor storage = at::zeros({view.size(0), view.size(1), view.size(2), 80}, view.options());
    at::Tensor out = storage.slice(-1, 0, 72);
    at::Tensor sum = storage.clone().slice(-1, 0, 72);
    package()("rms_norm_out", out, view, weight, kEps, int64_t{0});
    EXPECT_TRUE(is_same_bits(out, expected)) << view.strides();
    EXPECT_EQ(storage.slice(-1, 72, 80).abs().sum().item<double>(), 0) << "wrote between the rows";
    package()("add_rms_norm_out", out, sum, view, view, weight, kEps, int64_t{0});
    EXPECT_TRUE(is_same_bits(sum, view + view)) << view.strides();
  }
}

TEST_P(RmsNorm, WorksInPlace) {
  for (const int64_t columns : {5, 576, 4096, 40000}) {
    const at::Tensor x = random({9, columns});
    const at::Tensor residual = random({9, columns});
    const at::Tensor weight = random({columns});
    at::Tensor in_place = x.clone();
    package()("rms_norm_out", in_place, in_place, weight, kEps, int64_t{0});
    EXPECT_TRUE(is_same_bits(in_place, norm(x, weight, 0)));
    at::Tensor hidden = x.clone();
    at::Tensor stream = residual.clone();
    package()("add_rms_norm_out", hidden, stream, hidden, stream, weight, kEps, int64_t{0});
    EXPECT_TRUE(is_same_bits(stream, residual + x));
    EXPECT_TRUE(is_same_bits(hidden, norm(residual + x, weight, 0)));
  }
}

TEST_P(RmsNorm, DoesNothingWithoutElements) {
  const at::Tensor weight = random({64});
  EXPECT_EQ(norm(random({0, 64}), weight, 0).numel(), 0);
  EXPECT_EQ(norm(random({3, 0, 64}), weight, 0).numel(), 0);
  EXPECT_EQ(norm(random({3, 0}), random({0}), 0).numel(), 0);
}

TEST_P(RmsNorm, CarriesNanAndInfinityAsEagerDoes) {
  at::Tensor x = random({4, 200});
  x[0][3] = std::nan("");
  x[1][4] = INFINITY;
  x[2].zero_();
  const at::Tensor weight = random({200});
  for (int64_t variant = 0; variant < kNumVariants; ++variant) {
    const at::Tensor out = norm(x, weight, variant);
    const at::Tensor reference = eager(x, weight, kEps, variant);
    EXPECT_TRUE(at::equal(out.isnan(), reference.isnan()));
    EXPECT_TRUE(at::equal(out[2], reference[2]));
  }
}

TEST_P(RmsNorm, TakesAFloat32WeightBesideA16BitInput) {
  for (const int64_t columns : {7, 576, 4096, 40000}) {
    const at::Tensor x = random({5, columns});
    const at::Tensor weight = random({columns}).to(at::kFloat);
    for (int64_t variant = 0; variant < kNumVariants; ++variant) {
      const at::Tensor out = package()("rms_norm", x, weight, kEps, variant).at(0).toTensor();
      expect_like_eager(out, x, weight, variant);
    }
  }
}

TEST_P(RmsNorm, GivesTheSameBitsEveryTime) {
  const at::Tensor x = random({64, 2048});
  const at::Tensor long_rows = random({3, 65536});
  const at::Tensor weight = random({2048});
  const at::Tensor long_weight = random({65536});
  const at::Tensor first = norm(x, weight, 0);
  const at::Tensor first_long = norm(long_rows, long_weight, 0);
  const int repeats = is_small_run() ? 3 : 250;
  for (int repeat = 0; repeat < repeats; ++repeat) {
    ASSERT_TRUE(is_same_bits(norm(x, weight, 0), first));
    ASSERT_TRUE(is_same_bits(norm(long_rows, long_weight, 0), first_long));
  }
}

TEST_P(RmsNorm, NamesTheArgumentThatIsWrong) {
  const at::Tensor x = random({2, 64});
  const at::Tensor weight = random({64});
  at::Tensor out = empty_like(x);
  const auto message = [&](const at::Tensor& to, const at::Tensor& from, const at::Tensor& by,
                           int64_t variant) {
    return testing::message_of([&] { package()("rms_norm_out", to, from, by, kEps, variant); });
  };
  const std::string dtype = GetParam().dtype == at::kFloat  ? "float32"
                            : GetParam().dtype == at::kHalf ? "float16"
                                                            : "bfloat16";
  EXPECT_THAT(message(out, x, random({32}), 0),
              ::testing::HasSubstr(
                  "[rms_norm_out] weight: expected shape [64] (last dimension of x), got [32]"));
  EXPECT_THAT(message(out, x, weight, 4),
              ::testing::HasSubstr("[rms_norm_out] variant: expected 0, 1, 2 or 3, got 4"));
  EXPECT_THAT(
      message(random({2, 32}), x, weight, 0),
      ::testing::HasSubstr("[rms_norm_out] out: expected shape [2, 64] (that of x), got [2, 32]"));
  EXPECT_THAT(
      message(out, x.to(at::kDouble), weight, 0),
      ::testing::HasSubstr("[rms_norm_out] x: expected float32, bfloat16 or float16, got float64"));
  EXPECT_THAT(message(out, x, weight.to(at::kDouble), 0),
              ::testing::HasSubstr("[rms_norm_out] weight: expected " + dtype +
                                   " (dtype of x) or float32, got float64"));
  EXPECT_THAT(
      message(out.to(at::kDouble), x, weight, 2),
      ::testing::HasSubstr("[rms_norm_out] out: expected " + dtype + " (that of x), got float64"));
  EXPECT_THAT(
      message(out, random({64, 2}).t(), weight, 0),
      ::testing::HasSubstr(
          "[rms_norm_out] x: expected a contiguous last dimension (stride 1), got stride 2"));
  EXPECT_THAT(
      message(out, x[0][0], weight, 0),
      ::testing::HasSubstr("[rms_norm_out] x: expected at least one dimension, got a scalar"));
  EXPECT_THAT(message(out, x, weight.to(at::kMeta), 0),
              ::testing::AnyOf(::testing::HasSubstr("weight: expected device"),
                               ::testing::HasSubstr("Could not run")));
}

TEST_P(RmsNorm, InfersShapesOnMetaTensors) {
  const at::Tensor x = random({2, 64}).to(at::kMeta);
  const at::Tensor weight = random({64}).to(at::kMeta);
  const auto both = package()("add_rms_norm", x, x, weight, kEps, int64_t{0});
  EXPECT_EQ(both.at(0).toTensor().sizes(), x.sizes());
  EXPECT_EQ(both.at(1).toTensor().scalar_type(), x.scalar_type());
  EXPECT_TRUE(both.at(0).toTensor().is_meta());
}

INSTANTIATE_TEST_SUITE_P(Devices, RmsNorm, ::testing::ValuesIn(testing::device_cases()),
                         testing::case_name);

using RmsNormCuda = testing::OnCuda;

TEST_F(RmsNormCuda, CanBeCapturedIntoAGraph) {
#ifdef GRAFT_WITH_CUDA
  const Package& package = Package::get("rms-norm", testing::kCudaVariant);
  for (const int64_t columns : {576, 4096, 65536}) {
    const at::Tensor weight = at::randn({columns}, at::kCUDA).to(at::kBFloat16);
    at::Tensor x = at::randn({4, columns}, at::kCUDA).to(at::kBFloat16);
    const at::Tensor fresh = at::randn({4, columns}, at::kCUDA).to(at::kBFloat16);
    at::Tensor out = at::zeros_like(x);
    at::Tensor expected = at::zeros_like(x);
    package("rms_norm_out", expected, fresh, weight, kEps, int64_t{0});
    const testing::CurrentStream stream;
    const testing::CapturedGraph graph(
        stream, [&] { package("rms_norm_out", out, x, weight, kEps, int64_t{0}); });
    EXPECT_EQ(out.abs().sum().item<double>(), 0) << "capture must not run the kernel";
    x.copy_(fresh);
    graph.launch();
    EXPECT_TRUE(is_same_bits(out, expected)) << columns << " columns";
    stream.synchronize();
  }
#endif
}

TEST_F(RmsNormCuda, ReachesBeyondTwoToTheThirtyFirstElements) {
  const Package& package = Package::get("rms-norm", testing::kCudaVariant);
  // Nine gigabytes; a reduced run checks the comparison itself.
  const int64_t rows = is_small_run() ? 100 : (int64_t{1} << 31) / 4096 + 3;
  const at::Tensor row = at::randn({1, 4096}, at::kCUDA).to(at::kBFloat16);
  const at::Tensor x = row.expand({rows, 4096}).contiguous();
  const at::Tensor weight = at::randn({4096}, at::kCUDA).to(at::kBFloat16);
  at::Tensor out = at::empty(x.sizes(), x.options());
  at::Tensor expected = at::empty(row.sizes(), row.options());
  package("rms_norm_out", out, x, weight, kEps, int64_t{0});
  package("rms_norm_out", expected, row, weight, kEps, int64_t{0});
  EXPECT_TRUE(is_same_bits(out.slice(0, rows - 1, rows), expected));
  EXPECT_TRUE(is_same_bits(out.slice(0, rows / 2, rows / 2 + 1), expected));
}

TEST_F(RmsNormCuda, ServesTheCpuFromTheCudaVariantWithTheSameBits) {
  const at::Tensor x = at::randn({5, 576}).to(at::kBFloat16);
  const at::Tensor weight = at::randn({576}).to(at::kBFloat16);
  const auto from_cpu =
      Package::get("rms-norm", testing::kCpuVariant)("rms_norm", x, weight, kEps, int64_t{0});
  const auto from_cuda =
      Package::get("rms-norm", testing::kCudaVariant)("rms_norm", x, weight, kEps, int64_t{0});
  EXPECT_TRUE(is_same_bits(from_cpu.at(0).toTensor(), from_cuda.at(0).toTensor()));
}

}  // namespace
}  // namespace graft_kernels::rms_norm
