#include "graft/text/json_view.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstring>

#include <fmt/format.h>

#include "graft/core/error.h"
#include "graft/text/flat_map.h"
#include "graft/text/unicode.h"

namespace graft::text {

namespace {

constexpr size_t kMaxBytes = size_t{512} << 20;
constexpr size_t kMaxDepth = 64;
constexpr size_t kMaxNodes = 50'000'000;

}  // namespace

// One pass, no recursion; the stack holds the open containers.
class JsonParser {
 public:
  JsonParser(JsonDocument& document, std::string_view text)
      : document_(document), text_(text), nodes_(document.nodes_) {}

  void parse() {
    check_whole_text();
    nodes_.reserve(std::min(text_.size() / 6 + 16, kMaxNodes));
    skip_space();
    read_value();
    while (!open_.empty()) {
      step();
    }
    skip_space();
    if (pos_ != text_.size()) {
      fail("json", "expected the end of the file, got more data");
    }
  }

 private:
  [[noreturn]] void fail(std::string_view reason, std::string_view text) const {
    throw FormatError("text.tokenizer", reason,
                      fmt::format("`{}`: at byte {}: {}", document_.file_, pos_, text));
  }

  void check_whole_text() {
    if (text_.size() > kMaxBytes) {
      fail("json-limits",
           fmt::format("expected at most {} bytes, got {}", kMaxBytes, text_.size()));
    }
    if (text_.starts_with("\xEF\xBB\xBF")) {
      fail("json", "expected JSON, got a byte order mark");
    }
    pos_ = valid_utf8_prefix(text_);
    if (pos_ != text_.size()) {
      fail("json", "expected UTF-8, got a broken sequence");
    }
    pos_ = 0;
  }

  char peek() const { return pos_ < text_.size() ? text_[pos_] : '\0'; }

  void skip_space() {
    while (pos_ < text_.size() && (text_[pos_] == ' ' || text_[pos_] == '\n' ||
                                   text_[pos_] == '\r' || text_[pos_] == '\t')) {
      ++pos_;
    }
  }

  void expect(char wanted) {
    if (peek() != wanted || pos_ >= text_.size()) {
      fail("json", fmt::format("expected `{}`", wanted));
    }
    ++pos_;
  }

  JsonDocument::Node& add(JsonView::Kind kind) {
    if (nodes_.size() >= kMaxNodes) {
      fail("json-limits", fmt::format("expected at most {} values, got more", kMaxNodes));
    }
    nodes_.push_back({kind, 0, {nullptr}});
    return nodes_.back();
  }

  // Reads the next element or member of the innermost container, or closes it.
  void step() {
    const uint32_t node = open_.back();
    const bool object = nodes_[node].kind == JsonView::Kind::kObject;
    skip_space();
    if (peek() == (object ? '}' : ']')) {
      ++pos_;
      close(node, object);
      return;
    }
    if (nodes_[node].size > 0) {
      expect(',');
      skip_space();
    }
    if (object) {
      read_text();
      skip_space();
      expect(':');
      skip_space();
    }
    ++nodes_[node].size;
    read_value();
  }

  void close(uint32_t node, bool object) {
    nodes_[node].end = static_cast<uint32_t>(nodes_.size());
    open_.pop_back();
    if (!object) {
      return;
    }
    TextIndex keys(nodes_[node].size);
    int32_t index = 0;
    JsonView(&document_, node).each_member([&](std::string_view key, const JsonView&) {
      if (keys.add(key, index) != index) {
        fail("duplicate-key",
             fmt::format("expected unique keys, got `{}` twice in one object", key.substr(0, 200)));
      }
      ++index;
    });
  }

