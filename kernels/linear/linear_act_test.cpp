// linear_act beside eager steps and float64, one suite for all devices and dtypes.

#include <algorithm>
#include <cmath>
#include <limits>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "kernels/common/test_suite.h"

namespace graft_kernels::linear {
namespace {

using testing::is_same_bits;
using testing::is_small_run;
using testing::largest_error;
using testing::Package;

constexpr int64_t kNone = 0, kSilu = 1, kGelu = 2, kGeluTanh = 3, kGeluQuick = 4, kRelu = 5;

struct Inputs {
  at::Tensor x, weight, bias, residual;  // the last two may be undefined
};

class LinearAct : public testing::OnEachDevice {
 protected:
  static const Package& package() { return Package::for_device("linear", GetParam().device); }
  static at::Tensor random(at::IntArrayRef sizes) {
    return at::randn(sizes, at::TensorOptions(GetParam().device)).to(GetParam().dtype);
  }
  static Inputs random_inputs(int64_t rows, int64_t columns, int64_t depth, bool bias,
                              bool residual) {
    return {random({rows, depth}), random({columns, depth}) / std::sqrt(static_cast<double>(depth)),
            bias ? random({columns}) : at::Tensor(),
            residual ? random({rows, columns}) : at::Tensor()};
  }
  static c10::IValue optional(const at::Tensor& tensor) {
    return tensor.defined() ? c10::IValue(tensor) : c10::IValue();
  }
  static at::Tensor ours(const Inputs& in, int64_t act) {
    return package()("linear_act", in.x, in.weight, optional(in.bias), act, optional(in.residual))
        .at(0)
        .toTensor();
  }
  // Separate steps, in the dtype of x or in float64.
  static at::Tensor eager(const Inputs& in, int64_t act, at::ScalarType dtype) {
    const at::Tensor sum =
        at::linear(in.x.to(dtype), in.weight.to(dtype),
                   in.bias.defined() ? std::optional(in.bias.to(dtype)) : std::nullopt);
    const at::Tensor value = act == kSilu        ? at::silu(sum)
                             : act == kGelu      ? at::gelu(sum)
                             : act == kGeluTanh  ? at::gelu(sum, "tanh")
                             : act == kGeluQuick ? sum * at::sigmoid(1.702 * sum)
                             : act == kRelu      ? at::relu(sum)
                                                 : sum;
    return in.residual.defined() ? value + in.residual.to(dtype) : value;
  }
  // Roundings of the dtype, of values as large as those that are added.
  static double roundoff() {
    return GetParam().dtype == at::kFloat  ? 0x1p-22
           : GetParam().dtype == at::kHalf ? 0x1p-12
                                           : 0x1p-9;
  }
  static void expect_as_good_as_eager(const Inputs& in, int64_t act) {
    const at::Tensor got =
        at::full_like(eager(in, act, GetParam().dtype), std::numeric_limits<double>::quiet_NaN());
    package()("linear_act_out", got, in.x, in.weight, optional(in.bias), act,
              optional(in.residual));
    expect_as_good_as_eager(got, in, act);
  }
  static void expect_as_good_as_eager(const at::Tensor& got, const Inputs& in, int64_t act) {
    const at::Tensor exact = eager(in, act, at::kDouble);
    const double largest = exact.numel() == 0 ? 0 : exact.abs().max().item<double>();
    EXPECT_LE(largest_error(got, exact),
              2 * largest_error(eager(in, act, GetParam().dtype), exact) + roundoff() * largest)
        << "act " << act << ", x " << in.x.sizes() << ", weight " << in.weight.sizes()
        << (in.bias.defined() ? ", bias" : "") << (in.residual.defined() ? ", residual" : "");
  }
};

TEST_P(LinearAct, IsNoWorseThanTwiceEagerForFewAndManyRowsAndEveryTail) {
  int64_t number = 0;
  for (const auto& [columns, depth] : {std::pair{1, 1},
                                       {8, 8},
                                       {33, 40},
                                       {130, 7},
                                       {100, 99},
                                       {264, 576},
                                       {513, 200},
                                       {2056, 72}}) {
    for (const int64_t rows : {1, 2, 7, 16, 17, 40, 129, 300, 1025}) {
      for (const int64_t act : {kNone, kSilu, kGelu, kGeluTanh, kGeluQuick, kRelu}) {
        ++number;
        if (is_small_run() && number % 7 != 0) {
          continue;
        }
        expect_as_good_as_eager(
            random_inputs(rows, columns, depth, number % 2 == 0, number % 3 != 0), act);
      }
    }
  }
}

// Many tiles: several for each block, in groups, with rows and columns that do not fill them.
TEST_P(LinearAct, IsNoWorseThanTwiceEagerOverManyTiles) {
  // Elsewhere these are ATen's products: a piece says as much.
  const auto inputs = [](int64_t rows, int64_t columns, int64_t depth, bool bias, bool residual) {
    return on_cuda() ? random_inputs(rows, columns, depth, bias, residual)
                     : random_inputs(300, columns / 16, depth / 4, bias, residual);
  };
  Inputs in = inputs(5000, 8200, 4104, true, true);
  expect_as_good_as_eager(in, kGelu);
  const at::Tensor expected = ours(in, kGeluTanh);
  EXPECT_TRUE(is_same_bits(ours(in, kGeluTanh), expected));
  const at::Tensor stream = in.residual.clone();
  package()("linear_act_out", stream, in.x, in.weight, in.bias, kGeluTanh, stream);
  EXPECT_TRUE(is_same_bits(stream, expected));
  const int64_t depth = in.x.size(1);
  in.x = random({in.x.size(0), depth + 24}).narrow(1, 8, depth);
  expect_as_good_as_eager(in, kRelu);
  if (is_small_run()) {
    return;
  }
  expect_as_good_as_eager(inputs(4097, 8328, 4096, false, true), kSilu);
  expect_as_good_as_eager(inputs(9000, 4099, 4160, true, true), kGeluTanh);  // out off 16 bytes
  expect_as_good_as_eager(inputs(5000, 8200, 4104, false, false), kGeluQuick);
  expect_as_good_as_eager(inputs(5000, 8200, 4104, true, false), kNone);
}

TEST_P(LinearAct, TakesViewsAndAddsToTheResidualInPlace) {
  for (const int64_t rows : {3, 30, 2100}) {
    Inputs in = random_inputs(rows, 1304, 64, true, true);
    in.x = random({rows, 160}).narrow(1, 16, 64);
    expect_as_good_as_eager(in, kSilu);
    in.x = random({rows, 160}).narrow(1, 3, 64);  // off 16 bytes
    expect_as_good_as_eager(in, kSilu);
    const at::Tensor expected = ours(in, kGeluTanh);
    const at::Tensor stream = in.residual.clone();
    package()("linear_act_out", stream, in.x, in.weight, in.bias, kGeluTanh, stream);
    EXPECT_TRUE(is_same_bits(stream, expected)) << rows;
  }
  Inputs in = random_inputs(1, 24, 40, true, false);
  in.x = random({5, 3, 64}).narrow(2, 8, 40).transpose(0, 1);
  in.residual = random({3, 5, 24});
  expect_as_good_as_eager(in, kRelu);
  in.x = random({2, 150, 40});
  in.residual = random({2, 150, 24});
  expect_as_good_as_eager(in, kSilu);
  in.x = random({2, 3, 128, 64}).narrow(3, 8, 40).transpose(1, 2);
  in.residual = random({2, 128, 3, 24});
  expect_as_good_as_eager(in, kSilu);
  in.x = random({40});
  in.residual = random({24});
  expect_as_good_as_eager(in, kGelu);
}

TEST_P(LinearAct, TakesNoRowsNoColumnsAndNoDepth) {
  EXPECT_EQ(ours(random_inputs(0, 24, 40, true, true), kSilu).sizes(), (at::IntArrayRef{0, 24}));
  EXPECT_EQ(ours(random_inputs(4, 0, 40, true, true), kSilu).sizes(), (at::IntArrayRef{4, 0}));
  const Inputs in{random({40, 0}), random({24, 0}), random({24}), random({40, 24})};
  expect_as_good_as_eager(in, kSilu);
}

TEST_P(LinearAct, GivesTheSameBitsEveryTimeAndOnAnyNumberOfThreads) {
  const int threads = at::get_num_threads();
  for (const int64_t rows : {3, 700}) {
    const Inputs in = random_inputs(rows, on_cuda() ? 8200 : 520, 328, true, true);
    const at::Tensor first = ours(in, kGeluTanh);
    for (int run = 0; run < (is_small_run() ? 4 : 30); ++run) {
      at::set_num_threads(1 + run % 2);
      ASSERT_TRUE(is_same_bits(ours(in, kGeluTanh), first)) << rows << " rows, run " << run;
    }
    at::set_num_threads(threads);
  }
}

TEST_P(LinearAct, PassesNanAndInfinityOnToTheirRowsAlone) {
  for (const int64_t rows : {9, 2500}) {
    Inputs in = random_inputs(rows, 1304, 64, false, true);
    in.x[8][3] = std::numeric_limits<double>::quiet_NaN();
    in.residual[5][7] = std::numeric_limits<double>::infinity();
    for (const int64_t act : {kNone, kSilu, kRelu}) {
      const at::Tensor out = ours(in, act);
      EXPECT_TRUE(out[8].isnan().all().item<bool>()) << rows;
      EXPECT_EQ(out.isnan().sum().item<int64_t>(), 1304) << rows;
      EXPECT_EQ(out.isinf().sum().item<int64_t>(), 1) << rows;
      EXPECT_TRUE(out[5][7].isinf().item<bool>()) << rows;
    }
  }
}

TEST_P(LinearAct, RefusalNamesTheArgument) {
  const auto message = [&](const Inputs& in, int64_t act) {
    return testing::message_of([&] { ours(in, act); });
  };
  const Inputs good = random_inputs(2, 6, 8, true, true);
  EXPECT_EQ(message(good, kRelu), "no error");
  EXPECT_THAT(message(good, 6), ::testing::HasSubstr("[linear_act] act: expected 0 (none), 1"));
  EXPECT_THAT(message(good, -1), ::testing::HasSubstr("got -1"));
  Inputs in = good;
  in.residual = random({2, 5});
  EXPECT_THAT(message(in, kSilu),
              ::testing::HasSubstr("[linear_act] residual: expected shape [2, 6]"));
  in.residual = random({6, 2}).t();
  EXPECT_THAT(message(in, kSilu), ::testing::HasSubstr("[linear_act] residual: expected contig"));
  in = good;
  in.bias = random({5});
  EXPECT_THAT(message(in, kSilu), ::testing::HasSubstr("[linear_act] bias: expected shape [6]"));
  in = good;
  in.weight = random({6, 9});
  EXPECT_THAT(message(in, kSilu),
              ::testing::HasSubstr("[linear_act] weight: expected shape [M, 8]"));
  in = good;
  in.residual = in.residual.to(at::kDouble);
  EXPECT_THAT(message(in, kSilu), ::testing::HasSubstr("[linear_act] residual: expected"));
}

TEST_P(LinearAct, RunsInACapturedGraph) {
#ifdef GRAFT_WITH_CUDA
  if (!on_cuda()) {
    return;
  }
  for (const int64_t rows : {4, 64, 2100}) {
    const Inputs in = random_inputs(rows, 1304, 520, true, true);
    const at::Tensor expected = ours(in, kSilu).cpu();
    const testing::CurrentStream stream;
    const at::Tensor out = at::empty_like(in.residual);
    const auto call = [&] {
      package()("linear_act_out", out, in.x, in.weight, in.bias, kSilu, in.residual);
    };
    const testing::CapturedGraph graph(stream, call);
    for (int replay = 0; replay < 5; ++replay) {
      out.zero_();
      graph.launch();
      stream.synchronize();
      ASSERT_TRUE(is_same_bits(out.cpu(), expected)) << rows << " rows, replay " << replay;
    }
  }
#endif
}

// More than 2^31 elements of out, from ATen's product and a pass over it, and from tiles of our own.
TEST_P(LinearAct, ReachesBeyond31BitsOnCuda) {
  if (!on_cuda() || GetParam().dtype == at::kFloat || is_small_run()) {
    return;
  }
  const int64_t rows = (int64_t{1} << 16) + 100, columns = (1 << 15) + 8;
  for (const int64_t depth : {16, 4096}) {
    Inputs in = random_inputs(rows, columns, depth, true, false);
    const at::Tensor out = ours(in, kSilu);
    for (const int64_t row : {int64_t{0}, int64_t{65535}, int64_t{65536}, rows - 1}) {
      Inputs alone = in;
      alone.x = in.x.narrow(0, row, 1);
      expect_as_good_as_eager(out.narrow(0, row, 1), alone, kSilu);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Devices, LinearAct, ::testing::ValuesIn(testing::device_cases()),
                         testing::case_name);

}  // namespace
}  // namespace graft_kernels::linear
