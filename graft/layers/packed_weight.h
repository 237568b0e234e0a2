// A weight matrix kept in the packed blocks of a GGUF file.
//
// The blocks stay in the file's pages. A kernel reads a layout that it makes of them once; then their
// pages go back to the system, and rows that an embedding looks up bring only their own in again.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <ATen/ATen.h>

#include "graft/io/gguf.h"

namespace graft::layers {

class PackedWeight {
 public:
  // Where the blocks lie: one row of the matrix after the other.
  struct Source {
    io::GgmlType type = io::GgmlType::kQ4_0;
    int64_t rows = 0;
    int64_t columns = 0;
    std::span<const std::byte> bytes;
    std::shared_ptr<const void> owner;  // keeps `bytes`
    // Gives the pages of `bytes` back once a kernel has its own layout; absent: they stay.
    std::function<void()> release;
    // Where products with it are made. Blocks stay in host memory; a kernel's layout lies there.
    at::Device device = at::kCPU;
    // Heads whose rows are stored with their two halves interleaved (llama.cpp's query and key
    // weights); 0: rows are stored in their order.
    int64_t interleaved_heads = 0;
  };

  // Whether a tensor of this type can be a packed weight: those with scales in blocks.
  static bool is_packed(io::GgmlType type);

  // Throws   InternalError `layers.packed-weight.size` when bytes and shape differ.
  explicit PackedWeight(Source source);

  io::GgmlType type() const { return source_.type; }
  at::Device device() const { return source_.device; }
  int64_t rows() const { return source_.rows; }
  int64_t columns() const { return source_.columns; }
  size_t size_bytes() const { return source_.bytes.size(); }

  // The blocks as uint8 [size_bytes], rows in the model's order: the file's own pages where they are
  // stored so, else a copy.
  at::Tensor blocks() const;
  // The values, [rows, columns] on the CPU.
  //
  // dtype    float32, bfloat16 or float16, rounded once from float32
  at::Tensor unpacked(at::ScalarType dtype) const;
  // The values of some rows, [ids..., columns] on the CPU.
  //
  // ids      int64 of any shape, on the CPU
  // Throws   InvalidArgument `layers.packed-weight.row` for an id that is no row.
  at::Tensor unpacked_rows(const at::Tensor& ids, at::ScalarType dtype) const;

  // What `make` gives, made once for each name and kept as long as the weight. Thread-safe.
  at::Tensor layout(const std::string& name, const std::function<at::Tensor()>& make) const;

 private:
  int64_t stored_row(int64_t row) const;
  std::span<const std::byte> row_bytes(int64_t row) const;
  template <typename T>
  void unpack(const int64_t* ids, int64_t count, T* out) const;
  at::Tensor unpack_rows(const int64_t* ids, int64_t count, at::ScalarType dtype) const;

  Source source_;
  mutable std::mutex mutex_;
  mutable std::vector<std::pair<std::string, at::Tensor>> layouts_;
};

}  // namespace graft::layers
