// A read-only JSON tree over the text of a file, for documents of hundreds of thousands of values
// (vocabularies), where building graft/io/json.h's tree would take most of the start-up time. It
// accepts what that parser accepts and refuses what it refuses; a test compares the two.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace graft::text {

class JsonDocument;

// A value of a document, which must outlive it. Errors name the path that led to the value.
class JsonView {
 public:
  enum class Kind : uint8_t { kNull, kFalse, kTrue, kInteger, kReal, kText, kArray, kObject };

  Kind kind() const;
  bool is_null() const { return kind() == Kind::kNull; }
  bool is_text() const { return kind() == Kind::kText; }
  bool is_array() const { return kind() == Kind::kArray; }
  bool is_object() const { return kind() == Kind::kObject; }

  // Throws   FormatError `text.tokenizer.field-type` when the value is of another kind.
  bool boolean(std::string_view what) const;
  int64_t integer(std::string_view what) const;
  double real(std::string_view what) const;
  std::string_view text(std::string_view what) const;

  // Elements of an array, or members of an object.
  size_t size() const;

  // Member of an object; nothing when it is missing.
  std::optional<JsonView> find(std::string_view key) const;

  // Visits the elements of an array: fn(value), or the members of an object: fn(key, value).
  template <typename Fn>
  void each(Fn&& fn) const;
  template <typename Fn>
  void each_member(Fn&& fn) const;

 private:
  friend class JsonDocument;
  friend class JsonParser;
  JsonView(const JsonDocument* document, uint32_t node) : document_(document), node_(node) {}
  uint32_t next_sibling(uint32_t node) const;
  const JsonDocument* document_;
  uint32_t node_;
};

class JsonDocument {
 public:
  // Parses `text`, which must outlive the document.
  //
  // file   name that error texts show
  // Throws   FormatError `text.tokenizer.json`, `.duplicate-key` or `.json-limits` with the byte
  //          offset.
  JsonDocument(std::string_view text, std::string file);

  JsonView root() const { return {this, 0}; }
  const std::string& file() const { return file_; }

 private:
  friend class JsonView;
  friend class JsonParser;
  // Values in the order of the text. A member of an object is its key followed by its value.
  struct Node {
    JsonView::Kind kind;
    uint32_t size;  // bytes of a text, elements of an array, members of an object
    union {
      const char* data;  // of a text
      int64_t integer;
      double real;
      uint32_t end;  // node after an array's or object's last descendant
    };
  };

  std::string file_;
  std::vector<Node> nodes_;
  std::unique_ptr<char[]> unescaped_;  // texts that held escapes
};

template <typename Fn>
void JsonView::each(Fn&& fn) const {
  uint32_t node = node_ + 1;
  for (size_t i = 0, count = size(); i < count; ++i) {
    fn(JsonView(document_, node));
    node = next_sibling(node);
  }
}

template <typename Fn>
void JsonView::each_member(Fn&& fn) const {
  uint32_t node = node_ + 1;
  for (size_t i = 0, count = size(); i < count; ++i) {
    const auto& key = document_->nodes_[node];
    fn(std::string_view(key.data, key.size), JsonView(document_, node + 1));
    node = next_sibling(node + 1);
  }
}

}  // namespace graft::text
