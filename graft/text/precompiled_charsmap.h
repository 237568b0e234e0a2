// The normalization map that SentencePiece models carry: a double-array trie over UTF-8 whose
// leaves point at replacements.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace graft::text {

class PrecompiledCharsmap {
 public:
  // base64  the field `precompiled_charsmap` of tokenizer.json
  // Throws   FormatError `text.tokenizer.charsmap` when the text is not base64, sizes do not fit,
  // or
  //          a leaf points outside the replacements.
  explicit PrecompiledCharsmap(std::string_view base64);

  // Replaces what the map knows, grapheme by grapheme and else character by character.
  std::string apply(std::string_view text) const;

 private:
  void check_leaves() const;
  std::optional<std::string_view> find(std::string_view part) const;

  std::vector<uint32_t> units_;
  std::string replacements_;  // each ends with a zero byte
};

}  // namespace graft::text
