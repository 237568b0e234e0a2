// Element types of weight files, by the names that safetensors uses.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string_view>

namespace graft::io {

// In the reference writer's order: files are laid out from the last type to the first.
enum class ScalarType : uint8_t {
  kBool,
  kF4,
  kF6E2M3,
  kF6E3M2,
  kU8,
  kI8,
  kF8E5M2,
  kF8E4M3,
  kF8E8M0,
  kF8E4M3Fnuz,
  kF8E5M2Fnuz,
  kI16,
  kU16,
  kF16,
  kBF16,
  kI32,
  kU32,
  kF32,
  kC64,
  kF64,
  kI64,
  kU64,
};

// Bits of one element: elements below a byte are packed without gaps.
size_t size_bits(ScalarType type);

// `F32`, `BF16`, …
std::string_view name(ScalarType type);

// Nothing for an unknown name; upper and lower case differ.
std::optional<ScalarType> parse_scalar_type(std::string_view name);

}  // namespace graft::io
