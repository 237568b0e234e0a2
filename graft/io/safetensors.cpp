#include "graft/io/safetensors.h"

#include <algorithm>
#include <cstring>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "graft/core/error.h"
#include "graft/io/excerpt.h"
#include "graft/io/json.h"

namespace graft::io {

namespace {

using nlohmann::json;

constexpr uint64_t kMaxHeaderBytes = 100'000'000;
constexpr size_t kMaxRank = 16;
constexpr size_t kMaxNameBytes = 1024;
constexpr size_t kMaxDepth = 8;
constexpr size_t kLengthBytes = sizeof(uint64_t);  // before the header

// Errors of one file. Offsets are those of the file.
class Report {
 public:
  explicit Report(const std::filesystem::path& path) : path_(path.string()) {}
  [[noreturn]] void fail(std::string_view reason, uint64_t offset, const std::string& text) const {
    throw FormatError("io.safetensors", reason,
                      fmt::format("`{}`: at offset {}: {}", path_, offset, text));
  }
  // Blames a key of the header.
  [[noreturn]] void fail_key(std::string_view reason, const std::vector<std::string_view>& keys,
                             const std::string& text) const {
    fail(reason, kLengthBytes + offset_of(header_, keys), text);
  }
  void set_header(std::string_view header) { header_ = header; }
  const std::string& path() const { return path_; }

 private:
  std::string path_;
  std::string_view header_;
};

// Errors of one tensor.
class TensorReport {
 public:
  TensorReport(const Report& file, std::string_view name) : file_(file), name_(name) {}
  [[noreturn]] void fail(std::string_view reason, std::string_view field,
                         const std::string& text) const {
    file_.fail_key(reason, {name_, field}, fmt::format("tensor `{}`: {}", excerpt(name_), text));
  }
  uint64_t whole_number(const json& value, std::string_view field) const {
    if (!value.is_number_unsigned()) {
      fail(field == "shape" ? "shape" : "offsets", field,
           fmt::format("{}: expected whole numbers from 0, got {}", field, describe(value)));
    }
    return value.get<uint64_t>();
  }

