#include "graft/models/config_reader.h"

#include <cmath>
#include <utility>

#include <fmt/format.h>

#include "graft/core/error.h"

namespace graft::models {

namespace {

using nlohmann::json;

constexpr size_t kMaxQuoted = 60;
constexpr size_t kMaxTokenIds = 64;

// A value as a message quotes it: one line, cut when long.
std::string quoted(const json& value) {
  std::string text = value.dump(-1, ' ', true, json::error_handler_t::replace);
  if (text.size() > kMaxQuoted) {
    text.resize(kMaxQuoted);
    text += "…";
  }
  return text;
}

std::optional<int64_t> as_integer(const json& value, IntRange range) {
  if (value.is_number_unsigned() &&
      value.get<uint64_t>() > static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) {
    return std::nullopt;
  }
  int64_t number = 0;
  if (value.is_number_integer()) {
    number = value.get<int64_t>();
  } else if (value.is_number_float() && std::abs(value.get<double>()) < 9e15 &&
             std::floor(value.get<double>()) == value.get<double>()) {
    number = static_cast<int64_t>(value.get<double>());
  } else {
    return std::nullopt;
  }
  return number >= range.min && number <= range.max ? std::optional<int64_t>(number) : std::nullopt;
}

std::optional<double> as_real(const json& value, RealRange range) {
  if (!value.is_number()) {
    return std::nullopt;
  }
  const double number = value.get<double>();
  return std::isfinite(number) && number >= range.min && number <= range.max
             ? std::optional<double>(number)
             : std::nullopt;
}

std::string describe(IntRange range) {
  return fmt::format("an integer in [{}, {}]", range.min, range.max);
}

std::string describe(RealRange range) {
  return fmt::format("a number in [{:g}, {:g}]", range.min, range.max);
}

}  // namespace

ConfigReader::ConfigReader(json object, std::string where, Place place)
    : object_(std::move(object)), where_(std::move(where)), place_(std::move(place)) {
  if (!object_.is_object()) {
    throw FormatError(
        "models.config", "not-an-object",
        fmt::format("`{}`: expected a JSON object, got {}", where_, object_.type_name()));
  }
}

bool ConfigReader::has(const std::string& key) const {
  const auto found = object_.find(key);
  return found != object_.end() && !found->is_null();
}

void ConfigReader::fail(const std::string& key, const std::string& expected) const {
  throw FormatError(
      "models.config", "value",
      fmt::format("`{}`: {}{}: expected {}, got {}", where_, place_ ? place_(key) : "", key,
                  expected, has(key) ? quoted(object_.at(key)) : "nothing"));
}

std::string ConfigReader::reason_of(const Error& error) {
  return error.code().substr(error.where().size() + 1);
}

std::string ConfigReader::in_file(const Error& error) const {
  const size_t prefix = error.where().size() + 3;  // `[where] `
  return fmt::format("`{}`: {}", where_, std::string_view(error.what()).substr(prefix));
}

int64_t ConfigReader::integer(const std::string& key, IntRange range) const {
  if (const auto value = has(key) ? as_integer(object_.at(key), range) : std::nullopt) {
    return *value;
  }
  fail(key, describe(range));
}

int64_t ConfigReader::integer(const std::string& key, IntRange range, int64_t fallback) const {
  return has(key) ? integer(key, range) : fallback;
}

double ConfigReader::real(const std::string& key, RealRange range) const {
  if (const auto value = has(key) ? as_real(object_.at(key), range) : std::nullopt) {
    return *value;
  }
  fail(key, describe(range));
}

double ConfigReader::real(const std::string& key, RealRange range, double fallback) const {
  return has(key) ? real(key, range) : fallback;
}

bool ConfigReader::boolean(const std::string& key, bool fallback) const {
  if (!has(key)) {
    return fallback;
  }
  if (!object_.at(key).is_boolean()) {
    fail(key, "true or false");
  }
  return object_.at(key).get<bool>();
}

std::string ConfigReader::text(const std::string& key, const std::string& fallback) const {
  if (!has(key)) {
    return fallback;
  }
  if (!object_.at(key).is_string()) {
    fail(key, "a string");
  }
  return object_.at(key).get<std::string>();
}

const json& ConfigReader::array(const std::string& key, size_t count) const {
  if (!has(key) || !object_.at(key).is_array() || object_.at(key).size() != count) {
    fail(key, fmt::format("a list of {} values", count));
  }
  return object_.at(key);
}

std::vector<double> ConfigReader::reals(const std::string& key, RealRange range,
                                        size_t count) const {
  std::vector<double> values;
  for (const json& item : array(key, count)) {
    const auto value = as_real(item, range);
    if (!value) {
      fail(key, fmt::format("a list of {} values, each {}", count, describe(range)));
    }
    values.push_back(*value);
  }
  return values;
}

std::vector<int64_t> ConfigReader::integers(const std::string& key, IntRange range,
                                            size_t count) const {
  std::vector<int64_t> values;
  for (const json& item : array(key, count)) {
    const auto value = as_integer(item, range);
    if (!value) {
      fail(key, fmt::format("a list of {} values, each {}", count, describe(range)));
    }
    values.push_back(*value);
  }
  return values;
}

std::vector<std::string> ConfigReader::texts(const std::string& key, size_t count) const {
  std::vector<std::string> values;
  for (const json& item : array(key, count)) {
    if (!item.is_string()) {
      fail(key, fmt::format("a list of {} strings", count));
    }
    values.push_back(item.get<std::string>());
  }
  return values;
}

std::vector<int64_t> ConfigReader::integer_or_list(const std::string& key, IntRange range) const {
  if (!has(key)) {
    return {};
  }
  const json& value = object_.at(key);
  if (value.is_array()) {
    if (value.size() > kMaxTokenIds) {
      fail(key, fmt::format("at most {} values", kMaxTokenIds));
    }
    return integers(key, range, value.size());
  }
  return {integer(key, range)};
}

ConfigReader ConfigReader::object(const std::string& key) const {
  return {has(key) ? object_.at(key) : json::object(), fmt::format("{}#{}", where_, key)};
}

}  // namespace graft::models
