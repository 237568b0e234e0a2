// Packed weights against gguf-py's unpacked values and float64, on every device.

#include <cmath>
#include <fstream>
#include <iterator>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "kernels/common/test_support.h"

namespace graft_kernels::linear {
namespace {

using testing::is_same_bits;
using testing::Package;

// A tensor of the blocks that gguf-py unpacked (safetensors).
at::Tensor stored(const std::string& name) {
  std::ifstream file(GRAFT_TEST_DATA "/io/dequantize.safetensors", std::ios::binary);
  const std::string bytes((std::istreambuf_iterator<char>(file)), {});
  const auto header_bytes = *reinterpret_cast<const uint64_t*>(bytes.data());
  const auto entry = nlohmann::json::parse(bytes.substr(8, header_bytes)).at(name);
  const char* data = bytes.data() + 8 + header_bytes + entry["data_offsets"][0].get<size_t>();
  const auto dtype = entry["dtype"] == "U8" ? at::kByte : at::kFloat;
  return at::from_blob(const_cast<char*>(data), {entry["shape"][0].get<int64_t>()}, dtype).clone();
}

struct Type {
  const char* name;
  int64_t number;
  at::DeviceType device;
};

// A weight as ggml stores it, as laid out by the package, and as plain numbers.
struct Weight {
  at::Tensor blocks, packed, values;
};

class PackedLinear : public ::testing::TestWithParam<Type> {
 protected:
  void SetUp() override {
    if (GetParam().device == at::kCUDA && !testing::why_no_cuda().empty()) {
      GTEST_SKIP() << testing::why_no_cuda();
    }
    at::manual_seed(11);
  }
  static const Package& package() { return Package::for_device("linear", GetParam().device); }

  static int64_t block_columns() {
    return stored(std::string(GetParam().name) + ".float32").numel() / 9;
  }

  // Rows of blocks drawn from the nine of the data.
  static Weight draw(int64_t rows, int64_t blocks_in_row) {
    const at::Tensor bytes = stored(std::string(GetParam().name) + ".packed").view({9, -1});
    const at::Tensor values = stored(std::string(GetParam().name) + ".float32").view({9, -1});
    const at::Tensor which = at::randint(9, {rows * blocks_in_row});
    Weight weight;
    weight.blocks = bytes.index_select(0, which).flatten();
    weight.values = values.index_select(0, which).view({rows, -1});
    weight.packed =
        package()("pack_weight", weight.blocks, GetParam().number, rows, weight.values.size(1))[0]
            .toTensor();
    return weight;
  }

