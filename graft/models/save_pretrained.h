// Writes a model as transformers reads it.
#pragma once

#include <filesystem>
#include <vector>

#include "graft/models/causal_lm.h"

namespace graft::models {

// The model's weights, each once: an output layer tied to the embedding is the same tensor and would
// be stepped twice by an optimizer.
std::vector<at::Tensor> unique_parameters(CausalLM& model);

// Writes config.json (with the model's present dtype) and model.safetensors into `folder`, and copies
// tokenizer and generation_config.json from the model's own folder where they are files there. A
// model from a .gguf file has no such files: its tokenizer stays in that file.
//
// The weights may lie on any device, requires_grad or not. Packed ones are written unpacked, in the
// model's dtype.
// Throws   Error `models.save.folder`, `models.save.config` or `io.safetensors.write` with the
//          system's reason
// Blocking: writes and syncs files. Memory: on a GPU and of packed weights, a copy.
void save_pretrained(CausalLM& model, const std::filesystem::path& folder);

}  // namespace graft::models
