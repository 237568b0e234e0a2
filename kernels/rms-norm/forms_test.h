// What the tests of gated RMSNorm and of LayerNorm share: one suite each for all devices and dtypes, results against
// eager ATen and float64.
#pragma once

#include <cmath>
#include <optional>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "kernels/common/test_suite.h"

namespace graft_kernels::rms_norm {

using testing::is_same_bits;
using testing::is_small_run;
using testing::largest_error;
using testing::Package;
using Tensors = std::vector<at::Tensor>;

inline constexpr double kEps = 1e-5;

class Forms : public testing::OnEachDevice {
 protected:
  const Package& package() const { return Package::for_device("rms-norm", GetParam().device); }

  // Error no worse than twice eager's, and what the order of float32 sums may cost.
  void expect_no_worse(const at::Tensor& ours, const at::Tensor& eager, const at::Tensor& exact,
                       const std::string& what, double slack = 0) const {
    ASSERT_EQ(ours.sizes(), exact.sizes()) << what;
    const double scale = exact.numel() == 0 ? 0 : exact.abs().max().item<double>();
    EXPECT_LE(largest_error(ours, exact), 2 * largest_error(eager, exact) + 4e-7 * scale + slack)
        << what;
  }
};

inline std::vector<std::vector<int64_t>> shapes() {
  if (is_small_run()) {
    return {{3, 1}, {5, 7}, {300, 128}, {3, 1031}, {3, 4096}, {2, 16392}};
  }
  return {{1, 1},     {3, 2},     {5, 3},     {33, 8},    {7, 64},    {1, 127},
          {9, 128},   {35, 256},  {3, 257},   {17, 512},  {5, 576},   {3, 1000},
          {60, 1024}, {2, 1031},  {5, 2048},  {33, 4096}, {3, 5003},  {4, 8192},
          {3, 16384}, {3, 16392}, {2, 40000}, {2500, 64}, {1639, 128}};
}

inline std::string name_of(at::IntArrayRef shape, const std::string& what) {
  std::string name = what + ", shape";
  for (const int64_t size : shape) {
    name += " " + std::to_string(size);
  }
  return name;
}

}  // namespace graft_kernels::rms_norm
