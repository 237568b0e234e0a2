// From a checkpoint's tensors to a model's weights.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include <ATen/ATen.h>

namespace graft::layers {
class PackedWeight;
}

namespace graft::models {

class DecoderForCausalLM;

struct StoredTensor {
  std::string key;  // as in the model's state_dict
  std::vector<int64_t> shape;
};

// A checkpoint, whatever its format, seen through the model's own names.
class WeightSource {
 public:
  virtual ~WeightSource() = default;

  virtual std::vector<StoredTensor> list() const = 0;
  // The tensor under `key`. Aliases the file's mapping where device and dtype allow it.
  virtual at::Tensor load(const std::string& key, at::ScalarType dtype, at::Device device) = 0;
  // The tensor under `key` in its packed blocks, for products on the device; null where it is stored otherwise.
  virtual std::shared_ptr<const layers::PackedWeight> load_packed(const std::string&, at::Device) {
    return nullptr;
  }
  // The floating dtype that most of the file is stored in; float32 for quantized files.
  virtual at::ScalarType stored_dtype() const = 0;
  // Names the file or folder in messages.
  virtual std::string where() const = 0;
};

// Called after each tensor: how many are loaded, and of how many.
using LoadProgress = std::function<void(int64_t done, int64_t total)>;

struct WeightOptions {
  at::ScalarType dtype = at::kFloat;
  at::Device device = at::kCPU;
  // Weights in memory of their own and with gradients, for training.
  bool trainable = false;
  // Matrices that are stored in packed blocks stay so.
  bool packed = false;
  LoadProgress progress;
};

// Fills every weight of `model`.
// Throws   FormatError once, naming every missing, surplus and mis-shaped tensor, before any is
// read.
void load_weights(DecoderForCausalLM& model, WeightSource& source, const WeightOptions& options);

}  // namespace graft::models
