// A GGUF file has no config.json: its metadata is the config, under llama.cpp's names.
#pragma once

#include <vector>

#include <nlohmann/json.hpp>

#include "graft/models/config_reader.h"
#include "graft/models/gguf_names.h"

namespace graft::models {

// What the tensors, rather than the metadata, say about the model.
struct GgufTensorFacts {
  bool has_output = false;         // an output matrix of its own, not tied to the embedding
  int64_t vocab_size = 0;          // rows of the embedding
  std::vector<double> rope_freqs;  // divisors of the rotary frequencies, where stored
  std::vector<double> rope_factors_short;
  std::vector<double> rope_factors_long;
};

// Rebuilds the config.json that transformers would have for this file.
// Throws   FormatError naming the metadata key that is missing or out of range.
nlohmann::json gguf_config(const GgufArchitecture& architecture, const ConfigReader& metadata,
                           const GgufTensorFacts& facts);

}  // namespace graft::models
