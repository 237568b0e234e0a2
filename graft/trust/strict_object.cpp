#include "graft/trust/strict_object.h"

#include <algorithm>
#include <charconv>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "graft/core/error.h"
#include "graft/io/excerpt.h"
#include "graft/io/json.h"
#include "graft/trust/encoding.h"

namespace graft::trust {

namespace {

using nlohmann::json;

constexpr size_t kMaxDepth = 16;

}  // namespace

StrictDocument::StrictDocument(std::string text, std::string where, std::string file,
                               size_t max_bytes)
    : text_(std::move(text)),
      where_(std::move(where)),
      file_(std::move(file)),
      root_(
          io::parse_json(text_, where_, file_, {.max_bytes = max_bytes, .max_depth = kMaxDepth})) {}

void StrictDocument::fail(std::string_view reason, const std::vector<std::string>& path,
                          const std::string& message) const {
  const std::vector<std::string_view> keys(path.begin(), path.end());
  const size_t at = io::offset_of(text_, keys);
  const auto line = 1 + std::count(text_.begin(), text_.begin() + static_cast<ptrdiff_t>(at), '\n');
  throw FormatError(where_, reason, fmt::format("`{}`: line {}: {}", file_, line, message));
}

StrictObject::StrictObject(const StrictDocument& document, std::initializer_list<const char*> keys)
    : StrictObject(document, document.root(), {}, keys) {}

StrictObject::StrictObject(const StrictDocument& document, const json& value,
                           std::vector<std::string> path, const std::vector<const char*>& keys)
    : document_(&document), value_(&value), path_(std::move(path)) {
  if (!value.is_object()) {
    document_->fail("type", path_, fmt::format("`{}`: expected an object", fmt::join(path_, ".")));
  }
  for (const auto& [key, member] : value.items()) {
    const auto is_key = [&name = key](const char* known) { return name == known; };
    if (std::none_of(keys.begin(), keys.end(), is_key)) {
      document_->fail(
          "unknown-key", path_to(key),
          fmt::format("expected one of {}, got `{}`", fmt::join(keys, ", "), io::excerpt(key)));
    }
  }
}

std::vector<std::string> StrictObject::path_to(const std::string& key) const {
  auto path = path_;
  path.push_back(key);
  return path;
}

void StrictObject::fail(std::string_view reason, const char* key,
                        const std::string& message) const {
  document_->fail(reason, path_to(key), fmt::format("`{}`: {}", key, message));
}

bool StrictObject::has(const char* key) const {
  const auto found = value_->find(key);
  return found != value_->end() && !found->is_null();
}

const json& StrictObject::need(const char* key) const {
  const auto found = value_->find(key);
  if (found == value_->end()) {
    document_->fail("missing-key", path_, fmt::format("expected key `{}`, got none", key));
  }
  return *found;
}

const std::string& StrictObject::text_of(const json& value, const char* key) const {
  if (!value.is_string()) {
    fail("type", key, "expected a text");
  }
  return value.get_ref<const std::string&>();
}

std::string StrictObject::text(const char* key) const { return text_of(need(key), key); }

std::string StrictObject::text_or(const char* key, const std::string& fallback) const {
  return has(key) ? text(key) : fallback;
}

int64_t StrictObject::whole_number(const char* key) const {
  const json& value = need(key);
  if (!value.is_number_unsigned() || value.get<uint64_t>() > INT64_MAX) {
    fail("type", key, "expected a whole number from 0");
  }
  return value.get<int64_t>();
}

std::vector<std::string> StrictObject::texts(const char* key) const {
  const json& list = need(key);
  if (!list.is_array()) {
    fail("type", key, "expected an array of texts");
  }
  std::vector<std::string> result;
  for (const json& item : list) {
    result.push_back(text_of(item, key));
  }
  return result;
}

std::vector<std::string> StrictObject::texts_or_none(const char* key) const {
  return has(key) ? texts(key) : std::vector<std::string>{};
}

uint64_t StrictObject::decimal(const char* key) const {
  const std::string digits = text(key);
  int64_t number = 0;
  const auto [end, status] = std::from_chars(digits.data(), digits.data() + digits.size(), number);
  if (status != std::errc() || end != digits.data() + digits.size() || number < 0 ||
      std::to_string(number) != digits) {
    fail("value", key,
         fmt::format("expected a whole number from 0, got `{}`", io::excerpt(digits)));
  }
  return static_cast<uint64_t>(number);
}

std::string StrictObject::bytes(const char* key) const {
  auto decoded = decode_base64(text(key));
  if (!decoded) {
    fail("value", key, "expected standard base64 with padding");
  }
  return *std::move(decoded);
}

std::vector<std::string> StrictObject::bytes_list(const char* key) const {
  std::vector<std::string> result;
  for (const std::string& item : texts(key)) {
    auto decoded = decode_base64(item);
    if (!decoded) {
      fail("value", key, "expected standard base64 with padding in every item");
    }
    result.push_back(*std::move(decoded));
  }
  return result;
}

StrictObject StrictObject::object(const char* key, std::initializer_list<const char*> keys) const {
  return {*document_, need(key), path_to(key), keys};
}

std::vector<StrictObject> StrictObject::objects(const char* key,
                                                std::initializer_list<const char*> keys) const {
  const json& list = need(key);
  if (!list.is_array()) {
    fail("type", key, "expected an array of objects");
  }
  std::vector<StrictObject> result;
  for (const json& item : list) {
    result.push_back(StrictObject(*document_, item, path_to(key), keys));
  }
  return result;
}

void StrictObject::each_object(
    const char* key, std::initializer_list<const char*> keys,
    const std::function<void(const std::string&, const StrictObject&)>& visit) const {
  const json& members = need(key);
  if (!members.is_object()) {
    fail("type", key, "expected an object");
  }
  for (const auto& [name, member] : members.items()) {
    auto path = path_to(key);
    path.push_back(name);
    visit(name, StrictObject(*document_, member, std::move(path), keys));
  }
}

}  // namespace graft::trust
