// The loss where only a GPU shows it: in a captured graph, beyond 2^31 elements, and the memory that it takes.

#include <c10/core/CachingDeviceAllocator.h>
#include <gtest/gtest.h>

#include "kernels/common/test_support.h"

namespace graft_kernels::loss {
namespace {

using testing::is_same_bits;
using testing::is_small_run;
using testing::largest_error;
using testing::Package;

at::Tensor torchs_loss(const at::Tensor& logits, const at::Tensor& labels) {
  return at::cross_entropy_loss(logits, labels, {}, at::Reduction::None);
}

class LossCuda : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!testing::why_no_cuda().empty()) {
      GTEST_SKIP() << testing::why_no_cuda();
    }
    at::manual_seed(0);
  }
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
  cudaDeviceSynchronize();
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

}  // namespace
}  // namespace graft_kernels::loss
