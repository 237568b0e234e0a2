// gpt-oss' activation: what the host files share, and the CPU spans. See swigluoai.cpp.
#pragma once

#include <cstdint>

#include "kernels/common/dtype.h"
#include "kernels/common/row_layout.h"

namespace graft_kernels::activation {

// A checked call, forward or, with grad_out, backward.
struct SwigluoaiProblem {
  Dtype dtype = Dtype::kFloat32;
  int64_t rows = 0;
  int64_t columns = 0;  // pairs in a row
  float alpha = 0;
  float limit = 0;
  const void* input = nullptr;     // [rows, 2 * columns]: gate, up, gate, up, …
  const void* grad_out = nullptr;  // [rows, columns], absent in the forward
  void* out = nullptr;             // [rows, columns], or the gradient of input [rows, 2 * columns]
  RowLayout input_rows, grad_out_rows, out_rows;
};

using SwigluoaiSpanFunction = void (*)(const SwigluoaiProblem& problem, int64_t begin, int64_t end);

}  // namespace graft_kernels::activation

// Pairs [begin, end), counted row by row; one entry per instruction set (swigluoai_simd.cpp).
namespace graft_kernels::plain {
void swigluoai_span(const activation::SwigluoaiProblem& problem, int64_t begin, int64_t end);
}
namespace graft_kernels::avx2 {
void swigluoai_span(const activation::SwigluoaiProblem& problem, int64_t begin, int64_t end);
}
namespace graft_kernels::avx512 {
void swigluoai_span(const activation::SwigluoaiProblem& problem, int64_t begin, int64_t end);
}
