// Cuts normalized text into the words that a model works on.
#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "graft/text/json_view.h"
#include "graft/text/split_pattern.h"

namespace graft::text {

// A text and the pieces that it is cut into, in order. Pieces are never empty.
struct PreTokenized {
  std::string_view text;  // what the pieces point into
  std::string storage;    // holds the text once a pre-tokenizer rewrote it
  std::vector<Piece> pieces;
  std::vector<Piece> spare;  // scratch
  size_t origin = 0;         // as in NormalText

  std::string_view view(const Piece& piece) const {
    return text.substr(piece.begin, piece.end - piece.begin);
  }
};

class PreTokenizer {
 public:
  virtual ~PreTokenizer() = default;
  virtual void apply(PreTokenized& words) const = 0;

  // True when the last step writes each byte as a character of the byte-level alphabet.
  virtual bool writes_bytes() const { return false; }
  // Asks that step to leave the bytes as they are: the words are then raw bytes.
  virtual void keep_bytes() {}
};

// Builds what the field `pre_tokenizer` of tokenizer.json describes.
// Throws   FormatError `text.tokenizer.component` for a kind that is not known, and others for
//          fields that are missing or wrong.
std::unique_ptr<PreTokenizer> make_pre_tokenizer(const JsonView& json);

// The pre-tokenizers that vocabularies of GGUF files need.
std::unique_ptr<PreTokenizer> make_split_pre_tokenizer(SplitPattern pattern);
std::unique_ptr<PreTokenizer> make_byte_level_pre_tokenizer(bool add_prefix_space, bool use_regex);
std::unique_ptr<PreTokenizer> make_digits_pre_tokenizer();
std::unique_ptr<PreTokenizer> make_pre_tokenizer_sequence(
    std::vector<std::unique_ptr<PreTokenizer>> parts);

}  // namespace graft::text
