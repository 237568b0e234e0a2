#include "graft/nn/linear.h"

namespace graft::nn {

Linear::Linear(int64_t in_features, int64_t out_features, bool has_bias) : kernel_(*this, {}) {
  declare_weight("weight", {out_features, in_features}, weight);
  if (has_bias) {
    declare_weight("bias", {out_features}, bias);
  }
}

layers::Linear::Products join_forward(const at::Tensor& x,
                                      std::initializer_list<const Linear*> linears) {
  const layers::Linear::Kernel& kernel = (*linears.begin())->kernel();
  layers::Linear::Factors factors;
  for (const Linear* linear : linears) {
    if (!kernel.joins(linear->kernel())) {
      layers::Linear::Products products;
      for (const Linear* each : linears) {
        products.push_back(each->forward(x));
      }
      return products;
    }
    factors.emplace_back(linear->weight, linear->bias);
  }
  return kernel.join_forward(x, factors);
}

Embedding::Embedding(int64_t num_embeddings, int64_t embedding_dim) {
  declare_weight("weight", {num_embeddings, embedding_dim}, weight);
}

at::Tensor Embedding::forward(const at::Tensor& ids) const { return at::embedding(weight, ids); }

}  // namespace graft::nn
