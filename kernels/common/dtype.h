// Dtypes that every package computes in. Knows no Torch: device code and *_simd.cpp take it.
#pragma once

#include <cstdint>

namespace graft_kernels {

enum class Dtype : int { kFloat32 = 0, kBfloat16 = 1, kFloat16 = 2 };

constexpr int64_t bytes_of(Dtype dtype) { return dtype == Dtype::kFloat32 ? 4 : 2; }

}  // namespace graft_kernels
