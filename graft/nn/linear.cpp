#include "graft/nn/linear.h"

#include <algorithm>

#include "graft/layers/packed_weight.h"

namespace graft::nn {

Linear::Linear(int64_t in_features, int64_t out_features, bool has_bias) {
  kernel_.emplace(*this, layers::Linear::Spec{});
  declare_weight("weight", {out_features, in_features}, weight);
  if (has_bias) {
    declare_weight("bias", {out_features}, bias);
  }
}

void Linear::assign_packed(const std::string& name,
                           std::shared_ptr<const layers::PackedWeight> value) {
  replace_weight(name, *value);
  packed_ = std::move(value);
  kernel_.reset();
  unregister_module("kernel");
  packed_kernel_.emplace(*this, layers::PackedLinear::Spec{packed_->type()});
}

namespace {

// The kernel that all of `linears` share, or null.
template <typename Kernel>
const Kernel* shared_kernel(std::initializer_list<const Linear*> linears,
                            const Kernel* (Linear::*kernel_of)() const) {
  const Kernel* first = ((*linears.begin())->*kernel_of)();
  const bool shared =
      first != nullptr && std::all_of(linears.begin(), linears.end(), [&](const Linear* linear) {
        const Kernel* own = (linear->*kernel_of)();
        return own != nullptr && first->joins(*own);
      });
  return shared ? first : nullptr;
}

}  // namespace

layers::Linear::Products join_forward(const at::Tensor& x,
                                      std::initializer_list<const Linear*> linears) {
  if (const auto* kernel = shared_kernel(linears, &Linear::kernel)) {
    layers::Linear::Factors factors;
    for (const Linear* linear : linears) {
      factors.emplace_back(linear->weight, linear->bias);
    }
    return kernel->join_forward(x, factors);
  }
  if (const auto* kernel = shared_kernel(linears, &Linear::packed_kernel)) {
    layers::PackedLinear::Factors factors;
    for (const Linear* linear : linears) {
      factors.emplace_back(linear->packed_weight().get(), linear->bias);
    }
    return kernel->join_forward(x, factors);
  }
  layers::Linear::Products products;
  for (const Linear* linear : linears) {
    products.push_back(linear->forward(x));
  }
  return products;
}

Embedding::Embedding(int64_t num_embeddings, int64_t embedding_dim) {
  declare_weight("weight", {num_embeddings, embedding_dim}, weight);
}

at::Tensor Embedding::forward(const at::Tensor& ids) const {
  if (packed_ && !rows_.defined()) {
    return packed_->unpacked_rows(ids, packed_dtype_);
  }
  return at::embedding(packed_ ? rows_ : weight, ids);
}

void Embedding::assign_packed(const std::string& name,
                              std::shared_ptr<const layers::PackedWeight> value) {
  replace_weight(name, *value);
  packed_ = std::move(value);
}

void Embedding::set_packed_dtype(at::ScalarType dtype) {
  packed_dtype_ = dtype;
  if (packed_ && !packed_->device().is_cpu()) {
    rows_ = packed_->unpacked(dtype).to(packed_->device());
  }
}

void prepare_packed(const torch::nn::Module& root) {
  for (const auto& module : root.modules(/*include_self=*/false)) {
    const auto* linear = dynamic_cast<const Linear*>(module.get());
    if (linear != nullptr && linear->packed_kernel() != nullptr) {
      linear->packed_kernel()->prepare(*linear->packed_weight());
    }
  }
}

}  // namespace graft::nn
