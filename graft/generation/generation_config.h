// What generate() is asked to do, with transformers' names, defaults and meanings.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

namespace graft::generation {

enum class EarlyStopping {
  kFalse,  // beams end when no running one is likely to beat the worst finished one
  kTrue,   // as soon as num_beams candidates have finished
  kNever,  // only when no running one can beat the worst finished one
};

struct GenerationConfig {
  // Lengths, in tokens. max_new_tokens wins over max_length (prompt included).
  std::optional<int64_t> max_new_tokens;
  int64_t max_length = 20;
  int64_t min_new_tokens = 0;
  std::optional<double> max_time_seconds;

  // Sampling; greedy without do_sample.
  bool do_sample = false;
  double temperature = 1.0;     // > 0
  int64_t top_k = 50;           // 0: off
  double top_p = 1.0;           // (0, 1]
  std::optional<double> min_p;  // [0, 1]
  double typical_p = 1.0;       // (0, 1]
  uint64_t seed = 0;

  // Penalties and bans.
  double repetition_penalty = 1.0;   // > 0; above 1 makes seen tokens less likely
  int64_t no_repeat_ngram_size = 0;  // 0: off

  // Beams.
  int64_t num_beams = 1;
  double length_penalty = 1.0;
  EarlyStopping early_stopping = EarlyStopping::kFalse;
  int64_t num_return_sequences = 1;

  // Ends.
  std::vector<int64_t> eos_token_ids;  // empty: the model's
  bool ignore_eos = false;
  std::vector<std::string> stop_strings;  // need a tokenizer in the hooks
  std::optional<int64_t> pad_token_id;

  bool use_static_cache = false;

  // Reads generation_config.json of a folder; fields that are absent keep their defaults, fields
  // that graft does not know are ignored. A folder without the file gives the defaults. Throws
  // FormatError for a field of the wrong type, InvalidArgument for one out of range.
  static GenerationConfig from_folder(const std::filesystem::path& folder);

  // Throws   InvalidArgument `generation.config.<field>` naming the field, its range and its value.
  void validate() const;
};

}  // namespace graft::generation
