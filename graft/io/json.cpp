#include "graft/io/json.h"

#include <unordered_set>
#include <vector>

#include <fmt/format.h>

#include "graft/core/error.h"
#include "graft/io/mapped_file.h"

namespace graft::io {

namespace {

// Builds the tree from events, so that limits hold before memory is taken and no recursion follows
// the file's nesting. nlohmann reports the position of what it just read.
template <typename Json>
class Builder : public nlohmann::json_sax<Json> {
 public:
  using string_t = typename Json::string_t;

  Builder(std::string_view where, std::string_view file, const JsonLimits& limits)
      : where_(where), file_(file), limits_(limits) {}

  Json take() { return std::move(root_); }

  bool null() override { return add(nullptr); }
  bool boolean(bool value) override { return add(value); }
  bool number_integer(typename Json::number_integer_t value) override { return add(value); }
  bool number_unsigned(typename Json::number_unsigned_t value) override { return add(value); }
  bool number_float(typename Json::number_float_t value, const string_t&) override {
    return add(value);
  }
  bool string(string_t& value) override { return add(std::move(value)); }
  bool binary(typename Json::binary_t&) override { return false; }

  bool start_object(size_t) override { return open(Json::object()); }
  bool start_array(size_t) override { return open(Json::array()); }
  bool end_object() override {
    keys_.pop_back();
    return close();
  }
  bool end_array() override { return close(); }

  bool key(string_t& value) override {
    if (!keys_.back().insert(value).second) {
      fail("duplicate-key",
           fmt::format("expected unique keys, got `{}` twice in one object", value.substr(0, 200)));
    }
    key_ = std::move(value);
    return true;
  }

  bool parse_error(size_t position, const std::string&,
                   const nlohmann::json::exception& error) override {
    fail("json", fmt::format("at byte {}: expected JSON, got: {}", position, error.what()));
    return false;
  }

 private:
  [[noreturn]] void fail(std::string_view reason, const std::string& text) const {
    throw FormatError(where_, reason, fmt::format("`{}`: {}", file_, text));
  }

  template <typename Value>
  bool add(Value&& value) {
    place(Json(std::forward<Value>(value)));
    return true;
  }

  bool open(Json container) {
    if (stack_.size() >= limits_.max_depth) {
      fail("json-limits",
           fmt::format("expected at most {} levels of nesting, got more", limits_.max_depth));
    }
    if (container.is_object()) {
      keys_.emplace_back();
    }
    stack_.push_back(place(std::move(container)));
    return true;
  }

  bool close() {
    stack_.pop_back();
    return true;
  }

  // Containers stay put while they grow only if their parent does not grow meanwhile: it does not,
  // since the parent's next value comes after the child is closed.
  Json* place(Json value) {
    if (++num_values_ > limits_.max_values) {
      fail("json-limits", fmt::format("expected at most {} values, got more", limits_.max_values));
    }
    if (stack_.empty()) {
      root_ = std::move(value);
      return &root_;
    }
    Json& parent = *stack_.back();
    if (parent.is_array()) {
      parent.push_back(std::move(value));
      return &parent.back();
    }
    Json& slot = parent[key_];
    slot = std::move(value);
    return &slot;
  }

  std::string where_;
  std::string file_;
  JsonLimits limits_;
  Json root_;
  std::vector<Json*> stack_;
  std::vector<std::unordered_set<std::string>> keys_;
  string_t key_;
  size_t num_values_ = 0;
};

template <typename Json>
Json parse(std::string_view text, std::string_view where, std::string_view file,
           const JsonLimits& limits) {
  if (text.size() > limits.max_bytes) {
    throw FormatError(where, "json-limits",
                      fmt::format("`{}`: expected at most {} bytes of JSON, got {}", file,
                                  limits.max_bytes, text.size()));
  }
  if (text.starts_with("\xEF\xBB\xBF")) {
    throw FormatError(where, "json",
                      fmt::format("`{}`: at byte 0: expected JSON, got a byte order mark", file));
  }
  Builder<Json> builder(where, file, limits);
  Json::sax_parse(text.begin(), text.end(), &builder);
  return builder.take();
}

}  // namespace

nlohmann::json parse_json(std::string_view text, std::string_view where, std::string_view file,
                          const JsonLimits& limits) {
  return parse<nlohmann::json>(text, where, file, limits);
}

nlohmann::ordered_json parse_ordered_json(std::string_view text, std::string_view where,
                                          std::string_view file, const JsonLimits& limits) {
  return parse<nlohmann::ordered_json>(text, where, file, limits);
}

nlohmann::json read_json_file(const std::filesystem::path& path, std::string_view where,
                              const JsonLimits& limits) {
  const auto file = MappedFile::open(path);
  const auto bytes = file->bytes();
  return parse_json({reinterpret_cast<const char*>(bytes.data()), bytes.size()}, where,
                    path.string(), limits);
}

}  // namespace graft::io
