// From the command line's words to a model in memory.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "graft/models/auto_model.h"
#include "graft/text/tokenizer.h"

#include "cli/options.h"

namespace graft::cli {

// Loads the model that the options name, with kernels when they are on.
// Throws InvalidArgument for a device, dtype or kernel config that does not parse, and what
// from_pretrained throws.
std::shared_ptr<models::CausalLM> load_model(const ModelOptions& options,
                                             const CommonOptions& common);

// The tokenizer that belongs to the model: tokenizer.json of the folder, or the vocabulary of the
// .gguf file.
text::Tokenizer load_tokenizer(const ModelOptions& options);

// `1,2,3` -> {1, 2, 3}. Throws InvalidArgument naming what is no number.
std::vector<int64_t> parse_ids(const std::string& text);

}  // namespace graft::cli
