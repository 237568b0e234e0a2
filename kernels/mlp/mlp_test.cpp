// The gated MLP beside eager steps and float64, one suite for all devices and dtypes.

#include <algorithm>
#include <cmath>
#include <limits>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "kernels/common/test_suite.h"

namespace graft_kernels::mlp {
namespace {

using testing::is_same_bits;
using testing::largest_error;
using testing::Package;

struct Inputs {
  at::Tensor x, gate, up, down;
  std::optional<at::Tensor> gate_bias, up_bias, down_bias;

  Inputs to(const at::TensorOptions& options) const {
    const auto cast = [&](const std::optional<at::Tensor>& tensor) {
      return tensor ? std::optional<at::Tensor>(tensor->to(options)) : std::nullopt;
    };
    return {x.to(options),   gate.to(options), up.to(options), down.to(options),
            cast(gate_bias), cast(up_bias),    cast(down_bias)};
  }
};

constexpr int64_t kSilu = 0, kGelu = 1, kGeluTanh = 2;

class Mlp : public testing::OnEachDevice {
 protected:
  Inputs random(int64_t rows, int64_t hidden, int64_t inner, bool with_bias) const {
    const auto bias = [&](int64_t size) {
      return with_bias ? std::optional<at::Tensor>(at::randn({size})) : std::nullopt;
    };
    const double scale = 1 / std::sqrt(static_cast<double>(hidden));
    return Inputs{at::randn({rows, hidden}),
                  at::randn({inner, hidden}) * scale,
                  at::randn({inner, hidden}) * scale,
                  at::randn({hidden, inner}) / std::sqrt(static_cast<double>(inner)),
                  bias(inner),
                  bias(inner),
                  bias(hidden)}
        .to(at::TensorOptions(GetParam().device).dtype(GetParam().dtype));
  }

  static at::Tensor eager(const Inputs& in, int64_t act) {
    const at::Tensor gate = at::linear(in.x, in.gate, in.gate_bias);
    const at::Tensor value = act == kSilu   ? at::silu(gate)
                             : act == kGelu ? at::gelu(gate)
                                            : at::gelu(gate, "tanh");
    return at::linear(value * at::linear(in.x, in.up, in.up_bias), in.down, in.down_bias);
  }

  static const Package& package() { return Package::for_device("mlp", GetParam().device); }

  static at::Tensor ours(const Inputs& in, int64_t act) {
    return package()("mlp", in.x, in.gate, in.up, in.down, act, in.gate_bias, in.up_bias,
                     in.down_bias)
        .at(0)
        .toTensor();
  }

