// The tokens of a model: text of an id, id of a text.
#pragma once

#include <cstdint>
#include <memory>
#include <string_view>
#include <utility>
#include <vector>

#include "graft/text/flat_map.h"

namespace graft::text {

class Vocabulary {
 public:
  Vocabulary() = default;
  // Copies the tokens.
  //
  // tokens  text and id of each; ids may leave holes, at most four times the number of tokens
  // Throws   FormatError `text.tokenizer.ids` for an id that is negative, doubled or far beyond the
  //          number of tokens, `.duplicate-token` for a token given twice.
  explicit Vocabulary(const std::vector<std::pair<std::string_view, int64_t>>& tokens);

  // The id of a token, or -1.
  int32_t find(std::string_view token) const { return index_.find(token); }

  // True when an id has a token.
  bool has(int32_t id) const {
    return id >= 0 && static_cast<size_t>(id) < tokens_.size() && tokens_[id].data() != nullptr;
  }
  // The token of an id; empty for a hole.
  std::string_view token(int32_t id) const { return has(id) ? tokens_[id] : std::string_view(); }

  size_t count() const { return index_.size(); }    // tokens
  size_t end_id() const { return tokens_.size(); }  // one past the greatest id
  size_t longest() const { return longest_; }       // bytes

 private:
  std::unique_ptr<char[]> bytes_;
  std::vector<std::string_view> tokens_;
  TextIndex index_;
  size_t longest_ = 0;
};

}  // namespace graft::text
