// The suite that a package's tests are: the same cases on every device and in every dtype, those of a GPU skipped with
// their reason where there is none.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "kernels/common/test_support.h"

namespace graft_kernels::testing {

struct Case {
  at::DeviceType device;
  at::ScalarType dtype;
};

inline std::string case_name(const ::testing::TestParamInfo<Case>& info) {
  return std::string(info.param.device == at::kCUDA ? "cuda_" : "cpu_") +
         c10::toString(info.param.dtype);
}

// Both devices in float32 and the 16-bit types.
inline std::vector<Case> device_cases() {
  std::vector<Case> cases;
  for (const at::DeviceType device : {at::kCPU, at::kCUDA}) {
    for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16, at::kHalf}) {
      cases.push_back({device, dtype});
    }
  }
  return cases;
}

// Base of a suite over `device_cases()`.
class OnEachDevice : public ::testing::TestWithParam<Case> {
 protected:
  void SetUp() override {
    if (on_cuda() && !why_no_cuda().empty()) {
      GTEST_SKIP() << why_no_cuda();
    }
    at::manual_seed(0);
  }

  static bool on_cuda() { return GetParam().device == at::kCUDA; }
  // Normally distributed, the same numbers on every device.
  static at::Tensor random(at::IntArrayRef shape) {
    return at::randn(shape, at::kFloat).to(GetParam().dtype).to(GetParam().device);
  }
};

// Base of what only a GPU can show.
class OnCuda : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!why_no_cuda().empty()) {
      GTEST_SKIP() << why_no_cuda();
    }
    at::manual_seed(0);
  }
};

// What a call that is refused says, for tests of the text.
inline std::string message_of(const std::function<void()>& call) {
  try {
    call();
  } catch (const std::exception& error) {
    return error.what();
  }
  return "no error";
}

}  // namespace graft_kernels::testing
