// From the command line's words to a model in memory.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "graft/layers/kernel_config.h"
#include "graft/layers/mode.h"
#include "graft/models/auto_model.h"
#include "graft/models/model_files.h"

#include "cli/options.h"

namespace graft::cli {

// Loads the model that the options name, with kernels when they are on. A bar on stderr shows how
// far it is, where stderr is a terminal.
// Throws InvalidArgument for a device, dtype or kernel config that does not parse, and what
// from_pretrained throws.
std::shared_ptr<models::CausalLM> load_model(const ModelOptions& options,
                                             const CommonOptions& common);

// What load_model() asks of from_pretrained(), without progress.
models::LoadOptions load_options(const ModelOptions& options);

// Whether matrices stay packed when the model of these files is loaded with kernels for that mode. Throws as
// stays_packed().
bool loads_packed(const models::LoadOptions& load, const models::ModelLocation& location,
                  layers::Mode mode);

// The options with what they leave open settled: the model as the path of its files, so that they are looked for once,
// and weights `packed` or `unpacked` as for that mode with kernels. For commands that swap kernels in themselves.
// Throws as from_pretrained() where the model is not here.
ModelOptions settled(const ModelOptions& options, layers::Mode mode);

// The kernel config of the options, from JSON text or a file; nothing when none was given.
std::optional<layers::KernelConfig> kernel_config(const ModelOptions& options);

// `1,2,3` or `1, 2, 3` -> {1, 2, 3}; empty text -> {}. Throws InvalidArgument naming what is no
// number.
std::vector<int64_t> parse_ids(const std::string& text);

}  // namespace graft::cli
