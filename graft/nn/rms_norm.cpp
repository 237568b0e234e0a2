#include "graft/nn/rms_norm.h"

namespace graft::nn {

RmsNorm::RmsNorm(int64_t hidden_size, double eps, layers::RmsNormVariant variant)
    : eps_(eps), kernel_(*this, {variant, hidden_size, eps}) {
  declare_weight("weight", {hidden_size}, weight);
}

void ResidualStream::add(at::Tensor delta) {
  value();
  keep_last(delta.size(1));
  pending_ = std::move(delta);
}

at::Tensor ResidualStream::normalized(const RmsNorm& norm) {
  if (!pending_.defined()) {
    return norm.forward(sum_);
  }
  auto [normed, sum] = norm.add_forward(pending_, sum_);
  sum_ = std::move(sum);
  pending_.reset();
  return normed;
}

const at::Tensor& ResidualStream::value() {
  if (pending_.defined()) {
    sum_ = sum_ + pending_;
    pending_.reset();
  }
  return sum_;
}

void ResidualStream::keep_last(int64_t n) {
  const int64_t length = sum_.size(1);
  if (n <= 0 || n >= length) {
    return;
  }
  sum_ = sum_.narrow(1, length - n, n);
  if (pending_.defined()) {
    pending_ = pending_.narrow(1, length - n, n);
  }
}

}  // namespace graft::nn