  void read_value() {
    switch (peek()) {
      case '{':
      case '[':
        if (open_.size() >= kMaxDepth) {
          fail("json-limits",
               fmt::format("expected at most {} levels of nesting, got more", kMaxDepth));
        }
        open_.push_back(static_cast<uint32_t>(nodes_.size()));
        add(text_[pos_] == '{' ? JsonView::Kind::kObject : JsonView::Kind::kArray);
        ++pos_;
        return;
      case '"':
        read_text();
        return;
      case 't':
        read_word("true", JsonView::Kind::kTrue);
        return;
      case 'f':
        read_word("false", JsonView::Kind::kFalse);
        return;
      case 'n':
        read_word("null", JsonView::Kind::kNull);
        return;
      default:
        read_number();
    }
  }

  void read_word(std::string_view word, JsonView::Kind kind) {
    if (text_.substr(pos_, word.size()) != word) {
      fail("json", "expected a value");
    }
    pos_ += word.size();
    add(kind);
  }

  void digits() {
    if (peek() < '0' || peek() > '9') {
      fail("json", "expected a value");
    }
    while (peek() >= '0' && peek() <= '9') {
      ++pos_;
    }
  }

  void read_number() {
    const size_t begin = pos_;
    bool whole = true;
    if (peek() == '-') {
      ++pos_;
    }
    if (peek() == '0') {
      ++pos_;
    } else {
      digits();
    }
    if (peek() == '.') {
      whole = false;
      ++pos_;
      digits();
    }
    if (peek() == 'e' || peek() == 'E') {
      whole = false;
      ++pos_;
      if (peek() == '+' || peek() == '-') {
        ++pos_;
      }
      digits();
    }
    const char* first = text_.data() + begin;
    const char* last = text_.data() + pos_;
    if (whole) {
      int64_t value = 0;
      if (std::from_chars(first, last, value).ec == std::errc()) {
        add(JsonView::Kind::kInteger).integer = value;
        return;
      }
    }
    double value = 0;
    if (std::from_chars(first, last, value).ec != std::errc() && !is_tiny(begin)) {
      fail("json", "expected a number in the range of double");
    }
    add(JsonView::Kind::kReal).real = value;
  }

  // from_chars reports underflow and overflow alike; underflow is read as zero.
  bool is_tiny(size_t begin) const {
    const double value =
        std::strtod(std::string(text_.substr(begin, pos_ - begin)).c_str(), nullptr);
    return std::isfinite(value);
  }

  void read_text() {
    expect('"');
    const size_t begin = pos_;
    while (pos_ < text_.size()) {
      const auto c = static_cast<unsigned char>(text_[pos_]);
      if (c == '"') {
        auto& node = add(JsonView::Kind::kText);
        node.data = text_.data() + begin;
        node.size = static_cast<uint32_t>(pos_ - begin);
        ++pos_;
        return;
      }
      if (c == '\\') {
        read_escaped(begin);
        return;
      }
      if (c < 0x20) {
        fail("json", "expected a text without control characters");
      }
      ++pos_;
    }
    fail("json", "expected the end of a text, got the end of the file");
  }

  // A text that holds escapes: copied, since it is shorter than what the file says.
  void read_escaped(size_t begin) {
    if (document_.unescaped_ == nullptr) {
      document_.unescaped_.reset(new char[text_.size()]);
      write_ = document_.unescaped_.get();
    }
    char* const start = write_;
    std::memcpy(write_, text_.data() + begin, pos_ - begin);
    write_ += pos_ - begin;
    while (pos_ < text_.size() && text_[pos_] != '"') {
      const auto c = static_cast<unsigned char>(text_[pos_]);
      if (c < 0x20) {
        fail("json", "expected a text without control characters");
      }
      if (c == '\\') {
        ++pos_;
        write_escape();
      } else {
        *write_++ = text_[pos_++];
      }
    }
    expect('"');
    auto& node = add(JsonView::Kind::kText);
    node.data = start;
    node.size = static_cast<uint32_t>(write_ - start);
  }

