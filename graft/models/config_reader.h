// Typed, range-checked access to a model's config.json. Every value is checked here, before
// anything is allocated; messages name the file, the key and the range.
#pragma once

#include <cstdint>
#include <functional>
#include <limits>
#include <optional>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "graft/core/error.h"
#include "graft/io/excerpt.h"

namespace graft::models {

struct IntRange {
  int64_t min = std::numeric_limits<int64_t>::min();
  int64_t max = std::numeric_limits<int64_t>::max();
};

struct RealRange {
  double min = std::numeric_limits<double>::lowest();
  double max = std::numeric_limits<double>::max();
};

// A JSON object and the name under which errors speak of it. A null value counts as absent.
class ConfigReader {
 public:
  // What stands before a key in messages, such as its offset in a binary file; empty for none.
  using Place = std::function<std::string(const std::string& key)>;

  // Throws   FormatError when `object` is no JSON object.
  ConfigReader(nlohmann::json object, std::string where, Place place = {});

  bool has(const std::string& key) const;
  // The required forms throw FormatError when the key is absent, all when type or range is wrong.
  int64_t integer(const std::string& key, IntRange range) const;
  int64_t integer(const std::string& key, IntRange range, int64_t fallback) const;
  double real(const std::string& key, RealRange range) const;
  double real(const std::string& key, RealRange range, double fallback) const;
  bool boolean(const std::string& key, bool fallback) const;
  std::string text(const std::string& key, const std::string& fallback) const;
  // A text that `parse` turns into something else; its errors come out with the file's name.
  template <typename Parse>
  decltype(auto) parsed(const std::string& key, const std::string& fallback, Parse&& parse) const {
    const std::string name = io::excerpt(text(key, fallback));
    try {
      return parse(name);
    } catch (const FormatError& error) {
      throw FormatError("models.config", reason_of(error), in_file(error));
    } catch (const IncompatibleError& error) {
      throw IncompatibleError(error.where(), reason_of(error), in_file(error));
    }
  }
  std::vector<double> reals(const std::string& key, RealRange range, size_t count) const;
  std::vector<int64_t> integers(const std::string& key, IntRange range, size_t count) const;
  std::vector<std::string> texts(const std::string& key, size_t count) const;
  // An integer, or a list of at most 64 of them.
  std::vector<int64_t> integer_or_list(const std::string& key, IntRange range) const;
  // The object under `key`; an empty one when absent.
  ConfigReader object(const std::string& key) const;

  const nlohmann::json& raw() const { return object_; }
  const std::string& where() const { return where_; }

  // Throws FormatError: `<where>: <key>: expected …, got …`.
  [[noreturn]] void fail(const std::string& key, const std::string& expected) const;

 private:
  const nlohmann::json& array(const std::string& key, size_t count) const;

  static std::string reason_of(const Error& error);
  std::string in_file(const Error& error) const;

  nlohmann::json object_;
  std::string where_;
  Place place_;
};

}  // namespace graft::models
