#include "graft/io/json.h"

#include <iterator>
#include <type_traits>
#include <unordered_set>
#include <vector>

#include <fmt/format.h>

#include "graft/core/error.h"
#include "graft/io/excerpt.h"
#include "graft/io/mapped_file.h"

namespace graft::io {

namespace {

// What nlohmann's tree takes from the heap, rounded up; growing arrays are held twice for a moment.
constexpr size_t kValueBytes = 48;
constexpr size_t kContainerBytes = 64;
constexpr size_t kTextBytes = 48;
constexpr size_t kMemberBytes = 160;

// Walks over a text and tells how far it came: nlohmann's events carry no position.
class TrackedIterator {
 public:
  using iterator_category = std::input_iterator_tag;
  using value_type = char;
  using difference_type = std::ptrdiff_t;
  using pointer = const char*;
  using reference = const char&;

  TrackedIterator(const char* at, const char** reached) : at_(at), reached_(reached) {}
  reference operator*() const { return *at_; }
  TrackedIterator& operator++() {
    *reached_ = ++at_;
    return *this;
  }
  TrackedIterator operator++(int) {
    const TrackedIterator before = *this;
    ++*this;
    return before;
  }
  bool operator==(const TrackedIterator& other) const { return at_ == other.at_; }
  bool operator!=(const TrackedIterator& other) const { return at_ != other.at_; }

 private:
  const char* at_;
  const char** reached_;
};

// Builds the tree from events, so that limits hold before memory is taken and no recursion follows
// the file's nesting.
template <typename Json>
class Builder : public nlohmann::json_sax<Json> {
 public:
  using string_t = typename Json::string_t;

  Builder(std::string_view text, std::string_view where, std::string_view file,
          const JsonLimits& limits)
      : text_(text), reached_(text.data()), where_(where), file_(file), limits_(limits) {}

  Json build() {
    if (text_.size() > limits_.max_bytes) {
      fail("json-limits", fmt::format("expected at most {} bytes of JSON, got {}",
                                      limits_.max_bytes, text_.size()));
    }
    if (text_.starts_with("\xEF\xBB\xBF")) {
      fail("json", "expected JSON, got a byte order mark");
    }
    // nlohmann takes a NUL for the end and would not look at what follows.
    if (const size_t nul = text_.find('\0'); nul != std::string_view::npos) {
      reached_ = text_.data() + nul;
      fail("json", "expected JSON, got a NUL byte");
    }
    Json::sax_parse(TrackedIterator(text_.data(), &reached_),
                    TrackedIterator(text_.data() + text_.size(), &reached_), this);
    return std::move(root_);
  }

  bool null() override { return add(nullptr, 0); }
  bool boolean(bool value) override { return add(value, 0); }
  bool number_integer(typename Json::number_integer_t value) override { return add(value, 0); }
  bool number_unsigned(typename Json::number_unsigned_t value) override { return add(value, 0); }
  bool number_float(typename Json::number_float_t value, const string_t&) override {
    return add(value, 0);
  }
  bool string(string_t& value) override {
    const size_t bytes = kTextBytes + value.size();
    return add(std::move(value), bytes);
  }
  bool binary(typename Json::binary_t&) override { return false; }

  bool start_object(size_t) override { return open(Json::object()); }
  bool start_array(size_t) override { return open(Json::array()); }
  bool end_object() override {
    if constexpr (kKeepsOrder) {
      keys_.pop_back();
    }
    return close();
  }
  bool end_array() override { return close(); }

  bool key(string_t& value) override {
    charge((kKeepsOrder ? 2 : 1) * (kMemberBytes + value.size()));
    if (!is_new_key(value)) {
      fail("duplicate-key",
           fmt::format("expected unique keys, got `{}` twice in one object", excerpt(value)));
    }
    key_ = std::move(value);
    return true;
  }

  bool parse_error(size_t, const std::string&, const nlohmann::json::exception& error) override {
    std::string_view reason = error.what();
    if (const size_t end = reason.find("] "); end != std::string_view::npos) {
      reason.remove_prefix(end + 2);  // the library's own error number
    }
    fail("json", fmt::format("expected JSON, got: {}", excerpt(reason, 240)));
    return false;
  }

 private:
  static constexpr bool kKeepsOrder = std::is_same_v<Json, nlohmann::ordered_json>;

  [[noreturn]] void fail(std::string_view reason, const std::string& text) const {
    throw FormatError(
        where_, reason,
        fmt::format("`{}`: at byte {}: {}", file_,
                    limits_.first_byte + static_cast<size_t>(reached_ - text_.data()), text));
  }

  bool is_new_key(const string_t& key) {
    if constexpr (kKeepsOrder) {  // a list of pairs: searching it would be quadratic
      return keys_.back().insert(key).second;
    } else {
      return !stack_.back()->contains(key);
    }
  }

  template <typename Value>
  bool add(Value&& value, size_t extra_bytes) {
    charge(extra_bytes);
    place(Json(std::forward<Value>(value)));
    return true;
  }

