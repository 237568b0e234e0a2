#include "graft/nn/block.h"

#include <set>

#include <fmt/format.h>

#include "graft/core/error.h"
#include "graft/layers/packed_weight.h"

namespace graft::nn {

void Block::declare_weight(const std::string& name, at::IntArrayRef shape, at::Tensor& member) {
  const auto options = at::TensorOptions().device(at::kMeta).dtype(at::kFloat);
  member = register_parameter(name, at::empty(shape, options), /*requires_grad=*/false);
  members_[name] = &member;
}

void Block::assign_weight(const std::string& name, at::Tensor value) {
  const auto found = members_.find(name);
  if (found == members_.end() || found->second->sizes() != value.sizes()) {
    throw InternalError("nn.block", "assign",
                        fmt::format("`{}`: no weight of that name and shape", name));
  }
  // set_data cannot turn a meta tensor into a real one, so the dictionary's entry is replaced.
  parameters_[name] = value;
  *found->second = std::move(value);
}

bool Block::takes_packed(const std::string&) const { return false; }

void Block::assign_packed(const std::string& name, std::shared_ptr<const layers::PackedWeight>) {
  throw InternalError("nn.block", "assign-packed",
                      fmt::format("`{}`: the block takes no packed weight", name));
}

const std::shared_ptr<const layers::PackedWeight>& Block::packed_weight() const {
  static const std::shared_ptr<const layers::PackedWeight> none;
  return none;
}

void Block::replace_weight(const std::string& name, const layers::PackedWeight& value) {
  const auto found = members_.find(name);
  const std::vector<int64_t> shape = {value.rows(), value.columns()};
  if (found == members_.end() || found->second->sizes() != shape) {
    throw InternalError("nn.block", "assign-packed",
                        fmt::format("`{}`: no weight of that name and shape", name));
  }
  parameters_.erase(name);
  *found->second = at::Tensor();
  members_.erase(found);
}

std::vector<std::pair<std::string, std::shared_ptr<const layers::PackedWeight>>>
list_packed_weights(const torch::nn::Module& root) {
  std::vector<std::pair<std::string, std::shared_ptr<const layers::PackedWeight>>> found;
  for (const auto& module : root.named_modules()) {
    const auto* block = dynamic_cast<const Block*>(module.value().get());
    if (block != nullptr && block->packed_weight() != nullptr) {
      found.emplace_back(module.key() + ".weight", block->packed_weight());
    }
  }
  return found;
}

size_t packed_bytes(const torch::nn::Module& root) {
  std::set<const layers::PackedWeight*> seen;
  size_t bytes = 0;
  for (const auto& [key, weight] : list_packed_weights(root)) {
    bytes += seen.insert(weight.get()).second ? weight->size_bytes() : 0;
  }
  return bytes;
}

std::vector<WeightSlot> list_weights(torch::nn::Module& root) {
  std::vector<WeightSlot> slots;
  for (const auto& module : root.named_modules()) {
    auto* block = dynamic_cast<Block*>(module.value().get());
    if (block == nullptr) {
      continue;
    }
    for (const auto& weight : block->named_parameters(/*recurse=*/false)) {
      slots.push_back({module.key().empty() ? weight.key() : module.key() + "." + weight.key(),
                       weight.value().sizes().vec(), block, weight.key()});
    }
  }
  return slots;
}

}  // namespace graft::nn
