#include "graft/generation/generation_config.h"

#include <fmt/format.h>

#include "graft/core/error.h"
#include "graft/io/json.h"

namespace graft::generation {

namespace {

using nlohmann::json;

template <typename T>
void require(bool right, const char* field, const char* expected, const T& got) {
  if (!right) {
    throw InvalidArgument("generation.config", field,
                          fmt::format("{}: expected {}, got {}", field, expected, got));
  }
}

// Reads a field into `out` when it is there and not null.
template <typename T>
void read(const json& object, const std::string& file, const char* key, T& out) {
  const auto found = object.find(key);
  if (found == object.end() || found->is_null()) {
    return;
  }
  const bool right = std::is_same_v<T, bool> ? found->is_boolean()
                     : std::is_integral_v<T> ? found->is_number_integer()
                                             : found->is_number();
  if (!right) {
    throw FormatError(
        "generation.config", "type",
        fmt::format("`{}`: `{}`: expected a {}, got {}", file, key,
                    std::is_same_v<T, bool> ? "boolean" : "number", found->dump().substr(0, 80)));
  }
  out = found->get<T>();
}

template <typename T>
void read_optional(const json& object, const std::string& file, const char* key,
                   std::optional<T>& out) {
  T value{};
  if (object.contains(key) && !object[key].is_null()) {
    read(object, file, key, value);
    out = value;
  }
}

void read_eos(const json& object, const std::string& file, std::vector<int64_t>& out) {
  const auto found = object.find("eos_token_id");
  if (found == object.end() || found->is_null()) {
    return;
  }
  const json list = found->is_array() ? *found : json::array({*found});
  for (const auto& item : list) {
    if (!item.is_number_integer()) {
      throw FormatError("generation.config", "type",
                        fmt::format("`{}`: `eos_token_id`: expected token ids", file));
    }
    out.push_back(item.get<int64_t>());
  }
}

void read_early_stopping(const json& object, const std::string& file, EarlyStopping& out) {
  const auto found = object.find("early_stopping");
  if (found == object.end() || found->is_null()) {
    return;
  }
  if (found->is_boolean()) {
    out = found->get<bool>() ? EarlyStopping::kTrue : EarlyStopping::kFalse;
  } else if (*found == "never") {
    out = EarlyStopping::kNever;
  } else {
    throw FormatError("generation.config", "type",
                      fmt::format("`{}`: `early_stopping`: expected a boolean or \"never\"", file));
  }
}

}  // namespace

GenerationConfig GenerationConfig::from_folder(const std::filesystem::path& folder) {
  GenerationConfig config;
  const auto path = folder / "generation_config.json";
  if (!std::filesystem::exists(path)) {
    return config;
  }
  const json object =
      io::read_json_file(path, "generation.config", {.max_bytes = 1 << 20, .max_depth = 16});
  const std::string file = path.string();
  if (!object.is_object()) {
    throw FormatError("generation.config", "type", fmt::format("`{}`: expected an object", file));
  }
  read_optional(object, file, "max_new_tokens", config.max_new_tokens);
  read(object, file, "max_length", config.max_length);
  read(object, file, "min_new_tokens", config.min_new_tokens);
  read_optional(object, file, "max_time", config.max_time_seconds);
  read(object, file, "do_sample", config.do_sample);
  read(object, file, "temperature", config.temperature);
  read(object, file, "top_k", config.top_k);
  read(object, file, "top_p", config.top_p);
  read_optional(object, file, "min_p", config.min_p);
  read(object, file, "typical_p", config.typical_p);
  read(object, file, "repetition_penalty", config.repetition_penalty);
  read(object, file, "no_repeat_ngram_size", config.no_repeat_ngram_size);
  read(object, file, "num_beams", config.num_beams);
  read(object, file, "length_penalty", config.length_penalty);
  read(object, file, "num_return_sequences", config.num_return_sequences);
  read_optional(object, file, "pad_token_id", config.pad_token_id);
  read_eos(object, file, config.eos_token_ids);
  read_early_stopping(object, file, config.early_stopping);
  config.validate();
  return config;
}

void GenerationConfig::validate() const {
  require(!max_new_tokens || *max_new_tokens > 0, "max_new_tokens", "a number above 0",
          max_new_tokens.value_or(0));
  require(max_length > 0, "max_length", "a number above 0", max_length);
  require(min_new_tokens >= 0 && (!max_new_tokens || min_new_tokens <= *max_new_tokens),
          "min_new_tokens", "a number from 0 to max_new_tokens", min_new_tokens);
  require(!max_time_seconds || *max_time_seconds > 0, "max_time", "seconds above 0",
          max_time_seconds.value_or(0));
  require(temperature > 0 && temperature < 1e9, "temperature",
          "a number above 0 (for greedy use do_sample = false)", temperature);
  require(top_k >= 0, "top_k", "a number from 0 (off)", top_k);
  require(top_p > 0 && top_p <= 1, "top_p", "a number in (0, 1]", top_p);
  require(!min_p || (*min_p >= 0 && *min_p <= 1), "min_p", "a number in [0, 1]", min_p.value_or(0));
  require(typical_p > 0 && typical_p <= 1, "typical_p", "a number in (0, 1]", typical_p);
  require(repetition_penalty > 0, "repetition_penalty", "a number above 0", repetition_penalty);
  require(no_repeat_ngram_size >= 0, "no_repeat_ngram_size", "a number from 0 (off)",
          no_repeat_ngram_size);
  require(num_beams >= 1, "num_beams", "a number from 1", num_beams);
  require(num_return_sequences >= 1, "num_return_sequences", "a number from 1",
          num_return_sequences);
  require(num_beams == 1 || num_return_sequences <= num_beams, "num_return_sequences",
          "at most num_beams", num_return_sequences);
  require(num_beams > 1 || do_sample || num_return_sequences == 1, "num_return_sequences",
          "1 for greedy search", num_return_sequences);
  require(num_beams == 1 || !do_sample, "do_sample",
          "false with beams (beam sampling is not supported)", do_sample);
  for (const auto& text : stop_strings) {
    require(!text.empty(), "stop_strings", "non-empty texts", text);
  }
}

}  // namespace graft::generation
