// Tables of graft/text/unicode_tables.cpp, which tools/tokenizer_unicode_tables.py writes.
#pragma once

#include <cstddef>
#include <cstdint>

namespace graft::text::detail {

// From `start` up to the next run's start, every code point has `value`.
struct Run {
  char32_t start;
  uint32_t value;
};

struct Composition {
  char32_t first;
  char32_t second;
  char32_t composed;
};

extern const Run kFlagRuns[];
extern const size_t kFlagRunsSize;
extern const Run kCombiningRuns[];
extern const size_t kCombiningRunsSize;
extern const Run kScriptRuns[];
extern const size_t kScriptRunsSize;
extern const Composition kCompositions[];
extern const size_t kCompositionsSize;
// Code points that the reference does not decompose, though utf8proc does.
extern const char32_t kNoCanonical[];
extern const size_t kNoCanonicalSize;
extern const char32_t kNoCompatibility[];
extern const size_t kNoCompatibilitySize;
// {code point, lower case} where utf8proc differs.
extern const Run kLowerExceptions[];
extern const size_t kLowerExceptionsSize;

}  // namespace graft::text::detail