  void write_escape() {
    constexpr std::string_view kFrom = "\"\\/bfnrt";
    constexpr std::string_view kTo = "\"\\/\b\f\n\r\t";
    const char c = peek();
    if (c != 'u') {
      const size_t which = pos_ < text_.size() ? kFrom.find(c) : std::string_view::npos;
      if (which == std::string_view::npos) {
        fail("json", "expected an escape of JSON");
      }
      *write_++ = kTo[which];
      ++pos_;
      return;
    }
    ++pos_;
    char32_t value = hex4();
    if (value >= 0xDC00 && value <= 0xDFFF) {
      fail("json", "expected a character, got a lone surrogate");
    }
    if (value >= 0xD800 && value <= 0xDBFF) {
      if (text_.substr(pos_, 2) != "\\u") {
        fail("json", "expected a character, got a lone surrogate");
      }
      pos_ += 2;
      const char32_t low = hex4();
      if (low < 0xDC00 || low > 0xDFFF) {
        fail("json", "expected a character, got a lone surrogate");
      }
      value = 0x10000 + ((value - 0xD800) << 10) + (low - 0xDC00);
    }
    const std::string bytes = to_utf8(value);
    std::memcpy(write_, bytes.data(), bytes.size());
    write_ += bytes.size();
  }

  char32_t hex4() {
    unsigned value = 0;
    const std::string_view four = text_.substr(pos_, 4);
    const auto read = std::from_chars(four.data(), four.data() + four.size(), value, 16);
    if (four.size() < 4 || read.ptr != four.data() + 4) {
      fail("json", "expected four hexadecimal digits");
    }
    pos_ += 4;
    return value;
  }

  JsonDocument& document_;
  std::string_view text_;
  std::vector<JsonDocument::Node>& nodes_;
  std::vector<uint32_t> open_;
  size_t pos_ = 0;
  char* write_ = nullptr;
};

JsonDocument::JsonDocument(std::string_view text, std::string file) : file_(std::move(file)) {
  JsonParser(*this, text).parse();
}

JsonView::Kind JsonView::kind() const { return document_->nodes_[node_].kind; }

namespace {

[[noreturn]] void throw_kind(const JsonDocument& document, std::string_view what,
                             std::string_view expected) {
  throw FormatError("text.tokenizer", "field-type",
                    fmt::format("`{}`: `{}`: expected {}, got another kind of value",
                                document.file(), what, expected));
}

}  // namespace

bool JsonView::boolean(std::string_view what) const {
  if (kind() != Kind::kFalse && kind() != Kind::kTrue) {
    throw_kind(*document_, what, "true or false");
  }
  return kind() == Kind::kTrue;
}

int64_t JsonView::integer(std::string_view what) const {
  if (kind() != Kind::kInteger) {
    throw_kind(*document_, what, "an integer");
  }
  return document_->nodes_[node_].integer;
}

double JsonView::real(std::string_view what) const {
  const auto& node = document_->nodes_[node_];
  if (node.kind == Kind::kInteger) {
    return static_cast<double>(node.integer);
  }
  if (node.kind != Kind::kReal) {
    throw_kind(*document_, what, "a number");
  }
  return node.real;
}

std::string_view JsonView::text(std::string_view what) const {
  const auto& node = document_->nodes_[node_];
  if (node.kind != Kind::kText) {
    throw_kind(*document_, what, "a text");
  }
  return {node.data, node.size};
}

size_t JsonView::size() const {
  return is_array() || is_object() ? document_->nodes_[node_].size : 0;
}

std::optional<JsonView> JsonView::find(std::string_view key) const {
  std::optional<JsonView> found;
  if (is_object()) {
    each_member([&](std::string_view name, const JsonView& value) {
      if (name == key) {
        found.emplace(value);
      }
    });
  }
  return found;
}

uint32_t JsonView::next_sibling(uint32_t node) const {
  const auto& item = document_->nodes_[node];
  return item.kind == Kind::kArray || item.kind == Kind::kObject ? item.end : node + 1;
}

}  // namespace graft::text
