// What the host files of this package share: the checked call and the rows of weights on the CPU.
#pragma once

#include <cstdint>

#include "kernels/common/dtype.h"

namespace graft_kernels::linear {

// Rows of x up to which each weight is read once and used for all of them. Above, the work is a
// matrix product, which ATen's library does.
inline constexpr int64_t kMaxVectorRows = 16;

// y[n][m] = sum over k of x[n][k] * weight[m][k], plus bias[m], for few rows of x.
// x is float32 already: N rows of K, one after the other. Sums are kept in float32 and rounded
// once.
struct Problem {
  Dtype dtype = Dtype::kFloat32;  // of weight, bias and out
  int64_t rows = 0;               // N, at most kMaxVectorRows
  int64_t depth = 0;              // K
  const float* x = nullptr;       // [N, K]
  const void* weight = nullptr;   // [M, K]
  const void* bias = nullptr;     // [M] or absent
  void* out = nullptr;            // [N, M]
  int64_t out_stride = 0;         // elements from one row of out to the next
};

// Computes columns [begin, end) of every row of out with one instruction set.
using ColumnsFunction = void (*)(const Problem& problem, int64_t begin, int64_t end);

// Widens `count` elements of x to float32.
using WidenFunction = void (*)(Dtype dtype, const void* from, float* to, int64_t count);

}  // namespace graft_kernels::linear

// One entry per instruction set (linear_simd.cpp).
namespace graft_kernels::plain {
void linear_columns(const linear::Problem& problem, int64_t begin, int64_t end);
void linear_widen(Dtype dtype, const void* from, float* to, int64_t count);
}  // namespace graft_kernels::plain
namespace graft_kernels::avx2 {
void linear_columns(const linear::Problem& problem, int64_t begin, int64_t end);
void linear_widen(Dtype dtype, const void* from, float* to, int64_t count);
}  // namespace graft_kernels::avx2
namespace graft_kernels::avx512 {
void linear_columns(const linear::Problem& problem, int64_t begin, int64_t end);
void linear_widen(Dtype dtype, const void* from, float* to, int64_t count);
}  // namespace graft_kernels::avx512