 private:
  const Report& file_;
  std::string_view name_;
};

std::vector<int64_t> parse_shape(const json& value, const TensorReport& report) {
  if (!value.is_array()) {
    report.fail("shape", "shape", fmt::format("shape: expected an array, got {}", describe(value)));
  }
  if (value.size() > kMaxRank) {
    report.fail(
        "limits", "shape",
        fmt::format("shape: expected at most {} dimensions, got {}", kMaxRank, value.size()));
  }
  std::vector<int64_t> shape;
  for (const auto& entry : value) {
    const uint64_t size = report.whole_number(entry, "shape");
    if (size > static_cast<uint64_t>(INT64_MAX)) {
      report.fail("shape", "shape", fmt::format("shape: expected sizes below 2^63, got {}", size));
    }
    shape.push_back(static_cast<int64_t>(size));
  }
  return shape;
}

ScalarType parse_dtype(const json& value, const TensorReport& report) {
  const auto type =
      value.is_string() ? parse_scalar_type(value.get_ref<const std::string&>()) : std::nullopt;
  if (!type) {
    report.fail(
        "dtype", "dtype",
        fmt::format("dtype: expected a known type such as F32 or BF16, got {}", describe(value)));
  }
  return *type;
}

// The tensor's part of the data, from two offsets that lie in order and inside it.
std::span<const std::byte> parse_offsets(const json& value, std::span<const std::byte> data,
                                         const TensorReport& report) {
  if (!value.is_array() || value.size() != 2) {
    report.fail("offsets", "data_offsets",
                fmt::format("data_offsets: expected two numbers, got {}", describe(value)));
  }
  const uint64_t begin = report.whole_number(value[0], "data_offsets");
  const uint64_t end = report.whole_number(value[1], "data_offsets");
  if (begin > end) {
    report.fail("offsets", "data_offsets",
                fmt::format("data_offsets: expected begin <= end, got [{}, {}]", begin, end));
  }
  if (end > data.size()) {
    report.fail("coverage", "data_offsets",
                fmt::format("data_offsets: expected an end within {} bytes of data, "
                            "got [{}, {}]",
                            data.size(), begin, end));
  }
  return data.subspan(begin, end - begin);
}

TensorView parse_tensor(const std::string& name, const json& entry, std::span<const std::byte> data,
                        const Report& file) {
  const TensorReport report(file, name);
  if (!is_tensor_name(name)) {
    report.fail("limits", "",
                fmt::format("name: expected 1 to {} bytes without control characters and "
                            "`..`, got another of {} bytes",
                            kMaxNameBytes, name.size()));
  }
  const bool complete = entry.is_object() && entry.contains("dtype") && entry.contains("shape") &&
                        entry.contains("data_offsets");
  if (!complete || entry.size() != 3) {
    report.fail("header-json", "",
                fmt::format("expected exactly the fields dtype, shape and data_offsets, got {}",
                            describe(entry)));
  }
  TensorView tensor;
  tensor.name = name;
  tensor.dtype = parse_dtype(entry["dtype"], report);
  tensor.shape = parse_shape(entry["shape"], report);
  tensor.bytes = parse_offsets(entry["data_offsets"], data, report);
  const auto expected = packed_size_bytes(tensor.dtype, tensor.shape);
  if (!expected) {
    const bool packed = size_bits(tensor.dtype) < 8;
    report.fail(packed ? "dtype" : "shape", "shape",
                fmt::format("shape [{}]: expected {}{} elements, got another count",
                            fmt::join(tensor.shape, ", "),
                            packed ? "whole bytes of packed " : "fewer than 2^64 bytes of ",
                            io::name(tensor.dtype)));
  }
  if (*expected != tensor.bytes.size()) {
    report.fail("shape", "data_offsets",
                fmt::format("data_offsets: expected {} bytes for its shape and dtype, got {}",
                            *expected, tensor.bytes.size()));
  }
  return tensor;
}

// Sorts by place and refuses overlaps, holes and bytes that belong to no tensor.
void check_layout(std::vector<TensorView>& tensors, std::span<const std::byte> data,
                  uint64_t data_start, const Report& report) {
  std::sort(tensors.begin(), tensors.end(), [](const TensorView& a, const TensorView& b) {
    return a.bytes.data() != b.bytes.data() ? a.bytes.data() < b.bytes.data()
                                            : a.bytes.size() < b.bytes.size();
  });
  const std::byte* expected = data.data();
  for (const auto& tensor : tensors) {
    if (tensor.bytes.data() != expected) {
      TensorReport(report, tensor.name)
          .fail("layout", "data_offsets",
                fmt::format("data_offsets: expected to begin at data offset {}, got {}",
                            expected - data.data(), tensor.bytes.data() - data.data()));
    }
    expected += tensor.bytes.size();
  }
  const std::byte* end = data.data() + data.size();
  if (expected != end) {
    report.fail("coverage", data_start + static_cast<uint64_t>(expected - data.data()),
                fmt::format("data: expected the file to end after the last tensor, at data offset "
                            "{}, got {} bytes more",
                            expected - data.data(), end - expected));
  }
}

std::map<std::string, std::string> parse_metadata(const json& entry, const Report& report) {
  if (!entry.is_object()) {
    report.fail_key(
        "header-json", {"__metadata__"},
        fmt::format("__metadata__: expected an object of texts, got {}", describe(entry)));
  }
  std::map<std::string, std::string> metadata;
  for (const auto& [key, value] : entry.items()) {
    if (!value.is_string()) {
      report.fail_key("header-json", {"__metadata__", key},
                      fmt::format("__metadata__: `{}`: expected a text, got {}", excerpt(key),
                                  describe(value)));
    }
    metadata.emplace(key, value.get_ref<const std::string&>());
  }
  return metadata;
}

// The header as JSON, with the reasons that this format uses.
json parse_header(std::string_view text, const Report& report) {
  constexpr std::string_view kWhere = "io.safetensors";
  try {
    return parse_json(
        text, kWhere, report.path(),
        {.max_bytes = kMaxHeaderBytes, .max_depth = kMaxDepth, .first_byte = kLengthBytes});
  } catch (const FormatError& error) {
    std::string_view reason = std::string_view(error.code()).substr(kWhere.size() + 1);
    reason = reason == "json" ? "header-json" : reason == "json-limits" ? "limits" : reason;
    const size_t prefix = kWhere.size() + 3;  // `[io.safetensors] `
    throw FormatError(kWhere, reason, "header of " + std::string(error.what()).substr(prefix));
  }
}

// The header's text; `bytes` is the whole file.
std::string_view header_text(std::span<const std::byte> bytes, const Report& report) {
  uint64_t length = 0;
  if (bytes.size() < sizeof(length)) {
    report.fail("too-short", 0,
                fmt::format("header length: expected 8 bytes, got {}", bytes.size()));
  }
  std::memcpy(&length, bytes.data(), sizeof(length));
  if (length > kMaxHeaderBytes || length > bytes.size() - sizeof(length)) {
    report.fail("header-length", 0,
                fmt::format("header length: expected a header of at most {} bytes "
                            "inside a file of {}, got a length of {}",
                            kMaxHeaderBytes, bytes.size(), length));
  }
  return {reinterpret_cast<const char*>(bytes.data()) + sizeof(length), length};
}

}  // namespace

bool is_tensor_name(std::string_view name) {
  return !name.empty() && name.size() <= kMaxNameBytes && name.find("..") == name.npos &&
         std::none_of(name.begin(), name.end(),
                      [](unsigned char c) { return c < 0x20 || c == 0x7f; }) &&
         name != "__metadata__" && is_utf8(name);
}

std::optional<uint64_t> packed_size_bytes(ScalarType dtype, std::span<const int64_t> shape) {
  uint64_t bits = 1;
  for (const int64_t size : shape) {
    if (size < 0 || __builtin_mul_overflow(bits, static_cast<uint64_t>(size), &bits)) {
      return std::nullopt;
    }
  }
  if (__builtin_mul_overflow(bits, size_bits(dtype), &bits) || bits % 8 != 0) {
    return std::nullopt;
  }
  return bits / 8;
}

SafetensorsFile SafetensorsFile::open(const std::filesystem::path& path) {
  SafetensorsFile result;
  result.file_ = MappedFile::open(path);
  Report report(path);
  const auto bytes = result.file_->bytes();
  const auto text = header_text(bytes, report);
  report.set_header(text);
  const json header = parse_header(text, report);
  if (!header.is_object()) {
    report.fail("header-json", kLengthBytes,
                fmt::format("header: expected an object, got {}", describe(header)));
  }
  const auto data = bytes.subspan(kLengthBytes + text.size());
  for (const auto& [name, entry] : header.items()) {
    if (name == "__metadata__") {
      result.metadata_ = parse_metadata(entry, report);
    } else {
      result.tensors_.push_back(parse_tensor(name, entry, data, report));
    }
  }
  check_layout(result.tensors_, data, kLengthBytes + text.size(), report);
  for (size_t i = 0; i < result.tensors_.size(); ++i) {
    result.index_.emplace(result.tensors_[i].name, i);
  }
  return result;
}

const TensorView* SafetensorsFile::find(std::string_view name) const {
  const auto found = index_.find(name);
  return found == index_.end() ? nullptr : &tensors_[found->second];
}

}  // namespace graft::io
