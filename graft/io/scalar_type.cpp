#include "graft/io/scalar_type.h"

#include <iterator>

namespace graft::io {

namespace {

struct Row {
  std::string_view name;
  size_t size_bits;
};

// In the order of the enumeration.
constexpr Row kRows[] = {
    {"BOOL", 8},        {"F4", 4},      {"F6_E2M3", 6}, {"F6_E3M2", 6}, {"U8", 8},
    {"I8", 8},          {"F8_E5M2", 8}, {"F8_E4M3", 8}, {"F8_E8M0", 8}, {"F8_E4M3FNUZ", 8},
    {"F8_E5M2FNUZ", 8}, {"I16", 16},    {"U16", 16},    {"F16", 16},    {"BF16", 16},
    {"I32", 32},        {"U32", 32},    {"F32", 32},    {"C64", 64},    {"F64", 64},
    {"I64", 64},        {"U64", 64},
};
static_assert(std::size(kRows) == static_cast<size_t>(ScalarType::kU64) + 1);

}  // namespace

size_t size_bits(ScalarType type) { return kRows[static_cast<size_t>(type)].size_bits; }

std::string_view name(ScalarType type) { return kRows[static_cast<size_t>(type)].name; }

std::optional<ScalarType> parse_scalar_type(std::string_view name) {
  for (size_t i = 0; i < std::size(kRows); ++i) {
    if (kRows[i].name == name) {
      return static_cast<ScalarType>(i);
    }
  }
  return std::nullopt;
}

}  // namespace graft::io
