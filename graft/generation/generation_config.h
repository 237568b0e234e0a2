// What generate() is asked to do, with transformers' names, defaults and meanings.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include <nlohmann/json_fwd.hpp>

namespace graft::generation {

enum class EarlyStopping {
  kFalse,  // beams end when no running one is likely to beat the worst finished one
  kTrue,   // as soon as num_beams candidates have finished
  kNever,  // only when no running one can beat the worst finished one
};

struct GenerationConfig {
  // Lengths, in tokens. max_new_tokens wins over max_length (prompt included, padded to the longest
  // of the batch); with neither, 20 new tokens.
  std::optional<int64_t> max_new_tokens;
  std::optional<int64_t> max_length;
  int64_t min_new_tokens = 0;
  int64_t min_length = 0;  // prompt included
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

  // Beams. With do_sample the candidates are drawn instead of taken from the top.
  int64_t num_beams = 1;
  double length_penalty = 1.0;
  EarlyStopping early_stopping = EarlyStopping::kFalse;
  int64_t num_return_sequences = 1;

  // Ends.
  std::vector<int64_t> eos_token_ids;  // empty: the model's
  bool ignore_eos = false;
  std::vector<std::string> stop_strings;  // need a tokenizer in the hooks
  std::optional<int64_t> pad_token_id;
  std::optional<int64_t> bos_token_id;  // absent: the model's

  bool use_cache = true;
  bool use_static_cache = false;  // cache_implementation `static`
  // With a static cache on CUDA a decode step is captured into one graph, unless this is set.
  bool disable_compile = false;
  bool output_scores = false;     // keep every step's scores in GenerateOutput::scores

  // Reads generation_config.json of a folder, or, where there is none, the token ids that
  // config.json holds. Fields that are absent keep their defaults; fields that transformers does
  // not know either are ignored.
  //
  // Throws   FormatError `generation.config.<field>` for a field of the wrong type or out of range;
  //          IncompatibleError `generation.config.unsupported` for one that changes transformers'
  //          output and that graft lacks; what io::read_json_file throws.
  static GenerationConfig from_folder(const std::filesystem::path& folder);

  // Sets one option by transformers' name (max_new_tokens, eos_token_id, cache_implementation, …)
  // or graft's own (seed, ignore_eos); null resets it to its default.
  //
  // Throws   InvalidArgument `generation.config.unknown-option` with the nearest name, or
  //          `generation.config.<field>` for a value of the wrong type.
  void set(std::string_view name, const nlohmann::json& value);

  // Throws   InvalidArgument `generation.config.<field>` naming the field, its range and its value.
  void validate() const;
};

}  // namespace graft::generation
