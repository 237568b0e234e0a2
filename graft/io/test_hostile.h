// How the tests of this room treat a hostile file: the error is typed, names the file and the place,
// and comes before memory is taken for what the file claims.
#pragma once

#include <algorithm>
#include <cstdint>
#include <string>
#include <utility>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "graft/core/error.h"
#include "graft/io/excerpt.h"
#include "graft/io/test_allocations.h"

namespace graft::io::test_support {

struct Refusal {
  std::string code = "accepted";
  std::string text;
  std::string hint;
};

// What `read` ends with. The text must be printable UTF-8 and hold `file` and a place, and the
// allocations must stay below `max_bytes`.
template <typename Read>
Refusal refusal_of(Read&& read, const std::string& file, uint64_t max_bytes) {
  Refusal refusal;
  const uint64_t allocated = bytes_allocated_by([&] {
    try {
      read();
    } catch (const Error& error) {
      refusal = {error.code(), error.what(), error.hint()};
    }
  });
  if (refusal.code != "accepted") {
    EXPECT_THAT(refusal.text, ::testing::HasSubstr(file));
    EXPECT_THAT(refusal.text, ::testing::ContainsRegex("at (offset|byte) [0-9]+: "));
    EXPECT_TRUE(is_utf8(refusal.text));
    EXPECT_LT(refusal.text.size(), 1500);
    EXPECT_LT(allocated, max_bytes) << refusal.text;
  }
  return refusal;
}

// The bound for a file of that size: nothing that its counts, lengths or sizes claim.
inline uint64_t allowance(uint64_t file_bytes) {
  return std::max<uint64_t>(uint64_t{1} << 20, 4 * file_bytes);
}

}  // namespace graft::io::test_support
