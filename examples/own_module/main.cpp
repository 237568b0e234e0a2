// Kernels in a module of one's own: one line makes a place where a kernel can be swapped in.

#include <iostream>

#include <ATen/core/grad_mode.h>
#include <torch/nn/module.h>

#include "graft/layers/kernelize.h"
#include "graft/layers/slot.h"

namespace {

class GatedBlock : public torch::nn::Module {
 public:
  explicit GatedBlock(int64_t size) : size_(size) {
    weight_ = register_parameter("weight", at::ones({size}));
    up_ = register_parameter("up", at::randn({2 * size, size}) / 8);
  }

  at::Tensor forward(const at::Tensor& x) const {
    const at::Tensor both = at::linear(norm_->forward(x, weight_, 1e-6), up_);
    return x + act_->forward(both.narrow(-1, 0, size_), both.narrow(-1, size_, size_));
  }

 private:
  int64_t size_;
  at::Tensor weight_;
  at::Tensor up_;
  // Before: a function that computes the norm. Now: the place names what it needs, and keeps the
  // same formula as its reference.
  graft::layers::Slot<graft::layers::RmsNorm> norm_{*this, {}, "norm"};
  graft::layers::Slot<graft::layers::GatedActivation> act_{*this, {}, "act"};
};

}  // namespace

int main() {
  const at::NoGradGuard no_grad;
  GatedBlock block(64);
  block.eval();
  const at::Tensor x = at::randn({4, 64});
  const at::Tensor before = block.forward(x);

  const auto report = graft::layers::kernelize(block);
  std::cout << report.to_text();

  const double change = (block.forward(x) - before).abs().max().item<double>();
  graft::layers::unkernelize(block);
  const bool restored = at::equal(block.forward(x), before);
  std::cout << "largest change by the kernels: " << change
            << "; references restored bit for bit: " << (restored ? "yes" : "no") << "\n";
  return report.swapped().size() == 2 && change < 1e-5 && restored ? 0 : 1;
}