  // Weights are packed on the CPU and computed with on the device; results are compared on the CPU.
  static at::Tensor apply(const at::Tensor& x, const Weight& weight, bool round_x,
                          const at::Tensor& bias = {}) {
    const at::Device device(GetParam().device);
    return package()("packed_linear", x.to(device), weight.packed.to(device), GetParam().number,
                     weight.values.size(0),
                     bias.defined() ? c10::IValue(bias.to(device)) : c10::IValue(), round_x)[0]
        .toTensor()
        .cpu();
  }
};

// What the CPU promises beyond that.
class PackedOnTheCpu : public PackedLinear {};

// What float32 may lose in a sum of `depth` products and two conversions of each.
at::Tensor float_slack(const at::Tensor& x, const at::Tensor& values, int64_t depth) {
  const at::Tensor magnitude = at::matmul(x.abs(), values.abs().t());
  return magnitude * (static_cast<double>(depth + 8) * 0x1p-24);
}

TEST_P(PackedLinear, UnpacksToTheBitsOfGgufPy) {
  for (const auto& [rows, blocks] : {std::pair<int64_t, int64_t>{9, 1}, {3, 3}, {21, 2}}) {
    const Weight weight = draw(rows, blocks);
    const at::Tensor got = apply(at::eye(weight.values.size(1)), weight, false).t();
    EXPECT_TRUE(at::equal(got, weight.values)) << rows << " " << blocks;
  }
}

TEST_P(PackedLinear, WithFloatInputsIsAsGoodAsFloat32) {
  for (const int64_t rows : {1, 4, 5, 19}) {
    const Weight weight = draw(37, 3);
    const at::Tensor x = at::randn({rows, weight.values.size(1)}), bias = at::randn({37});
    const at::Tensor wide = x.to(at::kDouble), values = weight.values.to(at::kDouble);
    const at::Tensor exact = at::matmul(wide, values.t()) + bias.to(at::kDouble);
    const at::Tensor error = (apply(x, weight, false, bias).to(at::kDouble) - exact).abs();
    const at::Tensor bound = float_slack(wide, values, x.size(1)) + exact.abs() * 0x1p-23;
    EXPECT_TRUE(error.le(bound).all().item<bool>()) << rows;
  }
}

TEST_P(PackedLinear, WithRoundedInputsStaysWithinTheWrittenBound) {
  for (const int64_t rows : {1, 2, 3, 4, 5, 7, 8, 16, 17, 40}) {
    for (const int64_t columns : {1, 7, 8, 9, 64, 100}) {
      const Weight weight = draw(columns, 3);
      const int64_t depth = weight.values.size(1);
      const at::Tensor x = at::randn({rows, depth});
      const at::Tensor wide = x.to(at::kDouble), values = weight.values.to(at::kDouble);
      const at::Tensor step = wide.view({rows, depth / 32, 32})
                                  .abs()
                                  .amax(-1, true)
                                  .div(127.0)
                                  .expand({rows, depth / 32, 32})
                                  .reshape({rows, depth});
      const at::Tensor bound = at::matmul(step * 0.5, values.abs().t());
      // Rounding in float32 may also move a code that lies between two; sums are of scale and offset
      // apart, which can be larger than the weights that they make.
      const at::Tensor slack = float_slack(wide, values.abs() + values.abs().amax(), depth);
      const at::Tensor exact = at::matmul(wide, values.t());
      const at::Tensor error = (apply(x, weight, true).to(at::kDouble) - exact).abs();
      EXPECT_TRUE(error.le(bound + slack).all().item<bool>())
          << rows << " x " << columns << ": " << (error - bound - slack).max().item<double>();
    }
  }
}

TEST_P(PackedLinear, JoinedWeightsGiveTheBitsOfSeparateOnes) {
  // The second weight is of another type: files mix them.
  const Weight first = draw(37, 8 * 256 / block_columns());
  const Weight third = draw(8, 8 * 256 / block_columns());
  const int64_t depth = first.values.size(1);
  const at::Tensor q8 = stored("Q8_0.packed")
                            .view({9, -1})
                            .index_select(0, at::randint(9, {20 * depth / 32}))
                            .flatten();
  const at::Device device(GetParam().device);
  const at::Tensor second =
      package()("pack_weight", q8, int64_t{8}, int64_t{20}, depth)[0].toTensor().to(device);
  const at::Tensor one = first.packed.to(device), three = third.packed.to(device);
  for (const int64_t rows : {0, 1, 5, 16, 17, 40}) {
    const at::Tensor x = at::randn({rows, depth}).to(device), bias = at::randn({20}).to(device);
    const at::Tensor out = at::empty({rows, 65}, x.options());
    package()("packed_linear_join_out", out, x, one, second, three, GetParam().number, int64_t{8},
              GetParam().number, int64_t{37}, int64_t{20}, int64_t{8}, c10::IValue(), bias,
              c10::IValue(), true);
    const at::Tensor middle =
        package()("packed_linear", x, second, int64_t{8}, int64_t{20}, bias, true)[0].toTensor();
    const at::Tensor separate =
        at::cat({apply(x, first, true), middle.cpu(), apply(x, third, true)}, 1);
    EXPECT_TRUE(is_same_bits(out.cpu(), separate)) << rows;
    const at::Tensor two = at::empty({rows, 57}, x.options());
    package()("packed_linear_join_out", two, x, one, second, c10::IValue(), GetParam().number,
              int64_t{8}, int64_t{8}, int64_t{37}, int64_t{20}, int64_t{0}, c10::IValue(), bias,
              c10::IValue(), true);
    EXPECT_TRUE(is_same_bits(two.cpu(), separate.narrow(1, 0, 57))) << rows;
  }
}

// Few rows are whole numbers of 15 bits: 256 times closer than the bound that every device keeps.
TEST_P(PackedOnTheCpu, OfFewRowsIsNearlyExact) {
  for (const int64_t rows : {1, 4, 5, 16}) {
    const Weight weight = draw(40, 4);
    const int64_t depth = weight.values.size(1);
    const at::Tensor x = at::randn({rows, depth});
    const at::Tensor wide = x.to(at::kDouble), values = weight.values.to(at::kDouble);
    const at::Tensor step = wide.view({rows, depth / 32, 32})
                                .abs()
                                .amax(-1, true)
                                .div(127.0 * 256.0)
                                .expand({rows, depth / 32, 32})
                                .reshape({rows, depth});
    const at::Tensor bound = at::matmul(step * 0.5, values.abs().t());
    const at::Tensor slack = float_slack(wide, values.abs() + values.abs().amax(), depth);
    const at::Tensor error =
        (apply(x, weight, true).to(at::kDouble) - at::matmul(wide, values.t())).abs();
    EXPECT_TRUE(error.le(bound + slack).all().item<bool>()) << rows;
  }
}

TEST_P(PackedOnTheCpu, OfManyRowsIsTheSameEveryTimeAndOnAnyNumberOfThreads) {
  const Weight weight = draw(200, 3);
  const at::Tensor x = at::randn({50, weight.values.size(1)});
  const at::Tensor first = apply(x, weight, true);
  const int threads = at::get_num_threads();
  for (int run = 0; run < 50; ++run) {
    at::set_num_threads(1 + run % 2);
    ASSERT_TRUE(is_same_bits(apply(x, weight, true), first)) << run;
  }
  at::set_num_threads(threads);
}

TEST_P(PackedOnTheCpu, OfManyRowsTakesHalfPrecisionAndBias) {
  const Weight weight = draw(45, 2);
  const int64_t depth = weight.values.size(1);
  for (const auto dtype : {at::kFloat, at::kBFloat16, at::kHalf}) {
    const at::Tensor x = at::randn({37, depth}).to(dtype), bias = at::randn({45}).to(dtype);
    const at::Tensor wide = apply(x.to(at::kFloat), weight, true) + bias.to(at::kFloat);
    EXPECT_TRUE(is_same_bits(apply(x, weight, true, bias), wide.to(dtype))) << dtype;
  }
}

TEST_P(PackedLinear, IsExactWhereInputsAreWholeNumbersOfTheirScale) {
  const Weight weight = draw(16, 2);
  const int64_t depth = weight.values.size(1);
  at::Tensor x = at::randint(-127, 128, {3, depth}).to(at::kFloat);
  x.view({3, depth / 32, 32}).select(2, 5).fill_(127.0);  // so that the scale is one
  const at::Tensor wide = x.to(at::kDouble), values = weight.values.to(at::kDouble);
  const at::Tensor error =
      (apply(x, weight, true).to(at::kDouble) - at::matmul(wide, values.t())).abs();
  const at::Tensor slack = float_slack(wide, values.abs() + values.abs().amax(), depth);
  EXPECT_TRUE(error.le(slack).all().item<bool>());
}

TEST_P(PackedLinear, GivesARowTheSameBitsWhateverStandsBesideItAndOnAnyNumberOfThreads) {
  const Weight weight = draw(640, 3);
  const at::Tensor x = at::randn({9, weight.values.size(1)});
  const at::Tensor all = apply(x, weight, true);
  for (int64_t row = 0; row < 9; ++row) {
    EXPECT_TRUE(is_same_bits(apply(x.narrow(0, row, 1), weight, true), all.narrow(0, row, 1)));
  }
  const int threads = at::get_num_threads();
  for (int run = 0; run < (testing::is_small_run() ? 5 : 250); ++run) {
    at::set_num_threads(1 + run % 2);
    ASSERT_TRUE(is_same_bits(apply(x, weight, true), all)) << run;
  }
  at::set_num_threads(threads);
}

TEST_P(PackedLinear, TakesStridedRowsHalfPrecisionAndNoRows) {
  const Weight weight = draw(24, 1);
  const int64_t depth = weight.values.size(1);
  const at::Tensor view = at::randn({5, 3, depth + 8}).narrow(2, 4, depth).transpose(0, 1);
  EXPECT_TRUE(is_same_bits(apply(view, weight, true), apply(view.contiguous(), weight, true)));
  for (const auto dtype : {at::kBFloat16, at::kHalf}) {
    const at::Tensor x = at::randn({4, depth}).to(dtype), bias = at::randn({24}).to(dtype);
    const at::Tensor wide = apply(x.to(at::kFloat), weight, true, bias.to(at::kFloat)).to(dtype);
    EXPECT_TRUE(is_same_bits(apply(x, weight, true, bias), wide)) << dtype;
  }
  EXPECT_EQ(apply(at::randn({0, depth}), weight, true).sizes(), at::IntArrayRef({0, 24}));
}

TEST_P(PackedLinear, ARowThatIsNotFiniteGivesNothingFiniteAlone) {
  const Weight weight = draw(9, 1);
  for (const double bad :
       {std::numeric_limits<double>::quiet_NaN(), std::numeric_limits<double>::infinity()}) {
    for (const int64_t rows : {2, 40}) {
      at::Tensor x = at::randn({rows, weight.values.size(1)});
      x[0][3] = bad;
      const at::Tensor out = apply(x, weight, true);
      // An infinity of many rows may stay one.
      EXPECT_FALSE(out[0].isfinite().any().item<bool>()) << rows;
      EXPECT_TRUE(rows > 16 || out[0].isnan().all().item<bool>());
      EXPECT_TRUE(!std::isnan(bad) || out[0].isnan().all().item<bool>());
      EXPECT_TRUE(out.narrow(0, 1, rows - 1).isfinite().all().item<bool>());
    }
  }
}

TEST_P(PackedLinear, NamesTheArgumentThatIsWrong) {
  const Weight weight = draw(9, 1);
  const int64_t depth = weight.values.size(1);
  const auto expect = [&](const std::string& text, auto call) {
    EXPECT_THAT(call, ::testing::ThrowsMessage<std::exception>(::testing::HasSubstr(text)));
  };
  expect("[pack_weight] type: expected one of 2 (Q4_0)",
         [&] { package()("pack_weight", weight.blocks, int64_t{99}, int64_t{9}, depth); });
  expect("[pack_weight] blocks: expected contiguous uint8 of shape [",
         [&] { package()("pack_weight", weight.blocks, GetParam().number, int64_t{8}, depth); });
  expect("[pack_weight] columns: expected a multiple of", [&] {
    package()("pack_weight", weight.blocks, GetParam().number, int64_t{9}, depth + 1);
  });
  expect("[packed_linear] packed: expected contiguous uint8", [&] {
    package()("packed_linear", at::randn({2, depth * 2}), weight.packed, GetParam().number,
              int64_t{9}, c10::IValue(), true);
  });
  expect("[packed_linear] bias: expected shape [9]", [&] {
    apply(at::randn({2, depth}), weight, true, at::randn({8}));
  });
}

std::vector<Type> types(const std::vector<at::DeviceType>& devices) {
  std::vector<Type> all;
  for (const at::DeviceType device : devices) {
    for (const auto& [name, number] : {std::pair<const char*, int64_t>{"Q4_0", 2},
                                       {"Q4_1", 3},
                                       {"Q5_0", 6},
                                       {"Q5_1", 7},
                                       {"Q8_0", 8},
                                       {"Q4_K", 12},
                                       {"Q5_K", 13},
                                       {"Q6_K", 14}}) {
      all.push_back({name, number, device});
    }
  }
  return all;
}

std::string name_of(const ::testing::TestParamInfo<Type>& instance) {
  return std::string(instance.param.device == at::kCUDA ? "cuda_" : "cpu_") + instance.param.name;
}

INSTANTIATE_TEST_SUITE_P(Types, PackedLinear, ::testing::ValuesIn(types({at::kCPU, at::kCUDA})),
                         name_of);
INSTANTIATE_TEST_SUITE_P(Types, PackedOnTheCpu, ::testing::ValuesIn(types({at::kCPU})), name_of);

}  // namespace
}  // namespace graft_kernels::linear
