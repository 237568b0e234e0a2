// Objects of JSON documents that decide about trust: a key that is not expected, one that is missing
// and a value of another type are errors that name the line. Nothing is ignored, since what one
// reader ignores another may follow.
#pragma once

#include <cstdint>
#include <functional>
#include <initializer_list>
#include <string>
#include <string_view>
#include <vector>

#include <nlohmann/json.hpp>

namespace graft::trust {

// A parsed document together with its text, which error messages need.
class StrictDocument {
 public:
  // text   the whole document, at most `max_bytes`
  // where  room for error codes, e.g. `trust.policy`
  // file   name that error texts show
  // Throws   FormatError `<where>.json`, `.duplicate-key`, `.json-limits`.
  StrictDocument(std::string text, std::string where, std::string file, size_t max_bytes);

  const nlohmann::json& root() const { return root_; }
  // Throws   FormatError `<where>.<reason>` with the line of the last key on `path`.
  [[noreturn]] void fail(std::string_view reason, const std::vector<std::string>& path,
                         const std::string& message) const;

 private:
  std::string text_;
  std::string where_;
  std::string file_;
  nlohmann::json root_;
};

// One object of it. All members throw FormatError `<where>.{type,missing-key,unknown-key,value}`.
class StrictObject {
 public:
  // The outermost object, which may have these keys alone.
  StrictObject(const StrictDocument& document, std::initializer_list<const char*> keys);

  // False for null too, as protobuf reads it.
  bool has(const char* key) const;
  std::string text(const char* key) const;
  // `fallback` when the key is absent.
  std::string text_or(const char* key, const std::string& fallback) const;
  int64_t whole_number(const char* key) const;
  std::vector<std::string> texts(const char* key) const;
  // Empty when the key is absent.
  std::vector<std::string> texts_or_none(const char* key) const;
  // Whole numbers as protobuf writes them in JSON: decimal digits in a text, below 2^63.
  uint64_t decimal(const char* key) const;
  // Standard base64 with padding, one spelling per value; decoded.
  std::string bytes(const char* key) const;
  std::vector<std::string> bytes_list(const char* key) const;
  StrictObject object(const char* key, std::initializer_list<const char*> keys) const;
  std::vector<StrictObject> objects(const char* key, std::initializer_list<const char*> keys) const;
  // Members of an object whose keys are names of the writer's choosing, each an object.
  void each_object(const char* key, std::initializer_list<const char*> keys,
                   const std::function<void(const std::string&, const StrictObject&)>& visit) const;

  // Throws   FormatError `<where>.<reason>` with the line of `key`.
  [[noreturn]] void fail(std::string_view reason, const char* key,
                         const std::string& message) const;

 private:
  StrictObject(const StrictDocument& document, const nlohmann::json& value,
               std::vector<std::string> path, const std::vector<const char*>& keys);
  const nlohmann::json& need(const char* key) const;
  const std::string& text_of(const nlohmann::json& value, const char* key) const;
  std::vector<std::string> path_to(const std::string& key) const;

  const StrictDocument* document_;
  const nlohmann::json* value_;
  std::vector<std::string> path_;
};

}  // namespace graft::trust
