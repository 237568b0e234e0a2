#include <array>
#include <cstdint>
#include <utility>

#include <fmt/format.h>

#include "graft/core/error.h"
#include "graft/io/checkpoint.h"
#include "graft/models/checkpoint_weights.h"

namespace graft::models {

namespace {

std::optional<at::ScalarType> torch_dtype(io::ScalarType type) {
  switch (type) {
    case io::ScalarType::kF64:
      return at::kDouble;
    case io::ScalarType::kF32:
      return at::kFloat;
    case io::ScalarType::kF16:
      return at::kHalf;
    case io::ScalarType::kBF16:
      return at::kBFloat16;
    default:
      return std::nullopt;
  }
}

class SafetensorsWeights final : public WeightSource {
 public:
  explicit SafetensorsWeights(const std::filesystem::path& folder)
      : checkpoint_(io::Checkpoint::open(folder)) {}

  std::vector<StoredTensor> list() const override {
    std::vector<StoredTensor> tensors;
    for (const io::SafetensorsFile& shard : checkpoint_.shards()) {
      for (const io::TensorView& tensor : shard.tensors()) {
        tensors.push_back({tensor.name, tensor.shape});
      }
    }
    return tensors;
  }

  at::Tensor load(const std::string& key, at::ScalarType dtype, at::Device device) override {
    const io::TensorView& stored = *checkpoint_.find(key);
    const auto& file = checkpoint_.shard_of(key).file();
    const auto stored_as = torch_dtype(stored.dtype);
    if (!stored_as) {
      throw IncompatibleError(
          "models.weights", "dtype",
          fmt::format(
              "`{}`: at offset {}: tensor `{}`: expected dtype F64, F32, F16 or BF16, got {}",
              file->path().string(), stored.bytes.data() - file->bytes().data(), key,
              io::name(stored.dtype)));
    }
    // The tensor points into the mapping and keeps it alive.
    auto* data = const_cast<std::byte*>(stored.bytes.data());
    const bool aligned = reinterpret_cast<uintptr_t>(data) % c10::elementSize(*stored_as) == 0;
    const auto options = at::TensorOptions().dtype(*stored_as);
    const at::Tensor mapped = aligned ? at::from_blob(
                                            data, stored.shape, [file](void*) {}, options)
                                      : at::from_blob(
                                            data, {static_cast<int64_t>(stored.bytes.size())},
                                            [file](void*) {}, at::TensorOptions().dtype(at::kByte))
                                            .clone()
                                            .view(*stored_as)
                                            .view(stored.shape);
    if (aligned && *stored_as == dtype && device.is_cpu()) {
      return mapped;
    }
    at::Tensor converted = mapped.to(at::TensorOptions().dtype(dtype).device(device));
    file->release(stored.bytes);
    return converted;
  }

  at::ScalarType stored_dtype() const override {
    std::array<uint64_t, 4> bytes = {};
    constexpr std::array kTypes = {at::kFloat, at::kBFloat16, at::kHalf, at::kDouble};
    size_t most = 0;
    for (const io::SafetensorsFile& shard : checkpoint_.shards()) {
      for (const io::TensorView& tensor : shard.tensors()) {
        for (size_t i = 0; i < kTypes.size(); ++i) {
          bytes[i] += torch_dtype(tensor.dtype) == kTypes[i] ? tensor.bytes.size() : 0;
          most = bytes[i] > bytes[most] ? i : most;
        }
      }
    }
    return kTypes[most];
  }

  std::string where() const override { return checkpoint_.folder().string(); }

 private:
  io::Checkpoint checkpoint_;
};

}  // namespace

std::unique_ptr<WeightSource> open_safetensors(const std::filesystem::path& folder) {
  return std::make_unique<SafetensorsWeights>(folder);
}

}  // namespace graft::models
