#include "graft/tensor/device_graph.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "graft/core/error.h"
#include "graft/tensor/device.h"

namespace graft::tensor {
namespace {

using ::testing::HasSubstr;

TEST(DeviceGraph, IsRefusedOnTheCpu) {
  EXPECT_EQ(graph_refusal(at::kCPU), "device cpu has no graphs");
  try {
    make_graph(at::kCPU);
    FAIL() << "expected DeviceError";
  } catch (const DeviceError& error) {
    EXPECT_THAT(error.what(), HasSubstr("cpu: expected a device with graphs"));
    EXPECT_EQ(error.code(), "tensor.graph.unavailable");
  }
}

class DeviceGraphCuda : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!cuda_available()) {
      GTEST_SKIP() << "no CUDA device";
    }
  }
  const at::Device device_{at::kCUDA, 0};
};

TEST_F(DeviceGraphCuda, RunsTheWorkAtReplayAndNotAtCapture) {
  at::Tensor x = at::ones({1000}, device_), count = at::zeros({1}, device_), y;
  const auto graph = make_graph(device_);
  graph->capture([&] {
    y = x * 2 + 1;
    count.add_(1);
  });
  EXPECT_EQ(count.item<float>(), 0.0F);
  for (int step = 1; step <= 3; ++step) {
    x.fill_(step);
    graph->replay();
    // What is made outside takes none of the graph's memory.
    const at::Tensor other = at::full({1000}, -1.0, device_);
    EXPECT_EQ(y.min().item<float>(), 2.0F * static_cast<float>(step) + 1.0F);
    EXPECT_EQ(y.max().item<float>(), 2.0F * static_cast<float>(step) + 1.0F);
    EXPECT_EQ(count.item<float>(), static_cast<float>(step));
    EXPECT_EQ(other.max().item<float>(), -1.0F);
  }
}

TEST_F(DeviceGraphCuda, LeavesTheDeviceUsableWhereACaptureFails) {
  const at::Tensor x = at::ones({8}, device_);
  EXPECT_THROW(make_graph(device_)->capture([&] { (x + 1).sum().item<float>(); }), c10::Error);
  EXPECT_THROW(make_graph(device_)->capture([] { throw InvalidArgument("test", "own", "own"); }),
               InvalidArgument);
  EXPECT_EQ((x + 1).sum().item<float>(), 16.0F);
  at::Tensor y;
  const auto graph = make_graph(device_);
  graph->capture([&] { y = x + 2; });
  graph->replay();
  EXPECT_EQ(y.sum().item<float>(), 24.0F);
}

}  // namespace
}  // namespace graft::tensor
