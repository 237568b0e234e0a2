// What the tests of the ops with a norm share.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "kernels/common/test_suite.h"

namespace graft_kernels::rotary {

// Of query and of key, or cos and sin.
using Both = std::pair<at::Tensor, at::Tensor>;

struct Shape {
  int64_t batch, length, query_heads, key_heads, head_dim, rotary_dim;
};

// Every width of the kernels, whole and in part turned, odd ones, no key, heads beyond what a warp holds.
inline std::vector<Shape> shapes() {
  return {{1, 1, 1, 1, 2, 2},    {2, 7, 4, 2, 64, 64},    {1, 5, 32, 8, 128, 128},
          {3, 4, 6, 3, 80, 32},  {2, 3, 5, 1, 96, 96},    {1, 9, 3, 3, 10, 6},
          {2, 2, 71, 1, 64, 64}, {1, 3, 8, 4, 256, 256},  {2, 5, 4, 4, 64, 62},
          {1, 2, 8, 0, 64, 64},  {2, 3, 9, 9, 192, 96},   {1, 2, 2, 1, 512, 512},
          {1, 2, 2, 1, 576, 64}, {1, 3, 2, 2, 1024, 256}, {1, 2, 3, 2, 129, 128}};
}

// Tokens enough for a block each, and more heads than a block takes at once.
inline std::vector<Shape> long_shapes() {
  return {{1, 300, 9, 3, 64, 64}, {1, 270, 66, 2, 128, 64}, {2, 135, 33, 1, 256, 256}};
}

// transformers' formula, operation by operation, for x [B, S, H, D], a weight [D] and tables [B or 1, S, R].
inline at::Tensor eager(const at::Tensor& x, const at::Tensor& weight, const Both& tables,
                        double eps, int64_t variant, bool interleaved) {
  const auto wide_type = x.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  const at::Tensor wide = x.to(wide_type), factor = weight.to(wide_type);
  const at::Tensor norm = wide * at::rsqrt(wide.pow(2).mean(-1, true) + eps);
  const at::Tensor normed = variant == 0   ? (weight * norm.to(x.scalar_type()))
                            : variant == 3 ? (norm * (1.0 + factor)).to(x.scalar_type())
                                           : (factor * norm).to(x.scalar_type());
  const int64_t rotary_dim = tables.first.size(-1), half = rotary_dim / 2;
  const at::Tensor cos = tables.first.unsqueeze(2), sin = tables.second.unsqueeze(2);
  const at::Tensor head = normed.narrow(-1, 0, rotary_dim);
  const at::Tensor turned =
      interleaved
          ? at::stack({-head.slice(-1, 1, rotary_dim, 2), head.slice(-1, 0, rotary_dim, 2)}, -1)
                .flatten(-2)
          : at::cat({-head.narrow(-1, half, half), head.narrow(-1, 0, half)}, -1);
  const at::Tensor out = (head * cos + turned * sin).to(x.scalar_type());
  return at::cat({out, normed.narrow(-1, rotary_dim, x.size(-1) - rotary_dim)}, -1);
}

inline Both to_double(const Both& both) {
  return {both.first.to(at::kDouble), both.second.to(at::kDouble)};
}

// The heads as the package rms-norm norms them, in their own dtype.
inline Both normed_by_package(at::Device device, const Both& heads, const Both& weights, double eps,
                              int64_t variant) {
  const auto& package = testing::Package::for_device("rms-norm", device);
  const auto norm = [&](const at::Tensor& x, const at::Tensor& weight) {
    return package("rms_norm", x, weight, eps, variant).at(0).toTensor();
  };
  return {norm(heads.first, weights.first), norm(heads.second, weights.second)};
}

}  // namespace graft_kernels::rotary