  bool open(Json container) {
    if (stack_.size() >= limits_.max_depth) {
      fail("json-limits",
           fmt::format("expected at most {} levels of nesting, got more", limits_.max_depth));
    }
    charge(kContainerBytes);
    if constexpr (kKeepsOrder) {
      if (container.is_object()) {
        keys_.emplace_back();
      }
    }
    stack_.push_back(place(std::move(container)));
    return true;
  }

  bool close() {
    stack_.pop_back();
    return true;
  }

  void charge(size_t bytes) {
    memory_bytes_ += bytes;
    if (memory_bytes_ > limits_.max_memory_bytes) {
      fail("json-limits", fmt::format("expected values that take at most {} bytes, got more",
                                      limits_.max_memory_bytes));
    }
  }

  // Pointers to open containers hold: a parent grows only after its child is closed.
  Json* place(Json value) {
    charge(kValueBytes);
    if (stack_.empty()) {
      root_ = std::move(value);
      return &root_;
    }
    Json& parent = *stack_.back();
    if (parent.is_array()) {
      parent.push_back(std::move(value));
      return &parent.back();
    }
    if constexpr (kKeepsOrder) {  // known to be new; operator[] would search the whole list
      auto& members = parent.template get_ref<typename Json::object_t&>();
      members.emplace_back(key_, std::move(value));
      return &members.back().second;
    } else {
      Json& slot = parent[key_];
      slot = std::move(value);
      return &slot;
    }
  }

  std::string_view text_;
  const char* reached_;
  std::string_view where_;
  std::string_view file_;
  JsonLimits limits_;
  Json root_;
  std::vector<Json*> stack_;
  std::vector<std::unordered_set<std::string>> keys_;
  string_t key_;
  size_t memory_bytes_ = 0;
};

// Follows a path of keys from the outermost object inwards, and stops when it ends.
class KeyLocator : public nlohmann::json_sax<nlohmann::json> {
 public:
  KeyLocator(std::string_view text, const std::vector<std::string_view>& path)
      : text_(text), reached_(text.data()), path_(path) {}

  size_t locate() {
    nlohmann::json::sax_parse(TrackedIterator(text_.data(), &reached_),
                              TrackedIterator(text_.data() + text_.size(), &reached_), this);
    return found_;
  }

  bool null() override { return true; }
  bool boolean(bool) override { return true; }
  bool number_integer(number_integer_t) override { return true; }
  bool number_unsigned(number_unsigned_t) override { return true; }
  bool number_float(number_float_t, const string_t&) override { return true; }
  bool string(string_t&) override { return true; }
  bool binary(binary_t&) override { return false; }
  bool start_object(size_t) override { return ++depth_ > 0; }
  bool start_array(size_t) override { return ++depth_ > 0; }
  bool end_object() override { return --depth_ > matched_; }
  bool end_array() override { return --depth_ > matched_; }
  bool parse_error(size_t, const std::string&, const nlohmann::json::exception&) override {
    return false;
  }

  bool key(string_t& value) override {
    if (depth_ == matched_) {
      return false;  // the value before was no object
    }
    if (depth_ == matched_ + 1 && value == path_[matched_]) {
      found_ = opening_quote();
      ++matched_;
    }
    return matched_ < path_.size();
  }

 private:
  // Of the text that was read last: the nearest quote before its end without an escape.
  size_t opening_quote() const {
    auto at = static_cast<size_t>(reached_ - text_.data()) - 1;
    size_t escapes = 0;
    do {
      at = text_.rfind('"', at - 1);
      escapes = 0;
      while (escapes < at && text_[at - escapes - 1] == '\\') {
        ++escapes;
      }
    } while (escapes % 2 == 1);
    return at;
  }

  std::string_view text_;
  const char* reached_;
  const std::vector<std::string_view>& path_;
  size_t depth_ = 0;
  size_t matched_ = 0;
  size_t found_ = 0;
};

}  // namespace

size_t offset_of(std::string_view text, const std::vector<std::string_view>& path) {
  return path.empty() ? 0 : KeyLocator(text, path).locate();
}

nlohmann::json parse_json(std::string_view text, std::string_view where, std::string_view file,
                          const JsonLimits& limits) {
  return Builder<nlohmann::json>(text, where, file, limits).build();
}

nlohmann::ordered_json parse_ordered_json(std::string_view text, std::string_view where,
                                          std::string_view file, const JsonLimits& limits) {
  return Builder<nlohmann::ordered_json>(text, where, file, limits).build();
}

nlohmann::json read_json_file(const std::filesystem::path& path, std::string_view where,
                              const JsonLimits& limits) {
  const auto file = MappedFile::open(path);
  const auto bytes = file->bytes();
  return parse_json({reinterpret_cast<const char*>(bytes.data()), bytes.size()}, where,
                    path.string(), limits);
}

}  // namespace graft::io
