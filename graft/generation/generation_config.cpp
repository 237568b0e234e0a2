#include "graft/generation/generation_config.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <numeric>
#include <type_traits>

#include <fmt/format.h>

#include "graft/core/error.h"
#include "graft/core/file_status.h"
#include "graft/io/json.h"

namespace graft::generation {

namespace {

using nlohmann::json;

// No list of tokens is longer; sums of lengths stay far from overflow.
constexpr int64_t kMaxTokens = int64_t{1} << 30;

// What a value should have been; thrown on by whoever knows where the value came from.
struct WrongType {
  std::string expected;
};

template <typename T>
struct IsOptional : std::false_type {};
template <typename T>
struct IsOptional<std::optional<T>> : std::true_type {};

template <typename T>
T convert(const json& value) {
  if constexpr (IsOptional<T>::value) {
    return convert<typename T::value_type>(value);
  } else if constexpr (std::is_same_v<T, bool>) {
    if (!value.is_boolean()) {
      throw WrongType{"true or false"};
    }
    return value.get<bool>();
  } else if constexpr (std::is_integral_v<T>) {
    const bool fits = value.is_number_unsigned()
                          ? value.get<uint64_t>() <= uint64_t{std::numeric_limits<T>::max()}
                          : value.is_number_integer() && std::is_signed_v<T>;
    if (!fits) {
      throw WrongType{std::is_signed_v<T> ? "a 64-bit integer" : "a 64-bit integer from 0"};
    }
    return value.get<T>();
  } else {
    if (!value.is_number()) {
      throw WrongType{"a number"};
    }
    return value.get<double>();
  }
}

template <auto Member>
void assign(GenerationConfig& config, const json& value) {
  using T = std::remove_reference_t<decltype(config.*Member)>;
  config.*Member = value.is_null() ? GenerationConfig{}.*Member : convert<T>(value);
}

void assign_eos(GenerationConfig& config, const json& value) {
  config.eos_token_ids.clear();
  if (value.is_null()) {
    return;
  }
  for (const auto& item : value.is_array() ? value : json::array({value})) {
    if (!item.is_number_integer()) {
      throw WrongType{"a token id or a list of them"};
    }
    config.eos_token_ids.push_back(convert<int64_t>(item));
  }
}

void assign_early_stopping(GenerationConfig& config, const json& value) {
  if (value.is_null() || value.is_boolean()) {
    config.early_stopping =
        value.is_boolean() && value.get<bool>() ? EarlyStopping::kTrue : EarlyStopping::kFalse;
  } else if (value == "never") {
    config.early_stopping = EarlyStopping::kNever;
  } else {
    throw WrongType{"true, false or \"never\""};
  }
}

void assign_stop_strings(GenerationConfig& config, const json& value) {
  config.stop_strings.clear();
  if (value.is_null()) {
    return;
  }
  for (const auto& item : value.is_array() ? value : json::array({value})) {
    if (!item.is_string()) {
      throw WrongType{"a text or a list of them"};
    }
    config.stop_strings.push_back(item.get<std::string>());
  }
}

void assign_cache(GenerationConfig& config, const json& value) {
  // Which layers slide and which do not is the model's own business, so transformers 4's `hybrid`
  // says nothing here.
  if (value.is_null() || value == "dynamic" || value == "hybrid") {
    config.use_static_cache = false;
  } else if (value == "static") {
    config.use_static_cache = true;
  } else {
    throw WrongType{"\"dynamic\" or \"static\""};
  }
}

struct Option {
  std::string_view name;
  void (*set)(GenerationConfig& config, const json& value);
};

using Config = GenerationConfig;

constexpr std::array kOptions = {
    Option{"max_new_tokens", assign<&Config::max_new_tokens>},
    Option{"max_length", assign<&Config::max_length>},
    Option{"min_new_tokens", assign<&Config::min_new_tokens>},
    Option{"min_length", assign<&Config::min_length>},
    Option{"max_time", assign<&Config::max_time_seconds>},
    Option{"do_sample", assign<&Config::do_sample>},
    Option{"temperature", assign<&Config::temperature>},
    Option{"top_k", assign<&Config::top_k>},
    Option{"top_p", assign<&Config::top_p>},
    Option{"min_p", assign<&Config::min_p>},
    Option{"typical_p", assign<&Config::typical_p>},
    Option{"seed", assign<&Config::seed>},
    Option{"repetition_penalty", assign<&Config::repetition_penalty>},
    Option{"no_repeat_ngram_size", assign<&Config::no_repeat_ngram_size>},
    Option{"num_beams", assign<&Config::num_beams>},
    Option{"length_penalty", assign<&Config::length_penalty>},
    Option{"early_stopping", assign_early_stopping},
    Option{"num_return_sequences", assign<&Config::num_return_sequences>},
    Option{"eos_token_id", assign_eos},
    Option{"ignore_eos", assign<&Config::ignore_eos>},
    Option{"stop_strings", assign_stop_strings},
    Option{"pad_token_id", assign<&Config::pad_token_id>},
    Option{"bos_token_id", assign<&Config::bos_token_id>},
    Option{"use_cache", assign<&Config::use_cache>},
    Option{"cache_implementation", assign_cache},
    Option{"disable_compile", assign<&Config::disable_compile>},
    Option{"output_scores", assign<&Config::output_scores>},
};

const Option* find_option(std::string_view name) {
  const auto found = std::find_if(kOptions.begin(), kOptions.end(),
                                  [&](const Option& option) { return option.name == name; });
  return found == kOptions.end() ? nullptr : &*found;
}

// Options of transformers that change the ids and that graft does not have, with the value that
// leaves them off.
bool is_unsupported(const std::string& name, const json& value) {
  static const json kOff = {{"sequence_bias", nullptr},
                            {"bad_words_ids", nullptr},
                            {"forced_bos_token_id", nullptr},
                            {"forced_eos_token_id", nullptr},
                            {"suppress_tokens", nullptr},
                            {"begin_suppress_tokens", nullptr},
                            {"exponential_decay_length_penalty", nullptr},
                            {"watermarking_config", nullptr},
                            {"guidance_scale", 1.0},
                            {"top_h", nullptr},
                            {"epsilon_cutoff", 0.0},
                            {"eta_cutoff", 0.0},
                            {"remove_invalid_values", false},
                            {"renormalize_logits", false},
                            {"num_beam_groups", 1},
                            {"diversity_penalty", 0.0},
                            {"penalty_alpha", nullptr}};
  const bool empty = value.is_null() || (value.is_array() && value.empty());
  return kOff.contains(name) && !empty && value != kOff[name];
}

size_t edit_distance(std::string_view a, std::string_view b) {
  std::vector<size_t> row(b.size() + 1);
  std::iota(row.begin(), row.end(), size_t{0});
  for (size_t i = 0; i < a.size(); ++i) {
    size_t diagonal = row[0];
    row[0] = i + 1;
    for (size_t j = 0; j < b.size(); ++j) {
      const size_t replaced = diagonal + (a[i] == b[j] ? 0 : 1);
      diagonal = row[j + 1];
      row[j + 1] = std::min({replaced, diagonal + 1, row[j] + 1});
    }
  }
  return row.back();
}

std::string_view nearest_option(std::string_view name) {
  return std::min_element(kOptions.begin(), kOptions.end(),
                          [&](const Option& a, const Option& b) {
                            return edit_distance(a.name, name) < edit_distance(b.name, name);
                          })
      ->name;
}

// The first thing wrong with a config.
struct Problem {
  std::string field;
  std::string text;
};

class Checks {
 public:
  template <typename T>
  void require(bool right, std::string_view field, std::string_view expected, const T& got) {
    if (!right && !problem) {
      problem =
          Problem{std::string(field), fmt::format("{}: expected {}, got {}", field, expected, got)};
    }
  }
  std::optional<Problem> problem;
};

void check_lengths(const Config& config, Checks& checks) {
  const auto in_range = [](int64_t value, int64_t from) {
    return value >= from && value <= kMaxTokens;
  };
  const int64_t new_tokens = config.max_new_tokens.value_or(1);
  checks.require(in_range(new_tokens, 1), "max_new_tokens", "a number from 1 to 2^30", new_tokens);
  const int64_t length = config.max_length.value_or(1);
  checks.require(in_range(length, 1), "max_length", "a number from 1 to 2^30", length);
  checks.require(in_range(config.min_new_tokens, 0) &&
                     (!config.max_new_tokens || config.min_new_tokens <= new_tokens),
                 "min_new_tokens", "a number from 0 to max_new_tokens", config.min_new_tokens);
  checks.require(in_range(config.min_length, 0), "min_length", "a number from 0 to 2^30",
                 config.min_length);
  checks.require(!config.max_time_seconds || *config.max_time_seconds > 0, "max_time",
                 "seconds above 0", config.max_time_seconds.value_or(0));
}

void check_sampling(const Config& config, Checks& checks) {
  checks.require(config.temperature > 0 && std::isfinite(config.temperature), "temperature",
                 "a finite number above 0 (for greedy search set do_sample to false)",
                 config.temperature);
  checks.require(config.top_k >= 0, "top_k", "a number from 0 (off)", config.top_k);
  checks.require(config.top_p > 0 && config.top_p <= 1, "top_p", "a number in (0, 1]",
                 config.top_p);
  checks.require(!config.min_p || (*config.min_p >= 0 && *config.min_p <= 1), "min_p",
                 "a number in [0, 1]", config.min_p.value_or(0));
  checks.require(config.typical_p > 0 && config.typical_p <= 1, "typical_p", "a number in (0, 1]",
                 config.typical_p);
  checks.require(config.repetition_penalty > 0 && std::isfinite(config.repetition_penalty),
                 "repetition_penalty", "a finite number above 0", config.repetition_penalty);
  checks.require(config.no_repeat_ngram_size >= 0, "no_repeat_ngram_size", "a number from 0 (off)",
                 config.no_repeat_ngram_size);
}

void check_beams(const Config& config, Checks& checks) {
  constexpr int64_t kMaxRows = 1 << 16;
  checks.require(config.num_beams >= 1 && config.num_beams <= kMaxRows, "num_beams",
                 "a number from 1 to 65536", config.num_beams);
  checks.require(std::isfinite(config.length_penalty), "length_penalty", "a finite number",
                 config.length_penalty);
  const int64_t returned = config.num_return_sequences;
  checks.require(returned >= 1 && returned <= kMaxRows, "num_return_sequences",
                 "a number from 1 to 65536", returned);
  checks.require(config.num_beams == 1 || returned <= config.num_beams, "num_return_sequences",
                 "at most num_beams", returned);
  checks.require(config.num_beams > 1 || config.do_sample || returned == 1, "num_return_sequences",
                 "1 for greedy search", returned);
  for (const auto& text : config.stop_strings) {
    checks.require(!text.empty(), "stop_strings", "non-empty texts", "an empty one");
  }
}

std::optional<Problem> first_problem(const Config& config) {
  Checks checks;
  check_lengths(config, checks);
  check_sampling(config, checks);
  check_beams(config, checks);
  return checks.problem;
}

json read_object(const std::filesystem::path& path) {
  json object =
      io::read_json_file(path, "generation.config", {.max_bytes = 4 << 20, .max_depth = 64});
  if (!object.is_object()) {
    throw FormatError("generation.config", "type",
                      fmt::format("`{}`: expected an object", path.string()));
  }
  return object;
}

void read_field(GenerationConfig& config, const Option& option, const json& value,
                const std::string& file) {
  try {
    option.set(config, value);
  } catch (const WrongType& wrong) {
    throw FormatError(
        "generation.config", option.name,
        fmt::format("`{}`: {}: expected {}, got {}", file, option.name, wrong.expected,
                    value.dump(-1, ' ', false, json::error_handler_t::replace).substr(0, 80)));
  }
}

}  // namespace

GenerationConfig GenerationConfig::from_folder(const std::filesystem::path& folder) {
  GenerationConfig config;
  if (const auto path = folder / "generation_config.json"; is_there(path)) {
    const json object = read_object(path);
    for (const auto& [name, value] : object.items()) {
      if (const Option* option = find_option(name)) {
        read_field(config, *option, value, path.string());
      } else if (is_unsupported(name, value)) {
        throw IncompatibleError(
            "generation.config", "unsupported",
            fmt::format("`{}`: {}: expected an option that graft has", path.string(), name));
      }
    }
    if (const auto problem = first_problem(config)) {
      throw FormatError("generation.config", problem->field,
                        fmt::format("`{}`: {}", path.string(), problem->text));
    }
  } else if (const auto model = folder / "config.json"; is_there(model)) {
    const json object = read_object(model);
    for (const char* name : {"eos_token_id", "bos_token_id", "pad_token_id"}) {
      if (object.contains(name)) {
        read_field(config, *find_option(name), object[name], model.string());
      }
    }
  }
  return config;
}

void GenerationConfig::set(std::string_view name, const json& value) {
  const Option* option = find_option(name);
  if (option == nullptr) {
    throw InvalidArgument(
        "generation.config", "unknown-option",
        fmt::format("option: expected one of transformers' names, got `{}`", name),
        fmt::format("the nearest name is `{}`", nearest_option(name)));
  }
  try {
    option->set(*this, value);
  } catch (const WrongType& wrong) {
    throw InvalidArgument(
        "generation.config", name,
        fmt::format("{}: expected {}, got {}", name, wrong.expected,
                    value.dump(-1, ' ', false, json::error_handler_t::replace).substr(0, 80)));
  }
}

void GenerationConfig::validate() const {
  if (const auto problem = first_problem(*this)) {
    throw InvalidArgument("generation.config", problem->field, problem->text);
  }
}

}  // namespace graft::generation
