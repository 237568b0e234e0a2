// The safetensors format: an 8-byte header length, a JSON header, and tensors one after the other.
// Reading maps the file and copies nothing; every claim of the header is checked before it is used.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "graft/io/mapped_file.h"
#include "graft/io/scalar_type.h"

namespace graft::io {

// A tensor inside a mapped file, or one that is to be written. Row-major, little-endian.
struct TensorView {
  std::string name;
  ScalarType dtype = ScalarType::kF32;
  std::vector<int64_t> shape;
  std::span<const std::byte> bytes;
};

class SafetensorsFile {
 public:
  // Maps and checks a file.
  // Throws   NotFound; FormatError `io.safetensors.<reason>`: too-short, header-length,
  // header-json,
  //          duplicate-key, json-limits, offsets, shape, dtype, layout, coverage, limits. Each
  //          names file, tensor and offset.
  static SafetensorsFile open(const std::filesystem::path& path);

  SafetensorsFile(SafetensorsFile&&) = default;
  SafetensorsFile& operator=(SafetensorsFile&&) = default;

  const std::filesystem::path& path() const { return file_->path(); }
  // Keeps the bytes of every TensorView valid.
  const std::shared_ptr<const MappedFile>& file() const { return file_; }
  // In the order of their bytes.
  const std::vector<TensorView>& tensors() const { return tensors_; }
  // Null when there is no tensor of that name.
  const TensorView* find(std::string_view name) const;
  const std::map<std::string, std::string>& metadata() const { return metadata_; }

 private:
  SafetensorsFile() = default;

  std::shared_ptr<const MappedFile> file_;
  std::vector<TensorView> tensors_;
  std::unordered_map<std::string_view, size_t> index_;
  std::map<std::string, std::string> metadata_;
};

// Writes tensors as the reference implementation does: larger element types first, then by name,
// header padded to 8 bytes. The file appears under its name only when it is whole. Throws
// InvalidArgument when a tensor's bytes do not match its shape; Error `io.safetensors.write`.
void write_safetensors(const std::filesystem::path& path, std::vector<TensorView> tensors,
                       const std::map<std::string, std::string>& metadata = {});

}  // namespace graft::io
