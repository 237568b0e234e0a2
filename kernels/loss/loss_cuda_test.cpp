// The loss where only a GPU shows it: in a captured graph, beyond 2^31 elements, and the memory that it takes.

#include <c10/core/CachingDeviceAllocator.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "kernels/common/test_suite.h"

namespace graft_kernels::loss {
namespace {

using testing::is_same_bits;
using testing::is_small_run;
using testing::largest_error;
using testing::Package;

at::Tensor torchs_loss(const at::Tensor& logits, const at::Tensor& labels) {
  return at::cross_entropy_loss(logits, labels, {}, at::Reduction::None);
}

class LossCuda : public testing::OnCuda {
 protected:
  const at::TensorOptions options_ = at::TensorOptions(at::kCUDA).dtype(at::kBFloat16);
};

TEST_F(LossCuda, CanBeCapturedIntoAGraph) {
#ifdef GRAFT_WITH_CUDA
  const Package& package = Package::get("loss", testing::kCudaVariant);
  at::Tensor hidden = at::randn({300, 64}, options_);
  const at::Tensor weight = at::randn({5000, 64}, options_), fresh = at::randn({300, 64}, options_);
  const at::Tensor labels = at::randint(5000, {300}, options_.dtype(at::kLong));
  const at::Tensor factor = at::ones({1}, options_.dtype(at::kFloat)).expand({300});
  const at::Tensor loss = at::zeros({300}, options_.dtype(at::kFloat)), lse = at::zeros_like(loss);
  const at::Tensor grad_hidden = at::zeros_like(hidden), grad_weight = at::zeros_like(weight);
  const std::optional<at::Tensor> none;
  const auto call = [&](const at::Tensor& input) {
    package("linear_cross_entropy_train_out", loss, lse, grad_hidden,
            std::optional<at::Tensor>(grad_weight), none, factor, input, weight, none, labels,
            int64_t{-100}, 0.0, 0.0, int64_t{128});
  };
  call(fresh);
  const at::Tensor expected_loss = loss.clone(), expected = grad_weight.clone();
  const testing::CurrentStream stream;
  call(hidden);  // fills PyTorch's pool and cuBLAS' workspace for this stream
  stream.synchronize();
  const testing::CapturedGraph graph(stream, [&] { call(hidden); });
  hidden.copy_(fresh);
  graph.launch();
  stream.synchronize();
  EXPECT_TRUE(is_same_bits(loss, expected_loss));
  EXPECT_TRUE(is_same_bits(grad_weight, expected));
#endif
}

TEST_F(LossCuda, ReachesBeyondTwoToTheThirtyFirstElements) {
  const Package& package = Package::get("loss", testing::kCudaVariant);
  const int64_t columns = 131072, rows = is_small_run() ? 10 : (int64_t{1} << 31) / columns + 3;
  const at::Tensor row = at::randn({1, columns}, options_);
  at::Tensor logits = row.expand({rows, columns}).contiguous();
  const at::Tensor labels = at::full({rows}, 77, options_.dtype(at::kLong));
  const at::Tensor factor = at::ones({1}, options_.dtype(at::kFloat)).expand({rows});
  const auto made = package("cross_entropy", logits, labels, int64_t{-100}, 0.0, 0.0);
  package("cross_entropy_backward_out", logits, factor, logits, labels, made.at(1).toTensor(),
          int64_t{-100}, 0.0, 0.0);
  const at::Tensor exact = torchs_loss(row.to(at::kDouble), labels.slice(0, 0, 1));
  EXPECT_LE(largest_error(made.at(0).toTensor(), exact.expand({rows})), 1e-4);
  EXPECT_TRUE(is_same_bits(logits[rows - 1], logits[0]));
  EXPECT_NEAR(logits[rows - 1][77].item<double>(), -1, 1e-2);
}

TEST_F(LossCuda, NeverHoldsTheLogitsOfAllTokens) {
  const Package& package = Package::get("loss", testing::kCudaVariant);
  const int64_t rows = 8192, columns = 131072, depth = 128;
  const at::Tensor hidden = at::randn({rows, depth}, options_);
  const at::Tensor weight = at::randn({columns, depth}, options_) * 0.1;
  const at::Tensor labels = at::randint(columns, {rows}, options_.dtype(at::kLong));
  const at::Tensor factor = at::ones({1}, options_.dtype(at::kFloat)).expand({rows});
  auto* allocator = c10::getDeviceAllocator(at::kCUDA);
  const auto bytes = [&] { return allocator->getDeviceStats(0).allocated_bytes[0]; };
  const int64_t before = bytes().current;
  allocator->resetPeakStats(0);
  const auto made =
      package("linear_cross_entropy_train", factor, hidden, weight, std::optional<at::Tensor>(),
              labels, int64_t{-100}, 0.0, 0.0, int64_t{0}, true);
  int64_t results = 0;
  for (const c10::IValue& value : made) {
    results += static_cast<int64_t>(value.toTensor().nbytes());
  }
  const int64_t extra = bytes().peak - before - results;
  EXPECT_LE(extra, int64_t{1500} << 20) << "of " << rows * columns * 2 << " bytes of logits";
  const at::Tensor exact =
      torchs_loss(at::matmul(hidden.slice(0, 8000, 8192), weight.t()).to(at::kFloat),
                  labels.slice(0, 8000, 8192));
  EXPECT_LE(largest_error(made.at(0).toTensor().slice(0, 8000, 8192), exact.to(at::kDouble)), 1e-2);
}

// Hopper's blocks take one long row after the other: what comes before a row must not show in it, and who copies and who
// computes must agree on rows that are left out.
TEST_F(LossCuda, LongRowsInTurnAreLikeRowsAlone) {
  const Package& package = Package::get("loss", testing::kCudaVariant);
  for (const auto& [rows, columns] : {std::pair{1100, 131077}, {300, 300007}, {700, 36003}}) {
    const int64_t count = is_small_run() ? 140 : rows;
    // Small whole numbers, whose products are exact in any order.
    const at::Tensor hidden = at::randint(-2, 3, {count, 16}, options_),
                     weight = at::randint(-2, 3, {columns, 16}, options_) / 4;
    at::Tensor labels = at::randint(columns, {count}, options_.dtype(at::kLong));
    labels.slice(0, 3, c10::nullopt, 7).fill_(-100);
    labels.slice(0, count / 2, count / 2 + 9).fill_(-100);
    labels[1] = columns - 1;
    labels[count - 1] = columns;  // out of range: NaN
    const at::Tensor factor = at::rand({count}, options_.dtype(at::kFloat));
    const auto train = [&](int64_t chunk_rows) {
      std::vector<at::Tensor> all;
      for (const auto& value : package("linear_cross_entropy_train", factor, hidden, weight,
                                       std::optional<at::Tensor>(), labels, int64_t{-100}, 0.0, 0.1,
                                       chunk_rows, true)) {
        all.push_back(value.toTensor());
      }
      return all;
    };
    const auto alone = train(20), in_turn = train(count);
    for (const int i : {0, 1}) {
      EXPECT_TRUE(is_same_bits(in_turn[i], alone[i]))
          << (i == 0 ? "loss" : "lse") << ", " << columns;
    }
    EXPECT_TRUE(in_turn[0][count - 1].isnan().item<bool>());
    EXPECT_LE(largest_error(in_turn[2].slice(0, 0, count - 1).cpu(),
                            alone[2].slice(0, 0, count - 1).cpu().to(at::kDouble)),
              0x1p-6 * alone[2].slice(0, 0, count - 1).abs().max().item<double>());
    for (int run = 0; run < 5; ++run) {
      const auto again = train(count);
      for (size_t i = 0; i < 3; ++i) {
        ASSERT_TRUE(is_same_bits(again[i], in_turn[i])) << i << ", " << columns << ", run " << run;
      }
    }
  }
}

// Rows of an embedding's gradient added to a head's.
class AddedRows : public LossCuda {
 protected:
  static void add(const at::Tensor& sums, const at::Tensor& rows, const at::Tensor& ids,
                  int64_t skipped = -1) {
    const auto [sorted, order] = ids.sort(/*stable=*/true, 0, false);
    Package::for_device("loss", at::kCUDA)("add_rows_", sums, rows, sorted, order, skipped);
  }
};

TEST_F(AddedRows, AreTheSumOfAllRowsOfAnIdRoundedOnce) {
  for (const auto dtype : {at::kFloat, at::kBFloat16, at::kHalf}) {
    for (const auto& [count, columns, most] : {std::tuple{1, 1, 1},
                                               {700, 2048, 40},
                                               {33, 2056, 5},
                                               {300, 77, 3},
                                               {64, 4096, 1},
                                               {9, 8, 1000}}) {
      const auto options = at::TensorOptions(at::kCUDA).dtype(dtype);
      const at::Tensor before = at::randn({most + 3, columns}, options),
                       rows = at::randn({count, columns}, options),
                       ids = at::randint(most, {count}, options.dtype(at::kLong));
      const at::Tensor exact =
          before.to(at::kDouble).index_add(0, ids, rows.to(at::kDouble)).to(at::kCPU);
      at::Tensor own = before.clone();
      add(own, rows, ids);
      const double sum_error = std::sqrt(count) * 0x1p-22, unit = dtype == at::kFloat  ? 0x1p-24
                                                                  : dtype == at::kHalf ? 0x1p-11
                                                                                       : 0x1p-8;
      EXPECT_LE(testing::largest_error(own.cpu(), exact),
                exact.abs().max().item<double>() * (unit + sum_error))
          << dtype << ", " << count << "x" << columns << ", ids " << most;
      EXPECT_TRUE(testing::is_same_bits(own.narrow(0, most, 3), before.narrow(0, most, 3)));
      at::Tensor again = before.clone();
      add(again, rows, ids);
      EXPECT_TRUE(testing::is_same_bits(own, again));
    }
  }
}

TEST_F(AddedRows, LeaveOutWhatIsSkippedOrNotThere) {
  const auto options = at::TensorOptions(at::kCUDA).dtype(at::kBFloat16);
  const at::Tensor sums = at::zeros({4, 64}, options), rows = at::ones({6, 64}, options);
  add(sums, rows, at::tensor({2, 1, -1, 1, 4, 3}, options.dtype(at::kLong)), /*skipped=*/3);
  EXPECT_TRUE(
      at::equal(sums.select(1, 63).cpu().to(at::kLong), at::tensor({0, 2, 1, 0}, at::kLong)));
  add(sums, rows.narrow(0, 0, 0), at::empty({0}, options.dtype(at::kLong)));
}

TEST_F(AddedRows, CanBeCapturedIntoAGraph) {
#ifdef GRAFT_WITH_CUDA
  const auto options = at::TensorOptions(at::kCUDA).dtype(at::kBFloat16);
  const at::Tensor before = at::randn({50, 512}, options), rows = at::randn({90, 512}, options),
                   ids = at::randint(50, {90}, options.dtype(at::kLong)), sums = before.clone();
  const auto [sorted, order] = ids.sort(/*stable=*/true, 0, false);
  const Package& package = Package::for_device("loss", at::kCUDA);
  const auto work = [&] { package("add_rows_", sums, rows, sorted, order, -1); };
  work();
  const at::Tensor first = sums.clone();
  const testing::CurrentStream stream;
  const testing::CapturedGraph graph(stream, work);
  sums.copy_(before);
  graph.launch();
  stream.synchronize();
  EXPECT_TRUE(testing::is_same_bits(sums, first));
#endif
}

TEST_F(AddedRows, RefusalNamesTheArgument) {
  const auto options = at::TensorOptions(at::kCUDA).dtype(at::kBFloat16);
  const at::Tensor sums = at::zeros({4, 64}, options),
                   ids = at::zeros({6}, options.dtype(at::kLong));
  const auto message = [&](const at::Tensor& rows, const at::Tensor& list) {
    try {
      Package::for_device("loss", at::kCUDA)("add_rows_", sums, rows, list, ids, -1);
    } catch (const std::exception& error) {
      return std::string(error.what());
    }
    return std::string();
  };
  EXPECT_THAT(message(at::ones({6, 32}, options), ids),
              ::testing::HasSubstr("[add_rows_] rows: expected rows of 64, got [6, 32]"));
  EXPECT_THAT(message(at::ones({6, 64}, options.dtype(at::kHalf)), ids),
              ::testing::HasSubstr("[add_rows_] rows: expected"));
  EXPECT_THAT(message(at::ones({5, 64}, options), ids),
              ::testing::HasSubstr("[add_rows_] ids: expected shape [5], got [6]"));
  EXPECT_THAT(message(at::ones({6, 64}, options), ids.to(at::kInt)),
              ::testing::HasSubstr("[add_rows_] ids: expected"));
}

}  // namespace
}  // namespace graft_kernels::loss
