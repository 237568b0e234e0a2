// The tokenizer of a model, found as AutoModelForCausalLM finds the model.
#pragma once

#include <string>

#include "graft/text/tokenizer.h"

namespace graft::models {

class AutoTokenizer {
 public:
  // name_or_path  a folder, a .gguf file, a tokenizer.json, or a Hub id that lies in the local
  // cache
  // Throws   NotFound when there is none; FormatError for a broken one. No network.
  static text::Tokenizer from_pretrained(const std::string& name_or_path,
                                         const std::string& revision = {});
};

}  // namespace graft::models