  // A rounding of the dtype, of the values that the sum has.
  static double roundoff() {
    return GetParam().dtype == at::kFloat  ? 0x1p-22
           : GetParam().dtype == at::kHalf ? 0x1p-11
                                           : 0x1p-8;
  }
};

TEST_P(Mlp, IsNoWorseThanTwiceEagerForFewAndManyRows) {
  for (const auto& [hidden, inner] :
       {std::pair{1, 1}, {5, 3}, {64, 160}, {576, 1536}, {1032, 40}, {257, 33}}) {
    for (const int64_t rows : {1, 2, 3, 4, 7, 16, 17, 600}) {
      for (const int64_t act : {kSilu, kGelu, kGeluTanh}) {
        const Inputs in = random(rows, hidden, inner, rows % 2 == 1);
        const at::Tensor exact = eager(in.to(in.x.options().dtype(at::kDouble)), act);
        EXPECT_LE(largest_error(ours(in, act), exact),
                  2 * largest_error(eager(in, act), exact) +
                      roundoff() * exact.abs().max().item<double>())
            << act << ", rows " << rows << ", hidden " << hidden << ", inner " << inner;
      }
      if (testing::is_small_run() && rows >= 17 && hidden == 576) {
        break;
      }
    }
  }
}

// Many tiles on a device that has them: several for each block, in groups, and rows and columns that do not fill them.
TEST_P(Mlp, IsNoWorseThanTwiceEagerOverManyTiles) {
  const auto check = [&](int64_t rows, int64_t hidden, int64_t inner, int64_t act, bool with_bias) {
    // Elsewhere these are ATen's products: a piece says as much.
    const Inputs in = on_cuda()
                          ? random(testing::is_small_run() ? std::min<int64_t>(rows, 600) : rows,
                                   hidden, inner, with_bias)
                          : random(300, hidden, inner / 8, with_bias);
    const at::Tensor exact = eager(in.to(in.x.options().dtype(at::kDouble)), act);
    EXPECT_LE(
        largest_error(ours(in, act), exact),
        2 * largest_error(eager(in, act), exact) + roundoff() * exact.abs().max().item<double>())
        << act << ", x " << in.x.sizes() << ", inner " << in.gate.size(0);
  };
  check(5000, 136, 4104, kSilu, true);
  check(3001, 1032, 2600, kGelu, false);
  check(2500, 64, 3333, kGeluTanh, true);  // rows of inner off 16 bytes
  check(1025, 8, 2568, kSilu, false);      // one step
  check(513, 2048, 8200, kSilu, false);
  check(200, 520, 7700, kGelu, true);  // one row of clusters
}

TEST_P(Mlp, GivesTheSameBitsEveryTimeAndInACapturedGraph) {
#ifdef GRAFT_WITH_CUDA
  if (!on_cuda()) {
    return;
  }
  const Inputs in = random(600, 520, 4104, true);
  const at::Tensor first = ours(in, kSilu).cpu();
  for (int run = 0; run < (testing::is_small_run() ? 3 : 50); ++run) {
    ASSERT_TRUE(is_same_bits(ours(in, kSilu).cpu(), first)) << run;
  }
  const testing::CurrentStream stream;
  const at::Tensor out = at::empty_like(in.x);
  const testing::CapturedGraph graph(stream, [&] {
    package()("mlp_out", out, in.x, in.gate, in.up, in.down, kSilu, in.gate_bias, in.up_bias,
              in.down_bias);
  });
  for (int replay = 0; replay < 5; ++replay) {
    out.zero_();
    graph.launch();
    stream.synchronize();
    ASSERT_TRUE(is_same_bits(out.cpu(), first)) << replay;
  }
#endif
}

TEST_P(Mlp, PassesNanOnToItsRowsAlone) {
  for (const int64_t rows : {9, 700}) {
    // Rows of a multiple of 32: libtorch's bfloat16 product on AMX lets a NaN into the row before its own else.
    const Inputs in = random(rows, 64, 4128, false);
    in.x[8][3] = std::numeric_limits<double>::quiet_NaN();
    const at::Tensor out = ours(in, kSilu);
    EXPECT_TRUE(out[8].isnan().all().item<bool>()) << rows;
    EXPECT_EQ(out.isnan().sum().item<int64_t>(), 64) << rows;
  }
}

TEST_P(Mlp, GivesARowTheSameBitsAloneAndAmongOthersAndOnAnyNumberOfThreads) {
  if (on_cuda() && GetParam().dtype == at::kFloat) {
    return;  // ATen's products
  }
  const Inputs in = random(16, 576, on_cuda() ? 1544 : 1537, true);
  const at::Tensor together = ours(in, kSilu);
  const int threads = at::get_num_threads();
  at::set_num_threads(1);
  const at::Tensor on_one_thread = ours(in, kSilu);
  at::set_num_threads(threads);
  EXPECT_TRUE(is_same_bits(together, on_one_thread));
  for (const int64_t row : {0, 5, 15}) {
    Inputs alone = in;
    alone.x = in.x.narrow(0, row, 1).contiguous();
    EXPECT_TRUE(is_same_bits(ours(alone, kSilu), together.narrow(0, row, 1))) << "row " << row;
  }
}

TEST_P(Mlp, WritesIntoTheCallersTensorAndTakesNoRowsAtAll) {
  const Inputs in = random(3, 64, 48, false);
  const at::Tensor out = at::full_like(in.x, 7);
  package()("mlp_out", out, in.x, in.gate, in.up, in.down, kGelu, in.gate_bias, in.up_bias,
            in.down_bias);
  EXPECT_TRUE(is_same_bits(out, ours(in, kGelu)));
  EXPECT_EQ(ours(random(0, 64, 48, false), kSilu).sizes(), (at::IntArrayRef{0, 64}));
}

TEST_P(Mlp, RefusalNamesTheArgument) {
  const auto message = [&](const Inputs& in, int64_t act) {
    return testing::message_of([&] { ours(in, act); });
  };
  const Inputs good = random(2, 8, 6, true);
  Inputs in = good;
  in.up = good.up.narrow(0, 0, 5);
  EXPECT_THAT(message(in, kSilu), ::testing::HasSubstr("[mlp] up_weight: expected shape [6, 8]"));
  in = good;
  in.down = good.down.t();
  EXPECT_THAT(message(in, kSilu), ::testing::HasSubstr("[mlp] down_weight: expected shape [8, 6]"));
  in = good;
  in.gate_bias = at::cat({*good.gate_bias, good.gate_bias->narrow(0, 0, 1)});
  EXPECT_THAT(message(in, kSilu), ::testing::HasSubstr("[mlp] gate_bias: expected shape [6]"));
  EXPECT_THAT(
      message(good, 3),
      ::testing::HasSubstr("[mlp] act: expected 0 (silu), 1 (gelu) or 2 (gelu_tanh), got 3"));
}

INSTANTIATE_TEST_SUITE_P(Devices, Mlp, ::testing::ValuesIn(testing::device_cases()),
                         testing::case_name);

}  // namespace
}  // namespace graft_kernels::mlp
