#include "graft/models/device_map.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "graft/core/error.h"
#include "graft/tensor/device.h"

namespace graft::models {
namespace {

using ::testing::HasSubstr;

std::string code_of(const std::string& text) {
  try {
    (void)DeviceMap(text);
  } catch (const Error& error) {
    return error.code();
  }
  return "no error";
}

TEST(DeviceMap, IsTheCpuByDefault) { EXPECT_EQ(DeviceMap().resolve(), at::Device(at::kCPU)); }

TEST(DeviceMap, TakesDevicesAndTheirNames) {
  EXPECT_EQ(DeviceMap(at::kCUDA).resolve().type(), at::kCUDA);
  EXPECT_EQ(DeviceMap(at::Device(at::kCUDA, 3)).resolve(), at::Device(at::kCUDA, 3));
  EXPECT_EQ(DeviceMap("cpu").resolve(), at::Device(at::kCPU));
  EXPECT_EQ(DeviceMap("cuda:2").resolve(), at::Device(at::kCUDA, 2));
}

TEST(DeviceMap, AutoIsCudaWhereThereIsOne) {
  EXPECT_EQ(DeviceMap("auto").resolve().type(), tensor::cuda_available() ? at::kCUDA : at::kCPU);
}

TEST(DeviceMap, TakesMapsToOneDevice) {
  EXPECT_EQ(DeviceMap(R"({"": "cuda:1"})").resolve(), at::Device(at::kCUDA, 1));
  EXPECT_EQ(DeviceMap(R"({"": 1})").resolve(), at::Device(at::kCUDA, 1));
  EXPECT_EQ(DeviceMap(R"({"model": "cuda:0", "lm_head": 0})").resolve(), at::Device(at::kCUDA, 0));
}

TEST(DeviceMap, RefusesWhatOneDeviceCannotCarry) {
  for (const char* text : {"balanced", "sequential", R"({"model": 0, "lm_head": "cpu"})",
                           R"({"model": 0, "lm_head": "disk"})"}) {
    EXPECT_EQ(code_of(text), "models.device-map.split") << text;
  }
}

TEST(DeviceMap, RefusesWhatIsNoMap) {
  for (const char* text :
       {"{}", "{", R"({"": null})", R"({"": -1})", R"({"": 0.5})", R"({"": "cpu", "": "cuda"})"}) {
    EXPECT_EQ(code_of(text), "models.device-map.json") << text;
  }
  for (const char* text : {"", "tpu", "cuda:x", "cuda:99", R"({"": "tpu"})"}) {
    EXPECT_EQ(code_of(text), "tensor.device.name") << text;
  }
}

std::vector<nn::WeightSlot> weights_named(const std::vector<std::string>& keys) {
  std::vector<nn::WeightSlot> slots;
  for (const std::string& key : keys) {
    slots.push_back({.key = key});
  }
  return slots;
}

TEST(DeviceMap, NamesTensorsWithoutADevice) {
  const DeviceMap map(R"({"model.layers.1": "cpu", "lm_head": "cpu"})");
  EXPECT_NO_THROW(map.check_covers(weights_named({"model.layers.1.mlp.weight", "lm_head.weight"})));
  try {
    map.check_covers(
        weights_named({"model.layers.1.weight", "model.layers.10.weight", "model.norm.weight"}));
    FAIL() << "no error";
  } catch (const InvalidArgument& error) {
    EXPECT_EQ(error.code(), "models.device-map.uncovered");
    EXPECT_THAT(error.what(), HasSubstr("none for 2: model.layers.10.weight, model.norm.weight"));
  }
}

}  // namespace
}  // namespace graft::models
