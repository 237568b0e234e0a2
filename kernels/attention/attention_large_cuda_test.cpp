// Attention on CUDA over tensors of more than 2^31 elements: what lies at their ends equals the same rows alone.

#include <cstdint>

#include <gtest/gtest.h>

#include "kernels/common/test_support.h"

namespace graft_kernels::attention {
namespace {

using testing::Package;

// Just above 2^31 elements; a window keeps the work small.
constexpr int64_t kRows = 524'800, kHeads = 32, kHeadDim = 128, kWindow = 128;
constexpr int64_t kFreeBytes = int64_t{52} << 30;

class LargeAttention : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!testing::why_no_cuda().empty()) {
      GTEST_SKIP() << testing::why_no_cuda();
    }
#ifdef GRAFT_WITH_CUDA
    size_t free = 0, total = 0;
    testing::check_status(cudaMemGetInfo(&free, &total), "cudaMemGetInfo");
    if (testing::is_small_run() || static_cast<int64_t>(free) < kFreeBytes) {
      GTEST_SKIP() << "needs 52 GiB of free device memory, and not under a sanitizer";
    }
#endif
    at::manual_seed(7);
  }

  static at::Tensor random() {
    return at::randn({1, kRows, kHeads, kHeadDim},
                     at::TensorOptions(at::kCUDA).dtype(at::kBFloat16));
  }

  struct Results {
    at::Tensor out, lse, query, key, value;
  };

  // keys [1, rows, heads, D], as they lie in the large tensors.
  static Results run(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                     const at::Tensor& grad, double softcap) {
    const Package& package = Package::get("attention", testing::kCudaVariant);
    const at::Tensor k = key.transpose(1, 2), v = value.transpose(1, 2);
    const double scale = 0.088;
    const auto forward = package("attention_forward_lse", query, k, v, c10::IValue(), c10::IValue(),
                                 scale, softcap, kWindow, true);
    const at::Tensor out = forward[0].toTensor(), lse = forward[1].toTensor();
    const auto grads = package("attention_backward", grad, query, k, v, out, lse, c10::IValue(),
                               scale, softcap, kWindow, true, false);
    return {out, lse, grads[0].toTensor(), grads[1].toTensor().transpose(1, 2),
            grads[2].toTensor().transpose(1, 2)};
  }

  static void expect_equal_ends(double softcap) {
    const at::Tensor query = random(), key = random(), value = random(), grad = random();
    const Results whole = run(query, key, value, grad, softcap);
    // Rows of which the first kWindow see keys, and the last kWindow of keys are seen by queries, outside.
    constexpr int64_t kPart = 1024;
    for (const int64_t first : {int64_t{0}, kRows / 2, kRows - kPart}) {
      const auto part = [&](const at::Tensor& x) { return x.narrow(1, first, kPart).contiguous(); };
      const Results own = run(part(query), part(key), part(value), part(grad), softcap);
      const int64_t lead = first == 0 ? 0 : kWindow, tail = first + kPart == kRows ? 0 : kWindow;
      const auto expect_same = [&](const at::Tensor& ours, const at::Tensor& theirs, int64_t from,
                                   int64_t to, int dim, const char* name) {
        const at::Tensor a = ours.narrow(dim, first + from, to - from).to(at::kFloat);
        const at::Tensor b = theirs.narrow(dim, from, to - from).to(at::kFloat);
        // Tiles begin elsewhere, so that sums are taken in another order: roundings apart.
        EXPECT_LE((a - b).abs().max().item<double>(), 2e-2 * b.abs().max().item<double>())
            << name << " at " << first << ", cap " << softcap;
      };
      expect_same(whole.out, own.out, lead, kPart, 1, "out");
      expect_same(whole.lse, own.lse, lead, kPart, 2, "lse");
      expect_same(whole.query, own.query, lead, kPart, 1, "query");
      expect_same(whole.key, own.key, lead, kPart - tail, 1, "key");
      expect_same(whole.value, own.value, lead, kPart - tail, 1, "value");
    }
  }
};

// With a cap, Hopper's kernels leave the call to the others.
TEST_F(LargeAttention, EndsEqualTheSameRowsAlone) {
  for (const double softcap : {0.0, 30.0}) {
    expect_equal_ends(softcap);
  }
}

}  // namespace
}  // namespace graft_kernels::attention
