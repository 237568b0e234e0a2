// Tokens that are found in the text itself, before anything is normalized or cut: control tokens
// such as `<|im_end|>`, and words that were added to a vocabulary.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "graft/text/flat_map.h"
#include "graft/text/normalizer.h"

namespace graft::text {

struct AddedToken {
  int32_t id = 0;
  std::string content;
  bool single_word = false;  // only where no word character touches it
  bool lstrip = false;       // takes the spaces before it
  bool rstrip = false;       // takes the spaces behind it
  bool normalized = true;    // is looked for in the normalized text
  bool special = false;      // a control token, which decode may leave out
};

// A stretch of a text; id is -1 where no added token stands.
struct AddedSplit {
  int32_t id;
  size_t begin;
  size_t end;
};

// Finds the leftmost, and of these the longest, of a set of texts. Linear in the text.
class TokenFinder {
 public:
  void add(std::string_view text, int32_t value);
  // Call once, after the last add().
  void finish();
  bool empty() const { return nodes_.size() <= 1; }

  struct Match {
    size_t begin;
    size_t end;
    int32_t value;
  };
  // The first match that begins at or after `from`; false when there is none.
  bool find(std::string_view text, size_t from, Match* match) const;

 private:
  struct Node {
    int32_t value = -1;
    uint32_t depth = 0;
    uint32_t fail = 0;    // node of the longest proper suffix that begins some text
    uint32_t output = 0;  // the nearest of node, fail, fail of fail … that ends a text
    uint32_t first_child = 0;
    uint32_t next_sibling = 0;
    unsigned char byte = 0;
  };
  uint32_t child(uint32_t node, unsigned char byte) const;

  std::vector<Node> nodes_{1};
  FlatMap<uint32_t> children_;
  bool starts_[256] = {};
};

class AddedTokens {
 public:
  // Adds a token. Call finish() after the last one.
  void add(AddedToken token);
  void finish(const Normalizer* normalizer);

  // Cuts `text` at the tokens that are looked for before (`normalized` false) or after normalizing.
  // Stretches cover what the text keeps; they can be empty only for an empty text.
  void split(std::string_view text, bool normalized, std::vector<AddedSplit>& out) const;
  bool has_any(bool normalized) const { return !finder(normalized).empty(); }

  const AddedToken* find(int32_t id) const;
  const AddedToken* find(std::string_view content) const;
  // The text that decoding uses for an added token.
  std::string_view text_of(int32_t id) const;
  // True for the text of a control token.
  bool is_special(std::string_view text) const;
  const std::vector<AddedToken>& all() const { return tokens_; }

 private:
  const TokenFinder& finder(bool normalized) const {
    return normalized ? normalized_finder_ : plain_finder_;
  }

  std::vector<AddedToken> tokens_;
  std::unordered_map<int32_t, size_t> by_id_;
  std::unordered_map<std::string, size_t> by_content_;
  std::unordered_map<int32_t, std::string> normalized_text_;  // where it differs
  TokenFinder plain_finder_;
  TokenFinder normalized_finder_;
};

}  // namespace graft::text
