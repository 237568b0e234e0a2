// The tokenizer that belongs to a model on disk, whatever form the model has.
#pragma once

#include <filesystem>

#include "graft/text/tokenizer.h"

namespace graft::text {

// Opens the tokenizer of a model folder (tokenizer.json and what stands beside it), of a .gguf
// file, or a tokenizer.json itself.
// Throws   NotFound, and what Tokenizer's own functions throw.
Tokenizer load_pretrained(const std::filesystem::path& model);

}  // namespace graft::text
