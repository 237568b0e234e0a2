#include "graft/io/safetensors.h"

#include <algorithm>
#include <cstring>
#include <fstream>

#include <fmt/format.h>

#include "graft/core/error.h"
#include "graft/io/json.h"

namespace graft::io {

namespace {

using nlohmann::json;

constexpr uint64_t kMaxHeaderBytes = 100'000'000;
constexpr size_t kMaxTensors = 1'000'000;
constexpr size_t kMaxRank = 16;
constexpr size_t kMaxNameBytes = 1024;

// Errors of one file.
class Report {
 public:
  explicit Report(const std::filesystem::path& path) : path_(path.string()) {}
  [[noreturn]] void fail(std::string_view reason, const std::string& text) const {
    throw FormatError("io.safetensors", reason, fmt::format("`{}`: {}", path_, text));
  }
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

void check_name(const std::string& name, const Report& report) {
  const bool has_control =
      std::any_of(name.begin(), name.end(), [](unsigned char c) { return c < 0x20 || c == 0x7f; });
  if (name.empty() || name.size() > kMaxNameBytes || has_control ||
      name.find("..") != std::string::npos) {
    report.fail(
        "limits",
        fmt::format(
            "tensor name: expected 1 to {} bytes without control characters and `..`, got {} bytes",
            kMaxNameBytes, name.size()));
  }
}

uint64_t unsigned_value(const json& value, std::string_view reason, const std::string& what,
                        const Report& report) {
  if (!value.is_number_unsigned()) {
    report.fail(reason, fmt::format("{}: expected a whole number from 0, got {}", what,
                                    value.dump().substr(0, 60)));
  }
  return value.get<uint64_t>();
}

std::vector<int64_t> parse_shape(const json& value, const std::string& name, const Report& report,
                                 uint64_t& num_elements) {
  if (!value.is_array() || value.size() > kMaxRank) {
    report.fail(
        value.is_array() ? "limits" : "shape",
        fmt::format("tensor `{}`: shape: expected an array of at most {} sizes", name, kMaxRank));
  }
  std::vector<int64_t> shape;
  num_elements = 1;
  for (const auto& entry : value) {
    const uint64_t size =
        unsigned_value(entry, "shape", fmt::format("tensor `{}`: shape", name), report);
    if (size > static_cast<uint64_t>(INT64_MAX) ||
        __builtin_mul_overflow(num_elements, size, &num_elements)) {
      report.fail("shape",
                  fmt::format("tensor `{}`: shape: expected a product below 2^64, got more", name));
    }
    shape.push_back(static_cast<int64_t>(size));
  }
  return shape;
}

TensorView parse_tensor(const std::string& name, const json& entry, std::span<const std::byte> data,
                        const Report& report) {
  check_name(name, report);
  const bool complete = entry.is_object() && entry.contains("dtype") && entry.contains("shape") &&
                        entry.contains("data_offsets");
  if (!complete || entry.size() != 3) {
    report.fail(
        "header-json",
        fmt::format("tensor `{}`: expected exactly the fields dtype, shape and data_offsets",
                    name));
  }
  TensorView tensor;
  tensor.name = name;
  const auto& dtype = entry["dtype"];
  const auto parsed =
      dtype.is_string() ? parse_scalar_type(dtype.get_ref<const std::string&>()) : std::nullopt;
  if (!parsed) {
    report.fail("dtype",
                fmt::format("tensor `{}`: dtype: expected a known type such as F32, got {}", name,
                            dtype.dump().substr(0, 60)));
  }
  tensor.dtype = *parsed;
  uint64_t num_bytes = 0;
  tensor.shape = parse_shape(entry["shape"], name, report, num_bytes);
  if (__builtin_mul_overflow(num_bytes, size_bytes(tensor.dtype), &num_bytes)) {
    report.fail("shape",
                fmt::format("tensor `{}`: shape: expected fewer than 2^64 bytes, got more", name));
  }
  const auto& offsets = entry["data_offsets"];
  if (!offsets.is_array() || offsets.size() != 2) {
    report.fail("offsets", fmt::format("tensor `{}`: data_offsets: expected two numbers", name));
  }
  const uint64_t begin =
      unsigned_value(offsets[0], "offsets", fmt::format("tensor `{}`: data_offsets", name), report);
  const uint64_t end =
      unsigned_value(offsets[1], "offsets", fmt::format("tensor `{}`: data_offsets", name), report);
  if (begin > end) {
    report.fail("offsets",
                fmt::format("tensor `{}`: data_offsets: expected begin <= end, got [{}, {}]", name,
                            begin, end));
  }
  if (end > data.size()) {
    report.fail(
        "coverage",
        fmt::format("tensor `{}`: data_offsets: expected an end within {} bytes of data, got {}",
                    name, data.size(), end));
  }
  if (end - begin != num_bytes) {
    report.fail(
        "shape",
        fmt::format("tensor `{}`: expected {} bytes for its shape and dtype, got {} at offset {}",
                    name, num_bytes, end - begin, begin));
  }
  tensor.bytes = data.subspan(begin, num_bytes);
  return tensor;
}

void check_layout(std::vector<TensorView>& tensors, std::span<const std::byte> data,
                  const Report& report) {
  std::sort(tensors.begin(), tensors.end(), [](const TensorView& a, const TensorView& b) {
    return a.bytes.data() != b.bytes.data() ? a.bytes.data() < b.bytes.data()
                                            : a.bytes.size() < b.bytes.size();
  });
  const std::byte* expected = data.data();
  for (const auto& tensor : tensors) {
    if (tensor.bytes.data() != expected) {
      report.fail("layout",
                  fmt::format("tensor `{}`: expected to begin at offset {}, got {}", tensor.name,
                              expected - data.data(), tensor.bytes.data() - data.data()));
    }
    expected += tensor.bytes.size();
  }
  if (expected != data.data() + data.size()) {
    report.fail(
        "coverage",
        fmt::format(
            "expected the file to end after the last tensor at data offset {}, got {} bytes more",
            expected - data.data(), data.data() + data.size() - expected));
  }
}

std::map<std::string, std::string> parse_metadata(const json& entry, const Report& report) {
  if (!entry.is_object()) {
    report.fail("header-json", "__metadata__: expected an object of texts");
  }
  std::map<std::string, std::string> metadata;
  for (const auto& [key, value] : entry.items()) {
    if (!value.is_string()) {
      report.fail("header-json",
                  fmt::format("__metadata__: `{}`: expected a text", key.substr(0, 100)));
    }
    metadata.emplace(key, value.get<std::string>());
  }
  return metadata;
}

json parse_header(std::string_view text, const Report& report) {
  try {
    return parse_json(text, "io.safetensors", report.path(),
                      {.max_bytes = kMaxHeaderBytes, .max_depth = 8});
  } catch (const FormatError& error) {
    if (error.code() == "io.safetensors.json") {
      throw FormatError("io.safetensors", "header-json",
                        std::string(error.what()).substr(sizeof("[io.safetensors] ") - 1));
    }
    throw;
  }
}

}  // namespace

SafetensorsFile SafetensorsFile::open(const std::filesystem::path& path) {
  SafetensorsFile result;
  result.file_ = MappedFile::open(path);
  const Report report(path);
  const auto bytes = result.file_->bytes();
  uint64_t header_bytes = 0;
  if (bytes.size() < sizeof(header_bytes)) {
    report.fail("too-short", fmt::format("at offset 0: expected 8 bytes of header length, got {}",
                                         bytes.size()));
  }
  std::memcpy(&header_bytes, bytes.data(), sizeof(header_bytes));
  if (header_bytes > kMaxHeaderBytes || header_bytes > bytes.size() - sizeof(header_bytes)) {
    report.fail(
        "header-length",
        fmt::format("at offset 0: expected a header of at most {} bytes in a file of {}, got {}",
                    kMaxHeaderBytes, bytes.size(), header_bytes));
  }
  const auto* text = reinterpret_cast<const char*>(bytes.data()) + sizeof(header_bytes);
  const json header = parse_header({text, header_bytes}, report);
  if (!header.is_object()) {
    report.fail("header-json", "header: expected an object");
  }
  if (header.size() > kMaxTensors) {
    report.fail("limits", fmt::format("header: expected at most {} tensors, got {}", kMaxTensors,
                                      header.size()));
  }
  const auto data = bytes.subspan(sizeof(header_bytes) + header_bytes);
  for (const auto& [name, entry] : header.items()) {
    if (name == "__metadata__") {
      result.metadata_ = parse_metadata(entry, report);
    } else {
      result.tensors_.push_back(parse_tensor(name, entry, data, report));
    }
  }
  check_layout(result.tensors_, data, report);
  for (size_t i = 0; i < result.tensors_.size(); ++i) {
    result.index_.emplace(result.tensors_[i].name, i);
  }
  return result;
}

const TensorView* SafetensorsFile::find(std::string_view name) const {
  const auto found = index_.find(name);
  return found == index_.end() ? nullptr : &tensors_[found->second];
}

void write_safetensors(const std::filesystem::path& path, std::vector<TensorView> tensors,
                       const std::map<std::string, std::string>& metadata) {
  std::sort(tensors.begin(), tensors.end(), [](const TensorView& a, const TensorView& b) {
    return a.dtype != b.dtype ? a.dtype > b.dtype : a.name < b.name;
  });
  nlohmann::ordered_json header = nlohmann::ordered_json::object();
  if (!metadata.empty()) {
    header["__metadata__"] = metadata;
  }
  uint64_t offset = 0;
  for (const auto& tensor : tensors) {
    uint64_t expected = size_bytes(tensor.dtype);
    for (const int64_t size : tensor.shape) {
      expected *= static_cast<uint64_t>(size);
    }
    if (expected != tensor.bytes.size()) {
      throw InvalidArgument("io.safetensors", "bytes",
                            fmt::format("tensor `{}`: expected {} bytes for its shape, got {}",
                                        tensor.name, expected, tensor.bytes.size()));
    }
    header[tensor.name] = {{"dtype", name(tensor.dtype)},
                           {"shape", tensor.shape},
                           {"data_offsets", {offset, offset + expected}}};
    offset += expected;
  }
  // The file is made beside and renamed: over a device (/dev/null) that would remove the device.
  if (std::filesystem::exists(path) && !std::filesystem::is_regular_file(path)) {
    throw InvalidArgument("io.safetensors", "not-a-file",
                          fmt::format("`{}`: expected a file or a new name", path.string()));
  }
  std::string text = header.dump();
  text.append((8 - text.size() % 8) % 8, ' ');
  const uint64_t header_bytes = text.size();
  const auto made = path.string() + ".tmp";
  {
    std::ofstream out(made, std::ios::binary);
    out.write(reinterpret_cast<const char*>(&header_bytes), sizeof(header_bytes));
    out.write(text.data(), static_cast<std::streamsize>(text.size()));
    for (const auto& tensor : tensors) {
      out.write(reinterpret_cast<const char*>(tensor.bytes.data()),
                static_cast<std::streamsize>(tensor.bytes.size()));
    }
    if (!out.flush()) {
      std::error_code ignored;
      std::filesystem::remove(made, ignored);
      throw Error("io.safetensors", "write",
                  fmt::format("`{}`: expected to write {} bytes, got an error of the file system",
                              path.string(), offset + text.size() + 8));
    }
  }
  std::filesystem::rename(made, path);
}

}  // namespace graft::io
