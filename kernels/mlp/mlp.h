// What the host files of this package share: the checked call on few rows and its two halves on the
// CPU.
#pragma once

#include <cstdint>

#include "kernels/common/dtype.h"

namespace graft_kernels::mlp {

enum class Function : int { kSilu, kGelu, kGeluTanh };

// Rows of x up to which each weight is read once and used for all of them.
inline constexpr int64_t kMaxVectorRows = 16;

// Dot products of few float32 rows of x with the rows of one weight, or of gate and up.
struct Problem {
  Dtype dtype = Dtype::kFloat32;  // of weights, biases and out
  Function function = Function::kSilu;
  int64_t rows = 0;
  int64_t depth = 0;                // columns of x
  int64_t columns = 0;              // rows of the weights
  const float* x = nullptr;         // [rows, depth]
  const void* weight = nullptr;     // [columns, depth]: gate's, or down's
  const void* up_weight = nullptr;  // [columns, depth], for gate and up
  const void* bias = nullptr;       // [columns] or absent
  const void* up_bias = nullptr;    // [columns] or absent
  float* gate = nullptr;  // [rows, columns] of gate and up: holds function(gate) * up after
  float* up = nullptr;    // [rows, columns], scratch
  void* out = nullptr;    // [rows, columns] of down
};

// Computes columns [begin, end) of every row with one instruction set.
using ColumnsFunction = void (*)(const Problem& problem, int64_t begin, int64_t end);
// gate[i] = function(gate[i]) * up[i], each step rounded to `dtype`, for `count` values of it.
using ActivateFunction = void (*)(Dtype dtype, Function function, void* gate, const void* up,
                                  int64_t count);
// From the gradient `grad` of h = function(gate) * up: gate and up become their gradients, grad becomes h, each step of
// h rounded to `dtype`.
using ActivateBackwardFunction = void (*)(Dtype dtype, Function function, float* gate, float* up,
                                          float* grad, int64_t count);
// Widens `count` elements to float32.
using WidenFunction = void (*)(Dtype dtype, const void* from, float* to, int64_t count);

}  // namespace graft_kernels::mlp

// One entry per instruction set (mlp_simd.cpp).
#define GRAFT_MLP_ENTRIES(isa)                                                            \
  namespace graft_kernels::isa {                                                          \
  void mlp_gate_up(const mlp::Problem& problem, int64_t begin, int64_t end);              \
  void mlp_down(const mlp::Problem& problem, int64_t begin, int64_t end);                 \
  void mlp_activate(Dtype dtype, mlp::Function function, void* gate, const void* up,      \
                    int64_t count);                                                       \
  void mlp_activate_backward(Dtype dtype, mlp::Function function, float* gate, float* up, \
                             float* grad, int64_t count);                                 \
  void mlp_widen(Dtype dtype, const void* from, float* to, int64_t count);                \
  }
GRAFT_MLP_ENTRIES(plain)
GRAFT_MLP_ENTRIES(avx2)
GRAFT_MLP_ENTRIES(avx512)
#undef GRAFT_MLP_ENTRIES
