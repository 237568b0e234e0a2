// From the command line's words to a model in memory.
#pragma once

#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "graft/layers/kernel_config.h"
#include "graft/models/auto_model.h"

#include "cli/options.h"

namespace graft::cli {

// Loads the model that the options name, with kernels when they are on.
// Throws InvalidArgument for a device, dtype or kernel config that does not parse, and what
// from_pretrained throws.
std::shared_ptr<models::CausalLM> load_model(const ModelOptions& options);

// The kernel config of the options, from JSON text or a file; nothing when none was given.
std::optional<layers::KernelConfig> kernel_config(const ModelOptions& options);

// The folder, or the .gguf file, that the options name: where the tokenizer is. Throws NotFound.
std::filesystem::path model_folder(const ModelOptions& options);

// `1,2,3` -> {1, 2, 3}. Throws InvalidArgument naming what is no number.
std::vector<int64_t> parse_ids(const std::string& text);

}  // namespace graft::cli
