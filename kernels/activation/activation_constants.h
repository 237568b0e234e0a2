// The functions' constants (see common/activation_constants.h).
#pragma once

#include "kernels/activation/activation.h"
#include "kernels/common/activation_constants.h"

namespace graft_kernels::activation {

inline constexpr float kInverseSqrtTwoPi = 0.39894228040143267794;
inline constexpr float kFastScale = 0.7978845608;

// Functions that exist as the gate of a product.
template <Function kFunction>
inline constexpr bool kHasProduct = kFunction == Function::kSilu || kFunction == Function::kGelu ||
                                    kFunction == Function::kGeluTanh;

}  // namespace graft_kernels::activation
