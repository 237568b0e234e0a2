// Activations against eager ATen and float64, one suite for all devices and dtypes. The 16-bit
// types are compared on every one of their 65,536 values.

#include <cmath>
#include <functional>
#include <map>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "kernels/common/test_suite.h"

namespace graft_kernels::activation {
namespace {

using testing::count_different;
using testing::is_same_bits;
using testing::is_small_run;
using testing::Package;

using Function = std::function<at::Tensor(const at::Tensor&)>;

// Eager evaluation, operation by operation, as transformers writes it.
const std::map<std::string, Function>& eager() {
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
      {"gelu_quick", [](const at::Tensor& x) { return x * at::sigmoid(1.702 * x); }},
  };
  return functions;
}

at::Tensor exact(const std::string& name, const at::Tensor& x) {
  const at::Tensor x64 = x.to(at::kDouble);
  if (name == "silu") {
    return x64 * at::sigmoid(x64);
  }
  if (name == "gelu") {
    return 0.5 * x64 * at::erfc(x64 * -M_SQRT1_2);
  }
  if (name == "gelu_quick") {
    return x64 * at::sigmoid(1.702 * x64);
  }
  // x / 2 * (1 + tanh(y)) = x * sigmoid(2 y), without the cancellation.
  return x64 * at::sigmoid(2 * std::sqrt(2 / M_PI) * (x64 + 0.044715 * at::pow(x64, 3)));
}

class Activation : public testing::OnEachDevice {
 protected:
  at::Tensor random(at::IntArrayRef shape) const {
    return (3 * at::randn(shape, at::kFloat)).to(GetParam().dtype).to(GetParam().device);
  }
  // All bit patterns of a 16-bit dtype; for float32 a fine grid and the special values.
  at::Tensor all_values() const {
    if (GetParam().dtype != at::kFloat) {
      const at::Tensor bits = at::arange(65536, at::kInt).to(at::kShort);
      return bits.view(GetParam().dtype).to(GetParam().device);
    }
    const at::Tensor special = at::tensor({0.0, -0.0, HUGE_VAL, -HUGE_VAL, std::nan(""), 1e-40,
                                           -1e-40, 3e38, -3e38, 88.0, -88.0, -104.0},
                                          at::kFloat);
    return at::cat({at::linspace(-30, 30, 600001, at::kFloat), special}).to(GetParam().device);
  }
  const Package& package() const { return Package::for_device("activation", GetParam().device); }
  at::Tensor apply(const std::string& op, const at::Tensor& x) const {
    at::Tensor out = at::empty(x.sizes(), x.options());
    package()(op, out, x);
    return out;
  }
};

// Where the CPU may differ from the reference in 16-bit values, out of 65,536: its erf is less
// exact than ours, and its tanh rounds differently in places. On CUDA nothing may differ.
int64_t allowed_differences(const testing::Case& where, const std::string& op) {
  if (where.device == at::kCUDA) {
    return 0;
  }
  if (op == "gelu") {
    return where.dtype == at::kHalf ? 400 : 8;
  }
  return where.dtype == at::kHalf && op != "silu" ? 40 : 0;
}

// Eager evaluation, but for gelu on the CPU, which is written out: on some processors ATen leaves
// it to oneDNN, which rounds in other places and makes NaN of infinity.
at::Tensor reference_bits(const std::string& op, const at::Tensor& x, const Function& function) {
  if (op != "gelu" || !x.is_cpu()) {
    return function(x);
  }
  const at::Tensor wide = x.to(at::kFloat);
  return (wide * 0.5 * (1.0 + at::erf(wide * std::sqrt(0.5)))).to(x.scalar_type());
}

TEST_P(Activation, HasTheBitsOfEagerEvaluationOnEvery16BitValue) {
  const at::Tensor x = all_values();
  for (const auto& [op, function] : eager()) {
    const at::Tensor out = apply(op, x);
    const at::Tensor reference = reference_bits(op, x, function);
    if (GetParam().dtype != at::kFloat) {
      EXPECT_LE(count_different(out, reference), allowed_differences(GetParam(), op)) << op;
    } else {
      EXPECT_TRUE(at::equal(out.isnan(), reference.isnan())) << op;
    }
  }
}

TEST_P(Activation, IsNoWorseThanEagerAgainstFloat64) {
  const at::Tensor x = all_values();
  const at::Tensor finite = x.index({at::logical_and(at::isfinite(x), x.abs() < 1e4)});
  for (const auto& [op, function] : eager()) {
    const at::Tensor truth = exact(op, finite);
    // Absolute, relative to the largest of |truth| and 1: the tail of the tanh form cancels in
    // eager too.
    const at::Tensor scale = truth.abs().clamp_min(1.0);
    const auto error = [&](const at::Tensor& value) {
      return ((value.to(at::kDouble) - truth).abs() / scale).max().item<double>();
    };
    const double ours = error(apply(op, finite));
    const double theirs = error(function(finite));
    EXPECT_LE(ours, std::max(1.5 * theirs, 3e-7)) << op;
    if (GetParam().dtype == at::kFloat && (op == "silu" || op == "gelu_quick")) {
      const at::Tensor normal = truth.abs() > 1e-36;
      const at::Tensor relative = ((apply(op, finite).to(at::kDouble) - truth) / truth).abs();
      EXPECT_LE(relative.index({at::logical_and(normal, finite.abs() < 2)}).max().item<double>(),
                4e-7)
          << op;
    }
  }
}

TEST_P(Activation, GatesWithOneRoundingOfTheActivationAndOneOfTheProduct) {
  for (const int64_t columns : {1, 3, 8, 17, 576, 1536, 4099}) {
    const at::Tensor gate = random({7, columns});
    const at::Tensor up = random({7, columns});
    for (const std::string op : {"silu", "gelu", "gelu_tanh"}) {
      at::Tensor out = at::empty(gate.sizes(), gate.options());
      package()(op + "_mul", out, gate, up);
      EXPECT_TRUE(is_same_bits(out, apply(op, gate) * up)) << op << " " << columns;
    }
  }
}

TEST_P(Activation, HalvesTheLastDimensionLikeTheHubsKernel) {
  for (const int64_t columns : {1, 5, 8, 576, 1000}) {
    for (const std::vector<int64_t>& leading : std::vector<std::vector<int64_t>>{{}, {9}, {2, 3}}) {
      std::vector<int64_t> shape = leading;
      shape.push_back(2 * columns);
      const at::Tensor input = random(shape);
      const at::Tensor first = input.slice(-1, 0, columns).contiguous();
      const at::Tensor second = input.slice(-1, columns).contiguous();
      at::Tensor out = at::empty(first.sizes(), first.options());
      for (const std::string op : {"silu", "gelu", "gelu_tanh"}) {
        package()(op + "_and_mul", out, input);
        EXPECT_TRUE(is_same_bits(out, apply(op, first) * second)) << op << " " << input.sizes();
      }
      package()("mul_and_silu", out, input);
      EXPECT_TRUE(is_same_bits(out, apply("silu", second) * first)) << input.sizes();
    }
  }
}

TEST_P(Activation, ReadsHalvesOfAFusedProjectionInPlace) {
  for (const int64_t columns : {3, 8, 576, 1001}) {
    const at::Tensor fused = random({4, 5, 2 * columns});
    const at::Tensor gate = fused.slice(-1, 0, columns);
    const at::Tensor up = fused.slice(-1, columns);
    at::Tensor out = at::empty(gate.sizes(), gate.options());
    package()("silu_mul", out, gate, up);
    EXPECT_TRUE(is_same_bits(out, apply("silu", gate.contiguous()) * up.contiguous()));
    // Written over the gate half; the other half stays.
    const at::Tensor before = up.clone();
    at::Tensor target = gate;
    package()("silu_mul", target, gate, up);
    EXPECT_TRUE(is_same_bits(gate, out));
    EXPECT_TRUE(is_same_bits(up, before));
  }
}

TEST_P(Activation, AcceptsAnyLayoutOfRows) {
  const at::Tensor wide = random({6, 5, 7, 80});
  for (const at::Tensor& view :
       {wide.slice(-1, 0, 72), wide.slice(-1, 3, 75), wide.slice(-1, 0, 64).transpose(0, 2),
        wide.slice(1, 0, 5, 2).slice(-1, 0, 72), wide.slice(0, 0, 1).expand({6, 5, 7, 80})}) {
    EXPECT_TRUE(is_same_bits(apply("silu", view), apply("silu", view.contiguous())))
        << view.strides();
  }
  EXPECT_TRUE(is_same_bits(apply("silu", wide.flatten()), apply("silu", wide).flatten()));
  EXPECT_EQ(apply("silu", wide[0][0][0][0]).dim(), 0);
}

TEST_P(Activation, HandlesEveryLengthOfTail) {
  const at::Tensor all = random({2, 600});
  const at::Tensor expected = apply("silu", all);
  for (int64_t count = 1; count < 80; ++count) {
    EXPECT_TRUE(
        is_same_bits(apply("silu", all[0].slice(0, 0, count)), expected[0].slice(0, 0, count)))
        << count;
    EXPECT_TRUE(is_same_bits(apply("silu", all[0].slice(0, 1, 1 + count)),
                             expected[0].slice(0, 1, 1 + count)))
        << count << " after an odd offset";
  }
}

TEST_P(Activation, WorksInPlaceAndDoesNothingWithoutElements) {
  at::Tensor x = random({9, 576});
  const at::Tensor expected = apply("gelu_tanh", x);
  package()("gelu_tanh", x, x);
  EXPECT_TRUE(is_same_bits(x, expected));
  EXPECT_EQ(apply("silu", random({0, 8})).numel(), 0);
  at::Tensor none = random({3, 0});
  package()("silu_mul", none, random({3, 0}), random({3, 0}));
  at::Tensor no_rows = random({0, 4});
  package()("silu_and_mul", no_rows, random({0, 8}));
}

TEST_P(Activation, GivesTheSameBitsEveryTime) {
  const at::Tensor gate = random({64, 1536});
  const at::Tensor up = random({64, 1536});
  at::Tensor first = at::empty(gate.sizes(), gate.options());
  package()("silu_mul", first, gate, up);
  at::Tensor out = at::empty(gate.sizes(), gate.options());
  for (int repeat = 0; repeat < (is_small_run() ? 3 : 250); ++repeat) {
    out.zero_();
    package()("silu_mul", out, gate, up);
    ASSERT_TRUE(is_same_bits(out, first));
  }
}

TEST_P(Activation, NamesTheArgumentThatIsWrong) {
  const at::Tensor x = random({2, 64});
  const auto message = [&](const std::string& op, auto... arguments) {
    return testing::message_of([&] { package()(op, arguments...); });
  };
  const std::string dtype = GetParam().dtype == at::kFloat  ? "float32"
                            : GetParam().dtype == at::kHalf ? "float16"
                                                            : "bfloat16";
  EXPECT_THAT(
      message("silu", random({2, 32}), x),
      ::testing::HasSubstr("[silu] out: expected shape [2, 64] (that of input), got [2, 32]"));
  EXPECT_THAT(
      message("gelu_new", x, x.to(at::kInt)),
      ::testing::HasSubstr("[gelu_new] input: expected float32, bfloat16 or float16, got int32"));
  EXPECT_THAT(
      message("gelu", x.to(at::kDouble), x),
      ::testing::HasSubstr("[gelu] out: expected " + dtype + " (that of input), got float64"));
  EXPECT_THAT(message("silu_and_mul", x, x),
              ::testing::HasSubstr(
                  "[silu_and_mul] out: expected shape [2, 64] (that of input) with the last "
                  "dimension halved, got [2, 64]"));
  EXPECT_THAT(
      message("silu_mul", x, x, random({2, 63})),
      ::testing::HasSubstr("[silu_mul] up: expected shape [2, 64] (that of gate), got [2, 63]"));
  EXPECT_THAT(
      message("silu_mul", x, random({64, 2}).t(), x),
      ::testing::HasSubstr(
          "[silu_mul] gate: expected a contiguous last dimension (stride 1), got stride 2"));
}

TEST_P(Activation, AcceptsMetaTensors) {
  const at::Tensor x = random({2, 64}).to(at::kMeta);
  package()("silu", x, x);
  EXPECT_THROW(package()("silu_and_mul", x, x), std::exception);
}

INSTANTIATE_TEST_SUITE_P(Devices, Activation, ::testing::ValuesIn(testing::device_cases()),
                         testing::case_name);

using ActivationCuda = testing::OnCuda;

TEST_F(ActivationCuda, CanBeCapturedIntoAGraph) {
#ifdef GRAFT_WITH_CUDA
  const Package& package = Package::get("activation", testing::kCudaVariant);
  at::Tensor x = at::randn({64, 2048}, at::kCUDA).to(at::kBFloat16);
  const at::Tensor fresh = at::randn({64, 2048}, at::kCUDA).to(at::kBFloat16);
  at::Tensor out = at::zeros({64, 1024}, x.options());
  const testing::CurrentStream stream;
  const testing::CapturedGraph graph(stream, [&] { package("silu_and_mul", out, x); });
  EXPECT_EQ(out.abs().sum().item<double>(), 0) << "capture must not run the kernel";
  x.copy_(fresh);
  graph.launch();
  EXPECT_TRUE(is_same_bits(out, at::silu(fresh.slice(-1, 0, 1024)) * fresh.slice(-1, 1024)));
  stream.synchronize();
#endif
}

TEST_F(ActivationCuda, ReachesBeyondTwoToTheThirtyFirstElements) {
  const Package& package = Package::get("activation", testing::kCudaVariant);
  // Nine gigabytes each; a reduced run checks the comparison itself. An odd count, so that there is
  // a tail.
  const int64_t count = is_small_run() ? 4099 : (int64_t{1} << 31) + 4099;
  const at::Tensor x = at::full({count}, 0.5, at::TensorOptions(at::kCUDA).dtype(at::kBFloat16));
  at::Tensor out = at::zeros({count}, x.options());
  package("silu", out, x);
  const at::Tensor expected = at::silu(x.slice(0, 0, 1));
  EXPECT_TRUE(out.eq(expected).all().item<bool>());
}

TEST_F(ActivationCuda, ServesTheCpuFromTheCudaVariantWithTheSameBits) {
  const at::Tensor x = at::randn({5, 576}).to(at::kBFloat16);
  at::Tensor from_cpu = at::empty_like(x);
  at::Tensor from_cuda = at::empty_like(x);
  Package::get("activation", testing::kCpuVariant)("gelu_new", from_cpu, x);
  Package::get("activation", testing::kCudaVariant)("gelu_new", from_cuda, x);
  EXPECT_TRUE(is_same_bits(from_cpu, from_cuda));
}

}  // namespace
}  // namespace graft_kernels::activation
