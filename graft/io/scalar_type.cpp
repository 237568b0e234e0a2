#include "graft/io/scalar_type.h"

#include <array>

namespace graft::io {

namespace {

struct Row {
  std::string_view name;
  size_t size_bytes;
};

// In the order of the enumeration.
constexpr std::array<Row, 17> kRows = {{{"BOOL", 1},
                                        {"U8", 1},
                                        {"I8", 1},
                                        {"F8_E5M2", 1},
                                        {"F8_E4M3", 1},
                                        {"F8_E8M0", 1},
                                        {"I16", 2},
                                        {"U16", 2},
                                        {"F16", 2},
                                        {"BF16", 2},
                                        {"I32", 4},
                                        {"U32", 4},
                                        {"F32", 4},
                                        {"F64", 8},
                                        {"I64", 8},
                                        {"U64", 8},
                                        {"C64", 8}}};

}  // namespace

size_t size_bytes(ScalarType type) { return kRows[static_cast<size_t>(type)].size_bytes; }

std::string_view name(ScalarType type) { return kRows[static_cast<size_t>(type)].name; }

std::optional<ScalarType> parse_scalar_type(std::string_view name) {
  for (size_t i = 0; i < kRows.size(); ++i) {
    if (kRows[i].name == name) {
      return static_cast<ScalarType>(i);
    }
  }
  return std::nullopt;
}

}  // namespace graft::io
