// What is done to a text before it is cut into words: Unicode forms, case, accents, replacements.
#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <string_view>

#include "graft/text/json_view.h"

namespace graft::text {

// A stretch of the input between added tokens.
struct NormalText {
  std::string text;
  // Bytes at the start that came from the very first character of the whole input; 0 when that
  // character is not part of this stretch. The pre-tokenizer Metaspace asks for it.
  size_t origin = 0;
};

class Normalizer {
 public:
  virtual ~Normalizer() = default;
  virtual void normalize(NormalText& text) const = 0;
};

// Builds what the field `normalizer` of tokenizer.json describes.
// Throws   FormatError `text.tokenizer.component` for a kind that is not known, and others for
//          fields that are missing or wrong.
std::unique_ptr<Normalizer> make_normalizer(const JsonView& json);

// The normalizers that vocabularies of GGUF files need.
std::unique_ptr<Normalizer> make_replace_normalizer(std::string_view from, std::string_view to);
std::unique_ptr<Normalizer> make_prepend_normalizer(std::string_view prefix);
std::unique_ptr<Normalizer> make_nfc_normalizer();
std::unique_ptr<Normalizer> make_sequence_normalizer(std::unique_ptr<Normalizer> first,
                                                     std::unique_ptr<Normalizer> second);

}  // namespace graft::text
