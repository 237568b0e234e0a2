// The functions' constants as eager evaluation sees them: double in the model's code, float in the
// product.
#pragma once

#include "kernels/activation/activation.h"

namespace graft_kernels::activation {

inline constexpr float kSqrtHalf = 0.70710678118654752440;
inline constexpr float kSqrtTwoOverPi = 0.79788456080286535588;
inline constexpr float kInverseSqrtTwoPi = 0.39894228040143267794;
inline constexpr float kFastScale = 0.7978845608;
inline constexpr float kCubic = 0.044715;
inline constexpr float kQuickScale = 1.702;

// Functions that exist as the gate of a product.
template <Function kFunction>
inline constexpr bool kHasProduct = kFunction == Function::kSilu || kFunction == Function::kGelu ||
                                    kFunction == Function::kGeluTanh;

}  // namespace graft_kernels::activation
