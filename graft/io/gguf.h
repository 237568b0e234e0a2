// The GGUF format, versions 2 and 3, little-endian: typed metadata, then tensors, many of them in
// packed blocks. Reading maps the file and copies no tensor; every claim is checked before it is
// used.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <variant>
#include <vector>

#include "graft/io/mapped_file.h"

namespace graft::io {

// The tensor types that graft reads, with the numbers of the format.
enum class GgmlType : uint32_t {
  kF32 = 0,
  kF16 = 1,
  kQ4_0 = 2,
  kQ4_1 = 3,
  kQ5_0 = 6,
  kQ5_1 = 7,
  kQ8_0 = 8,
  kQ4_K = 12,
  kQ5_K = 13,
  kQ6_K = 14,
  kBF16 = 30,
};

struct GgmlTypeInfo {
  std::string_view name;   // `Q4_K`
  int64_t block_elements;  // elements of one block
  size_t block_bytes;
};

const GgmlTypeInfo& info(GgmlType type);

struct GgufTensor {
  std::string name;
  GgmlType type = GgmlType::kF32;
  std::vector<int64_t> shape;  // row-major: the file's dimensions reversed, the last is contiguous
  std::span<const std::byte> bytes;
  int64_t num_elements() const;
};

// A metadata array; texts are views into the file.
using GgufArray = std::variant<std::vector<int64_t>, std::vector<uint64_t>, std::vector<double>,
                               std::vector<bool>, std::vector<std::string_view>>;
using GgufValue = std::variant<int64_t, uint64_t, double, bool, std::string, GgufArray>;

class GgufFile {
 public:
  // Maps and checks a file: magic, counts, lengths, types, shapes and places, and budgets (8
  // million array items, 64 MiB of keys, names and texts) for what would take more memory than the
  // file. Tensors may leave gaps, but not overlap. Texts in arrays are any bytes, others are UTF-8.
  // Throws   NotFound `io.file.open`; FormatError `io.gguf.<reason>`: magic, version, count,
  // length,
  //          nesting, alignment, duplicate, name, shape, type, layout, metadata-type. Each names
  //          file, key or tensor, and the offset of the field that is wrong.
  static GgufFile open(const std::filesystem::path& path);
  GgufFile(GgufFile&&) = default;
  GgufFile& operator=(GgufFile&&) = default;

  const std::filesystem::path& path() const { return file_->path(); }
  const std::shared_ptr<const MappedFile>& file() const { return file_; }
  const std::vector<GgufTensor>& tensors() const { return tensors_; }
  const GgufTensor* find(std::string_view name) const;
  const std::vector<std::pair<std::string, GgufValue>>& metadata() const { return metadata_; }

  // Typed access. A missing key is NotFound `io.gguf.metadata-missing` (ask has() first); another
  // type than the one asked for is FormatError `io.gguf.metadata-type`, never a conversion.
  // Integers of either sign and width count as integers, when they fit.
  bool has(std::string_view key) const;
  // Where the entry begins in the file, for error texts.
  uint64_t offset_of(std::string_view key) const;
  int64_t integer(std::string_view key) const;
  double real(std::string_view key) const;
  bool boolean(std::string_view key) const;
  const std::string& text(std::string_view key) const;
  const std::vector<std::string_view>& texts(std::string_view key) const;
  std::vector<int64_t> integers(std::string_view key) const;
  const std::vector<double>& reals(std::string_view key) const;

 private:
  GgufFile() = default;
  const GgufValue& value(std::string_view key) const;
  template <typename T>
  const T& array(std::string_view key, const char* expected) const;
  [[noreturn]] void throw_type(std::string_view key, const char* expected) const;

  std::shared_ptr<const MappedFile> file_;
  std::vector<std::pair<std::string, GgufValue>> metadata_;
  std::vector<uint64_t> metadata_offsets_;  // where each entry begins in the file
  std::unordered_map<std::string_view, size_t> metadata_index_;
  std::vector<GgufTensor> tensors_;
  std::unordered_map<std::string_view, size_t> tensor_index_;
  friend class GgufReader;
};

}  // namespace graft::io
