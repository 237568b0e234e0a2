#include "graft/nn/linear.h"

namespace graft::nn {

Linear::Linear(int64_t in_features, int64_t out_features, bool has_bias) : kernel_(*this, {}) {
  declare_weight("weight", {out_features, in_features}, weight);
  if (has_bias) {
    declare_weight("bias", {out_features}, bias);
  }
}

Embedding::Embedding(int64_t num_embeddings, int64_t embedding_dim) {
  declare_weight("weight", {num_embeddings, embedding_dim}, weight);
}

at::Tensor Embedding::forward(const at::Tensor& ids) const { return at::embedding(weight, ids); }

}  // namespace graft::nn
