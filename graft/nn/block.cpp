#include "graft/nn/block.h"

#include <fmt/format.h>

#include "graft/core/error.h"

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
