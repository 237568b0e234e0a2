#include "graft/core/printable.h"

#include <array>
#include <string>
#include <utility>

#include <gtest/gtest.h>

namespace graft {
namespace {

TEST(Printable, LeavesTextAlone) {
  for (const char* text : {"", "plain", "two\nlines", "ünïcödé", "日本語", "😀", "a\u00a0b"}) {
    EXPECT_EQ(printable(text), text);
  }
}

TEST(Printable, SpellsOutWhatSteersATerminalOrDisguisesALine) {
  using Pair = std::pair<std::string, std::string>;
  const std::array<Pair, 20> cases = {
      Pair{"\x1b[31mred", "\\x1b[31mred"},                     // colour
      {"\x1b]0;title\x07", "\\x1b]0;title\\x07"},              // the window's title
      {"\x1b[2J", "\\x1b[2J"},                                 // an empty screen
      {"\x1b]52;c;ZWNobw==\x07", "\\x1b]52;c;ZWNobw==\\x07"},  // the clipboard
      {"\x1bP+q\x1b\\", "\\x1bP+q\\x1b\\"},                    // a question to the terminal
      {"\u009b31m", "\\u009b31m"},                             // the same as ESC [, in UTF-8
      {"\x9b"
       "31m",
       "\\x9b31m"},  // and as one byte
      {"over\rwritten", "over\\x0dwritten"},
      {"back\x08\x08", "back\\x08\\x08"},
      {std::string("cut\0off", 7), "cut\\x00off"},
      {"tab\tbed", "tab\\x09bed"},
      {"\x7f", "\\x7f"},
      {"\x0e\x0f", "\\x0e\\x0f"},                // another character set
      {"\u0085", "\\u0085"},                     // next line
      {"a\u2028b\u2029c", "a\\u2028b\\u2029c"},  // line and paragraph separators
      {"txt.\u202eexe", "txt.\\u202eexe"},       // right to left
      {"\u2066x\u2069", "\\u2066x\\u2069"},
      {"\xff\xfe", "\\xff\\xfe"},
      {"\xc0\xaf", "\\xc0\\xaf"},  // too long for what it says
      {"half \xe6\x97", "half \\xe6\\x97"},
  };
  for (const auto& [text, expected] : cases) {
    EXPECT_EQ(printable(text), expected);
    EXPECT_EQ(printable(printable(text)), expected);
  }
}

TEST(Printable, OfOneLineIsOneLine) {
  EXPECT_EQ(printable_line("mit\nsignature  verified\x1b[31m"),
            "mit\\nsignature  verified\\x1b[31m");
  EXPECT_EQ(printable_line("plain ü"), "plain ü");
}

}  // namespace
}  // namespace graft
