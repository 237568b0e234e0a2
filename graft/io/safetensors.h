// The safetensors format: an 8-byte header length, a JSON header, and tensors one after the other.
// Reading maps the file and copies nothing; every claim of the header is checked before it is used.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <optional>
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

// Bytes that a tensor of such a type and shape takes. Nothing when a size is negative, the product
// does not fit 64 bits, or the elements do not end on a whole byte.
std::optional<uint64_t> packed_size_bytes(ScalarType dtype, std::span<const int64_t> shape);

// Whether safetensors files may hold a tensor of that name: 1 to 1,024 bytes of UTF-8 without
// control characters and `..`, and not `__metadata__`.
bool is_tensor_name(std::string_view name);

class SafetensorsFile {
 public:
  // Maps and checks a file.
  //
  // Stricter than the reference reader: it refuses repeated names, unknown fields, metadata that is
  // null, names outside is_tensor_name, ranks above 16, and headers whose tree would take more than
  // 192 MiB (about 150,000 tensors). The values of BOOL tensors are left to who uses them.
  // Throws   NotFound `io.file.open`; FormatError `io.safetensors.<reason>`: too-short,
  //          header-length, header-json, duplicate-key, limits, dtype, shape, offsets, layout,
  //          coverage. Each names file, tensor and offset.
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

// Writes the bytes that the reference implementation writes: larger element types first, then by
// name, header padded to 8 bytes. The file appears under its name only when it is whole and on
// disk; who maps an older file of that name keeps it.
// Throws   InvalidArgument `io.safetensors.tensor` for a tensor whose name, shape or bytes do not
//          fit the format, or two of one name, `io.safetensors.not-a-file` for a device or folder;
//          NotFound `core.file.status` for a loop of links; Error `io.safetensors.write` with the
//          system's reason.
void write_safetensors(const std::filesystem::path& path, std::vector<TensorView> tensors,
                       const std::map<std::string, std::string>& metadata = {});

}  // namespace graft::io
