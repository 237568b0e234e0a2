// Layers in float64, which guards hold kernels against. Internal to the room.
#pragma once

#include <ATen/ATen.h>

#include "graft/layers/contract.h"

namespace graft::layers {

at::Tensor exact_rms_norm(RmsNormVariant variant, const at::Tensor& x, const at::Tensor& weight,
                          double eps);

// x [B, S, H, D]
at::Tensor exact_rotation(const at::Tensor& x, const RotaryTables& tables);

// Tables of angles that differ everywhere, so that a wrong pairing of elements or sign shows.
RotaryTables make_tables(int64_t batch, int64_t length, int64_t rotary_dim, at::ScalarType dtype,
                         at::Device device);

// The row of each of `positions` [B] int32, as tables [B, 1, R] on the CPU.
RotaryTables rows_of(const RotaryTables& tables, const at::Tensor& positions);

}  // namespace graft::layers
