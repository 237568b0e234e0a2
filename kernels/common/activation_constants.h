// Constants of the activations that several packages have, as eager evaluation sees them: double in
// the model's code, float in the product.
#pragma once

namespace graft_kernels {

inline constexpr float kSqrtHalf = 0.70710678118654752440;
inline constexpr float kSqrtTwoOverPi = 0.79788456080286535588;
inline constexpr float kCubic = 0.044715;
inline constexpr float kQuickScale = 1.702;

}  // namespace graft_kernels
