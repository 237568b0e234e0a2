// The check of a kernel before it is used: candidate and reference run on small seeded inputs in
// the model's dtype and on its device, and both are held against float64.
#pragma once

#include <string>

#include <ATen/ATen.h>

#include "graft/layers/contract.h"

namespace graft::layers {

// Why the candidate may not be used, or an empty text. Refused: an error above twice the
// reference's own (plus half a unit in the last place of the largest value), another shape or
// dtype, NaN or infinity where neither the reference nor float64 has it or none where both have it, an
// exception. Shapes include one row, odd sizes, strided rows, zero rows. The gradients of a kernel that has a backward are held
// against the reference's in the same way. Takes about a millisecond on the CPU; deterministic.
std::string guard(const RmsNorm::Spec& spec, const RmsNorm::Kernel& candidate,
                  const RmsNorm::Kernel& reference, at::ScalarType dtype, at::Device device);
std::string guard(const Activation::Spec& spec, const Activation::Kernel& candidate,
                  const Activation::Kernel& reference, at::ScalarType dtype, at::Device device);
std::string guard(const GatedActivation::Spec& spec, const GatedActivation::Kernel& candidate,
                  const GatedActivation::Kernel& reference, at::ScalarType dtype,
                  at::Device device);
std::string guard(const Linear::Spec& spec, const Linear::Kernel& candidate,
                  const Linear::Kernel& reference, at::ScalarType dtype, at::Device device);
std::string guard(const PackedLinear::Spec& spec, const PackedLinear::Kernel& candidate,
                  const PackedLinear::Kernel& reference, at::ScalarType dtype, at::Device device);
std::string guard(const Rotary::Spec& spec, const Rotary::Kernel& candidate,
                  const Rotary::Kernel& reference, at::ScalarType dtype, at::Device device);
std::string guard(const QkNormRotary::Spec& spec, const QkNormRotary::Kernel& candidate,
                  const QkNormRotary::Kernel& reference, at::ScalarType dtype, at::Device device);
std::string guard(const Attention::Spec& spec, const Attention::Kernel& candidate,
                  const Attention::Kernel& reference, at::ScalarType dtype, at::Device device);
std::string guard(const CausalLoss::Spec& spec, const CausalLoss::Kernel& candidate,
                  const CausalLoss::Kernel& reference, at::ScalarType dtype, at::Device device);
std::string guard(const Mlp::Spec& spec, const Mlp::Kernel& candidate, const Mlp::Kernel& reference,
                  at::ScalarType dtype, at::Device device);

}  // namespace graft::layers
