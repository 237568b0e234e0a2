// For tests: packages that tests/kernels/ built with published schemas, through the real road.
#pragma once

#include <memory>
#include <string>

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "graft/core/error.h"
#include "graft/kernel/loader.h"
#include "graft/kernel/resolver.h"

namespace graft::layers::published {

inline std::shared_ptr<const kernel::LoadedKernel> load_package(const std::string& name) {
  const std::string folder = std::string(GRAFT_BINARY_DIR) + "/tests/hub/graft-tests/" + name;
  return kernel::load("graft-tests/" + name,
                      kernel::resolve({{folder, "", "Any"}, kernel::this_system("cpu", 0)}));
}

template <typename Call>
void expect_error(const Call& call, const std::string& code,
                  const testing::Matcher<std::string>& text) {
  try {
    call();
    ADD_FAILURE() << "expected " << code;
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), code) << error.what();
    EXPECT_THAT(std::string(error.what()), text);
  }
}

inline void expect_close(const at::Tensor& got, const at::Tensor& want, double tolerance,
                         const std::string& what = "") {
  ASSERT_EQ(got.sizes(), want.sizes()) << what;
  const double error =
      got.numel() == 0 ? 0.0
                       : (got.to(at::kDouble) - want.to(at::kDouble)).abs().max().item<double>();
  EXPECT_LT(error, tolerance) << what;
}

}  // namespace graft::layers::published
