#include "graft/layers/gradient.h"

#include <algorithm>
#include <memory>
#include <type_traits>

#include <ATen/core/grad_mode.h>
#include <fmt/format.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/csrc/autograd/saved_variable.h>

#include "graft/core/error.h"

namespace graft::layers {

namespace {

class KernelNode final : public torch::autograd::Node {
 public:
  KernelNode(std::string repository, const Tensors& saved, KernelBackward backward)
      : repository_(std::move(repository)), backward_(std::move(backward)) {
    for (const auto& tensor : saved) {
      saved_.emplace_back(tensor, /*is_output=*/false);
    }
  }

  torch::autograd::variable_list apply(torch::autograd::variable_list&& grads) override {
    if (at::GradMode::is_enabled()) {
      throw IncompatibleError(
          "layers.gradient", "second-derivative",
          fmt::format(
              "`{}`: expected a backward without create_graph (the kernel has a first derivative "
              "only), got one that records",
              repository_),
          "call graft::layers::unkernelize(model) where second derivatives are needed");
    }
    Tensors saved;
    for (const auto& variable : saved_) {
      saved.push_back(variable.unpack());
    }
    const bool any = std::any_of(grads.begin(), grads.end(),
                                 [](const at::Tensor& grad) { return grad.defined(); });
    return any ? backward_(saved, grads) : torch::autograd::variable_list(num_outputs());
  }

  void release_variables() override {
    for (auto& variable : saved_) {
      variable.reset_data();
    }
  }

  std::string name() const override { return "KernelBackward<" + repository_ + ">"; }

 private:
  std::string repository_;
  std::vector<torch::autograd::SavedVariable> saved_;
  KernelBackward backward_;
};

// Newer torch counts the nodes of a graph in themselves, torch 2.11 with a shared_ptr; that one's
// deleter takes a deep graph apart without recursion.
template <typename Node>
auto own(Node* node) {
  if constexpr (std::is_base_of_v<c10::intrusive_ptr_target, Node>) {
    return c10::intrusive_ptr<Node>::unsafe_steal_from_new(node);
  } else {
    return std::shared_ptr<Node>(node, [](Node* unused) { deleteNode(unused); });
  }
}

}  // namespace

bool needs_gradient(std::initializer_list<const at::Tensor*> inputs) {
  return at::GradMode::is_enabled() &&
         std::any_of(inputs.begin(), inputs.end(), [](const at::Tensor* input) {
           return input->defined() && input->requires_grad();
         });
}

void record(const std::string& repository, const Tensors& outputs, const Tensors& inputs,
            const Tensors& saved, KernelBackward backward) {
  const auto node = own(new KernelNode(repository, saved, std::move(backward)));
  torch::autograd::edge_list edges;
  for (const auto& input : inputs) {
    edges.push_back(input.defined() ? torch::autograd::impl::gradient_edge(input)
                                    : torch::autograd::Edge());
  }
  node->set_next_edges(std::move(edges));
  for (const auto& output : outputs) {
    torch::autograd::set_history(output, node);
  }
}

}  // namespace graft::layers
