#include "graft/io/gguf.h"

#include <fmt/format.h>

#include "graft/core/error.h"
#include "graft/io/excerpt.h"

namespace graft::io {

const GgmlTypeInfo& info(GgmlType type) {
  static const std::unordered_map<uint32_t, GgmlTypeInfo> kInfos = {
      {0, {"F32", 1, 4}},       {1, {"F16", 1, 2}},       {2, {"Q4_0", 32, 18}},
      {3, {"Q4_1", 32, 20}},    {6, {"Q5_0", 32, 22}},    {7, {"Q5_1", 32, 24}},
      {8, {"Q8_0", 32, 34}},    {12, {"Q4_K", 256, 144}}, {13, {"Q5_K", 256, 176}},
      {14, {"Q6_K", 256, 210}}, {30, {"BF16", 1, 2}},
  };
  return kInfos.at(static_cast<uint32_t>(type));
}

int64_t GgufTensor::num_elements() const {
  int64_t count = 1;
  for (const int64_t size : shape) {
    count *= size;
  }
  return count;
}

const GgufTensor* GgufFile::find(std::string_view name) const {
  const auto found = tensor_index_.find(name);
  return found == tensor_index_.end() ? nullptr : &tensors_[found->second];
}

bool GgufFile::has(std::string_view key) const { return metadata_index_.contains(key); }

const GgufValue& GgufFile::value(std::string_view key) const {
  const auto found = metadata_index_.find(key);
  if (found == metadata_index_.end()) {
    throw NotFound(
        "io.gguf", "metadata-missing",
        fmt::format("`{}`: expected metadata key `{}`, got none", path().string(), excerpt(key)));
  }
  return metadata_[found->second].second;
}

uint64_t GgufFile::offset_of(std::string_view key) const {
  value(key);  // throws where there is none
  return metadata_offsets_[metadata_index_.at(key)];
}

void GgufFile::throw_type(std::string_view key, const char* expected) const {
  throw FormatError("io.gguf", "metadata-type",
                    fmt::format("`{}`: at offset {}: metadata `{}`: expected {}, got another type",
                                path().string(), offset_of(key), excerpt(key), expected));
}

int64_t GgufFile::integer(std::string_view key) const {
  const GgufValue& found = value(key);
  if (const auto* number = std::get_if<int64_t>(&found)) {
    return *number;
  }
  if (const auto* number = std::get_if<uint64_t>(&found);
      number != nullptr && *number <= INT64_MAX) {
    return static_cast<int64_t>(*number);
  }
  throw_type(key, "a whole number");
}

double GgufFile::real(std::string_view key) const {
  if (const auto* number = std::get_if<double>(&value(key))) {
    return *number;
  }
  const GgufValue& found = value(key);
  if (const auto* number = std::get_if<int64_t>(&found)) {
    return static_cast<double>(*number);
  }
  if (const auto* number = std::get_if<uint64_t>(&found)) {
    return static_cast<double>(*number);
  }
  throw_type(key, "a number");
}

bool GgufFile::boolean(std::string_view key) const {
  if (const auto* flag = std::get_if<bool>(&value(key))) {
    return *flag;
  }
  throw_type(key, "a boolean");
}

const std::string& GgufFile::text(std::string_view key) const {
  if (const auto* text = std::get_if<std::string>(&value(key))) {
    return *text;
  }
  throw_type(key, "a text");
}

template <typename T>
const T& GgufFile::array(std::string_view key, const char* expected) const {
  if (const auto* array = std::get_if<GgufArray>(&value(key))) {
    if (const auto* items = std::get_if<T>(array)) {
      return *items;
    }
  }
  throw_type(key, expected);
}

const std::vector<std::string_view>& GgufFile::texts(std::string_view key) const {
  return array<std::vector<std::string_view>>(key, "an array of texts");
}

const std::vector<double>& GgufFile::reals(std::string_view key) const {
  return array<std::vector<double>>(key, "an array of floating-point numbers");
}

std::vector<int64_t> GgufFile::integers(std::string_view key) const {
  const auto* array = std::get_if<GgufArray>(&value(key));
  if (array == nullptr) {
    throw_type(key, "an array of whole numbers");
  }
  if (const auto* items = std::get_if<std::vector<int64_t>>(array)) {
    return *items;
  }
  const auto* items = std::get_if<std::vector<uint64_t>>(array);
  if (items == nullptr) {
    throw_type(key, "an array of whole numbers");
  }
  std::vector<int64_t> result;
  result.reserve(items->size());
  for (const uint64_t item : *items) {
    if (item > INT64_MAX) {
      throw_type(key, "whole numbers below 2^63");
    }
    result.push_back(static_cast<int64_t>(item));
  }
  return result;
}

}  // namespace graft::io
