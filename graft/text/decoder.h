// Turns tokens back into text.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "graft/text/json_view.h"

namespace graft::text {

class Decoder {
 public:
  virtual ~Decoder() = default;
  // Rewrites the tokens; their concatenation is the text.
  virtual void decode(std::vector<std::string>& tokens) const = 0;
  // True for the decoder that turns byte-level characters into bytes and does nothing else.
  virtual bool is_byte_level() const { return false; }
};

// Builds what the field `decoder` of tokenizer.json describes.
// Throws   FormatError `text.tokenizer.component` for a kind that is not known.
std::unique_ptr<Decoder> make_decoder(const JsonView& json);

std::unique_ptr<Decoder> make_byte_level_decoder();

// The decoder of SentencePiece vocabularies with bytes: `▁` to space, `<0x0A>` to bytes, and the
// space that encoding put in front away again.
std::unique_ptr<Decoder> make_sentencepiece_decoder(bool strip_first_space);

}  // namespace graft::text
