// RMS normalisation, and the residual stream that lets it fuse with the addition before it.
#pragma once

#include <utility>

#include "graft/layers/slot.h"
#include "graft/nn/block.h"

namespace graft::nn {

class RmsNorm : public Block {
 public:
  RmsNorm(int64_t hidden_size, double eps, layers::RmsNormVariant variant);

  // x [..., H] -> [..., H]
  at::Tensor forward(const at::Tensor& x) const { return kernel_->forward(x, weight, eps_); }
  // Returns (norm(residual + x), residual + x).
  std::pair<at::Tensor, at::Tensor> add_forward(const at::Tensor& x,
                                                const at::Tensor& residual) const {
    return kernel_->add_forward(x, residual, weight, eps_);
  }

  double eps() const { return eps_; }

  at::Tensor weight;  // [H]

 private:
  double eps_;
  layers::Slot<layers::RmsNorm> kernel_;
};

// The sum that runs through a decoder. An addition waits until the next norm, which takes it along
// in one kernel; the bits are those of adding at once.
class ResidualStream {
 public:
  explicit ResidualStream(at::Tensor sum) : sum_(std::move(sum)) {}

  // Adds `delta` [B, S, H]. One that has the last positions alone drops the others.
  void add(at::Tensor delta);
  // The sum so far, normalised.
  at::Tensor normalized(const RmsNorm& norm);
  // The sum so far.
  const at::Tensor& value();
  // Drops all but the last n positions.
  void keep_last(int64_t n);

 private:
  at::Tensor sum_;
  at::Tensor pending_;
};

}  // namespace graft::nn
