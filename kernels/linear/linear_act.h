// What the files of linear_act share: the functions by number, and the epilogue on the CPU.
#pragma once

#include <cstdint>

#include "kernels/common/dtype.h"

namespace graft_kernels::linear {

enum class Activation : int { kNone, kSilu, kGelu, kGeluTanh, kGeluQuick, kRelu };

// values[i] = activation(values[i]) + residual[i], in float32, rounded once; residual may be absent.
struct FinishProblem {
  Dtype dtype = Dtype::kFloat32;
  Activation activation = Activation::kNone;
  void* values = nullptr;          // products with their bias; the results after
  const void* residual = nullptr;  // as many, or absent
};

// Elements [begin, end) with one instruction set.
using FinishFunction = void (*)(const FinishProblem& problem, int64_t begin, int64_t end);

}  // namespace graft_kernels::linear

// One entry per instruction set (linear_act_simd.cpp).
namespace graft_kernels::plain {
void linear_finish(const linear::FinishProblem& problem, int64_t begin, int64_t end);
}  // namespace graft_kernels::plain
namespace graft_kernels::avx2 {
void linear_finish(const linear::FinishProblem& problem, int64_t begin, int64_t end);
}  // namespace graft_kernels::avx2
namespace graft_kernels::avx512 {
void linear_finish(const linear::FinishProblem& problem, int64_t begin, int64_t end);
}  // namespace graft_kernels::avx512
