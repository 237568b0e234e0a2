// Element types of weight files, by the names that safetensors uses.
#pragma once

#include <cstdint>
#include <optional>
#include <string_view>

namespace graft::io {

enum class ScalarType : uint8_t {
  kBool,
  kU8,
  kI8,
  kF8E5M2,
  kF8E4M3,
  kF8E8M0,
  kI16,
  kU16,
  kF16,
  kBF16,
  kI32,
  kU32,
  kF32,
  kF64,
  kI64,
  kU64,
  kC64,
};

// Bytes of one element.
size_t size_bytes(ScalarType type);

// `F32`, `BF16`, …
std::string_view name(ScalarType type);

// Nothing for an unknown name; upper and lower case differ.
std::optional<ScalarType> parse_scalar_type(std::string_view name);

}  // namespace graft::io
