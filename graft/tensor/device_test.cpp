#include "graft/tensor/device.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "graft/core/error.h"

namespace graft::tensor {
namespace {

using testing::AnyOf;
using testing::HasSubstr;

TEST(Device, IsReadByName) {
  EXPECT_EQ(parse_device("cpu"), at::Device(at::kCPU));
  EXPECT_EQ(parse_device("cuda"), at::Device(at::kCUDA, 0));
  EXPECT_EQ(parse_device("cuda:3"), at::Device(at::kCUDA, 3));
  for (const char* text : {"", "gpu", "cuda:", "cuda:-1", "cuda:1x", "cuda:64", "CPU"}) {
    EXPECT_THROW(parse_device(text), InvalidArgument) << text;
  }
}

TEST(Dtype, IsReadByNameAndWrittenAsPyTorchDoes) {
  EXPECT_FALSE(parse_dtype("auto"));
  EXPECT_EQ(parse_dtype("bf16"), at::kBFloat16);
  EXPECT_EQ(dtype_name(*parse_dtype("fp16")), "float16");
  EXPECT_THROW(parse_dtype("int8"), InvalidArgument);
}

TEST(Device, TheCpuNeedsNothingAndHasNoCapability) {
  EXPECT_NO_THROW(ensure_device(at::kCPU));
  EXPECT_EQ(capability(at::kCPU), 0);
  EXPECT_TRUE(std::filesystem::exists(torch_library_folder() / "libtorch_cpu.so"));
}

TEST(Device, ThatIsNotThereIsAnErrorThatNamesIt) {
  try {
    ensure_device(at::Device(at::kCUDA, 63));
    FAIL();
  } catch (const DeviceError& error) {
    EXPECT_THAT(error.code(), AnyOf("tensor.device.cuda-library", "tensor.device.no-device",
                                    "tensor.device.index"));
    EXPECT_THAT(error.what(), HasSubstr("cuda:63"));
    EXPECT_EQ(cuda_available(), error.code() == "tensor.device.index");
  }
}

}  // namespace
}  // namespace graft::tensor
