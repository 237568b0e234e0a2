// The base of every module that owns weights. Modules are built without memory (meta tensors that
// know shape alone); a checkpoint's tensors are put in afterwards, so no weight exists twice.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include <torch/nn/module.h>

namespace graft::nn {

class Block : public torch::nn::Module {
 public:
  // Puts `value` in as weight `name`; the shape must be the declared one.
  // Throws   InternalError when `name` is not declared or the shapes differ.
  void assign_weight(const std::string& name, at::Tensor value);

 protected:
  // Declares weight `name` of `shape`; `member` follows every later assignment.
  void declare_weight(const std::string& name, at::IntArrayRef shape, at::Tensor& member);

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

// Lists every weight that `root` and its children declare, in registration order.
std::vector<WeightSlot> list_weights(torch::nn::Module& root);

}  // namespace graft::nn
