// What the host files of this package share: the checked problem and the CPU entries.
#pragma once

#include <cstdint>

#include "kernels/common/dtype.h"
#include "kernels/rms-norm/rms_norm.h"

namespace graft_kernels::rotary {

// Query or key: [batch, length, heads, head_dim], strides in elements, the last dimension dense.
struct Heads {
  const void* in = nullptr;
  void* out = nullptr;
  int64_t count = 0;
  int64_t in_stride[3] = {};   // batch, length, heads
  int64_t out_stride[3] = {};  // batch, length, heads
};

// cos or sin: [batch or 1, length, rotary_dim], the last dimension dense; a stride of zero where all
// batches share one table.
struct Table {
  const void* data = nullptr;
  int64_t stride[2] = {};  // batch, length
};

// RMSNorm of each head before its rotation, rounded to the heads' dtype as a norm of its own would leave it.
struct HeadNorm {
  const void* weight[2] = {};  // of query and key, [head_dim] each, dense
  bool float_weights = false;  // weights in float32 beside 16-bit heads
  rms_norm::Variant variant = rms_norm::Variant::kCastBeforeWeight;
  float eps = 0;
};

// A checked call. Pairs of elements (a, b) with the table entries of their places become
//   forward  (a * cos_a - b * sin_a, b * cos_b + a * sin_b)
//   inverse  (a * cos_a + b * sin_b, b * cos_b - a * sin_a), the gradient of the forward
// a and b lie rotary_dim / 2 apart, or side by side when interleaved. Elements from rotary_dim on
// pass through.
struct Problem {
  Dtype dtype = Dtype::kFloat32;
  bool float_tables = false;  // tables in float32 beside 16-bit heads: rounded once, at the end
  bool interleaved = false;
  bool inverse = false;
  int64_t batch = 0;
  int64_t length = 0;
  int64_t head_dim = 0;
  int64_t rotary_dim = 0;
  Heads heads[2];  // query, key
  Table cos, sin;
  bool is_normed = false;  // the ops of norm_rotary.cpp
  HeadNorm norm;
};

// Tokens [begin, end), counted over batch and length, with one instruction set.
using TokensFunction = void (*)(const Problem& problem, int64_t begin, int64_t end);

}  // namespace graft_kernels::rotary

// One entry per instruction set (rotary_simd.cpp, norm_rotary_simd.cpp).
namespace graft_kernels::plain {
void rotary_tokens(const rotary::Problem& problem, int64_t begin, int64_t end);
void norm_rotary_tokens(const rotary::Problem& problem, int64_t begin, int64_t end);
}  // namespace graft_kernels::plain
namespace graft_kernels::avx2 {
void rotary_tokens(const rotary::Problem& problem, int64_t begin, int64_t end);
void norm_rotary_tokens(const rotary::Problem& problem, int64_t begin, int64_t end);
}  // namespace graft_kernels::avx2
namespace graft_kernels::avx512 {
void rotary_tokens(const rotary::Problem& problem, int64_t begin, int64_t end);
void norm_rotary_tokens(const rotary::Problem& problem, int64_t begin, int64_t end);
}  // namespace graft_kernels::avx512
