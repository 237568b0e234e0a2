// Table of graft/text/regex_tables.cpp, which tools/tokenizer_regex_tables.py writes.
#pragma once

#include <cstddef>

namespace graft::text::detail {

// Code points that are younger than Unicode 14 and have the property: a category (`Lo`), a binary
// property (`Alphabetic`) or a script (`Han`).
struct YoungRange {
  const char* property;
  char32_t first;
  char32_t last;
};

extern const YoungRange kYoungRanges[];
extern const size_t kYoungRangesSize;

}  // namespace graft::text::detail
