// The base of every module that owns weights. Modules are built without memory (meta tensors that
// know shape alone); a checkpoint's tensors are put in afterwards, so no weight exists twice.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include <torch/nn/module.h>

namespace graft::layers {
class PackedWeight;
}

namespace graft::nn {

class Block : public torch::nn::Module {
 public:
  // Puts `value` in as weight `name`; the shape must be the declared one.
  // Throws   InternalError when `name` is not declared or the shapes differ.
  void assign_weight(const std::string& name, at::Tensor value);

  // Whether weight `name` may stay in packed blocks.
  virtual bool takes_packed(const std::string& name) const;
  // Puts `value` in the place of weight `name`, which then is no parameter of the module any more.
  // Throws   InternalError when the block does not take it, or shapes differ.
  virtual void assign_packed(const std::string& name,
                             std::shared_ptr<const layers::PackedWeight> value);
  // What assign_packed() put in; null: nothing.
  virtual const std::shared_ptr<const layers::PackedWeight>& packed_weight() const;

 protected:
  // Declares weight `name` of `shape`; `member` follows every later assignment.
  void declare_weight(const std::string& name, at::IntArrayRef shape, at::Tensor& member);

  // Takes weight `name` out of the module again: a packed one stands for it.
  // Throws   InternalError when the packed weight has another shape.
  void replace_weight(const std::string& name, const layers::PackedWeight& value);

  template <typename T, typename... Args>
  std::shared_ptr<T> add(const std::string& name, Args&&... args) {
    return register_module(name, std::make_shared<T>(std::forward<Args>(args)...));
  }

 private:
  std::map<std::string, at::Tensor*> members_;
};

// Children named `0`, `1`, …, as torch.nn.ModuleList names them.
template <typename T>
class BlockList : public torch::nn::Module {
 public:
  // Makes the next child, a T or a class derived from it.
  template <typename U = T, typename... Args>
  void append(Args&&... args) {
    items_.push_back(register_module(std::to_string(items_.size()),
                                     std::make_shared<U>(std::forward<Args>(args)...)));
  }
  const std::vector<std::shared_ptr<T>>& items() const { return items_; }

 private:
  std::vector<std::shared_ptr<T>> items_;
};

// One declared weight of a module tree, under its state_dict key.
struct WeightSlot {
  std::string key;
  std::vector<int64_t> shape;
  Block* owner = nullptr;
  std::string name;  // within the owner
};

// The packed weights of a module tree, under the state_dict keys that their values would have.
std::vector<std::pair<std::string, std::shared_ptr<const layers::PackedWeight>>>
list_packed_weights(const torch::nn::Module& root);

// Bytes of their blocks; one that two modules share counts once.
size_t packed_bytes(const torch::nn::Module& root);

// Lists every weight that `root` and its children declare, in registration order.
std::vector<WeightSlot> list_weights(torch::nn::Module& root);

}  // namespace graft::nn
