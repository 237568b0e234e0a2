#include "graft/layers/packed_weight.h"

#include <cstring>
#include <optional>

#include <ATen/Parallel.h>
#include <fmt/format.h>

#include "graft/core/error.h"
#include "graft/io/dequantize.h"

namespace graft::layers {

namespace {

// Elements that one task of the thread pool unpacks: enough work to be worth a task.
constexpr int64_t kElementsPerTask = 1 << 16;

}  // namespace

bool PackedWeight::is_packed(io::GgmlType type) { return io::info(type).block_elements > 1; }

PackedWeight::PackedWeight(Source source) : source_(std::move(source)) {
  const io::GgmlTypeInfo& type = io::info(source_.type);
  const int64_t blocks = source_.columns / type.block_elements * source_.rows;
  if (source_.columns % type.block_elements != 0 ||
      static_cast<size_t>(blocks) * type.block_bytes != source_.bytes.size()) {
    throw InternalError("layers.packed-weight", "size",
                        fmt::format("expected blocks of {} for [{}, {}], got {} bytes", type.name,
                                    source_.rows, source_.columns, source_.bytes.size()));
  }
}

int64_t PackedWeight::stored_row(int64_t row) const {
  if (source_.interleaved_heads == 0) {
    return row;
  }
  const int64_t head_rows = source_.rows / source_.interleaved_heads, half = head_rows / 2;
  const int64_t in_head = row % head_rows;
  return row - in_head + in_head % half * 2 + in_head / half;
}

std::span<const std::byte> PackedWeight::row_bytes(int64_t row) const {
  const size_t size = source_.bytes.size() / static_cast<size_t>(source_.rows);
  return source_.bytes.subspan(static_cast<size_t>(stored_row(row)) * size, size);
}

at::Tensor PackedWeight::blocks() const {
  const auto size = static_cast<int64_t>(source_.bytes.size());
  if (source_.interleaved_heads == 0) {
    // Nobody writes to a weight in packed blocks.
    return at::from_blob(
        const_cast<std::byte*>(source_.bytes.data()), {size}, [owner = source_.owner](void*) {},
        at::TensorOptions().dtype(at::kByte));
  }
  at::Tensor copy = at::empty({size}, at::TensorOptions().dtype(at::kByte));
  auto* to = copy.data_ptr<uint8_t>();
  for (int64_t row = 0; row < source_.rows; ++row) {
    const auto bytes = row_bytes(row);
    std::memcpy(to + static_cast<size_t>(row) * bytes.size(), bytes.data(), bytes.size());
  }
  return copy;
}

template <typename T>
void PackedWeight::unpack(const int64_t* ids, int64_t count, T* out) const {
  const int64_t columns = source_.columns;
  at::parallel_for(0, count, kElementsPerTask / (columns + 1) + 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      io::dequantize(source_.type, row_bytes(ids == nullptr ? i : ids[i]),
                     std::span<T>(out + i * columns, static_cast<size_t>(columns)));
    }
  });
}

at::Tensor PackedWeight::unpack_rows(const int64_t* ids, int64_t count,
                                     at::ScalarType dtype) const {
  const bool direct = dtype == at::kBFloat16;
  at::Tensor out = at::empty({count, source_.columns},
                             at::TensorOptions().dtype(direct ? at::kBFloat16 : at::kFloat));
  if (direct) {
    unpack(ids, count, reinterpret_cast<uint16_t*>(out.data_ptr<at::BFloat16>()));
  } else {
    unpack(ids, count, out.data_ptr<float>());
  }
  return out.to(dtype);
}

at::Tensor PackedWeight::unpacked(at::ScalarType dtype) const {
  return unpack_rows(nullptr, source_.rows, dtype);
}

at::Tensor PackedWeight::unpacked_rows(const at::Tensor& ids, at::ScalarType dtype) const {
  const at::Tensor flat = ids.contiguous();
  const auto* values = flat.const_data_ptr<int64_t>();
  for (int64_t i = 0; i < flat.numel(); ++i) {
    if (values[i] < 0 || values[i] >= source_.rows) {
      throw InvalidArgument(
          "layers.packed-weight", "row",
          fmt::format("ids: expected 0 to {}, got {}", source_.rows - 1, values[i]));
    }
  }
  c10::SmallVector<int64_t, 4> sizes(ids.sizes().begin(), ids.sizes().end());
  sizes.push_back(source_.columns);
  return unpack_rows(values, flat.numel(), dtype).view(sizes);
}

at::Tensor PackedWeight::layout(const std::string& name,
                                const std::function<at::Tensor()>& make) const {
  const std::lock_guard lock(mutex_);
  for (const auto& [known, tensor] : layouts_) {
    if (known == name) {
      return tensor;
    }
  }
  at::Tensor made = make();
  layouts_.emplace_back(name, made);
  if (source_.release) {
    source_.release();
  }
  return made;
}

}  // namespace graft::layers
