// Linear projection and token embedding.
#pragma once

#include "graft/layers/slot.h"
#include "graft/nn/block.h"

namespace graft::nn {

class Linear : public Block {
 public:
  Linear(int64_t in_features, int64_t out_features, bool has_bias);

  // x [..., in] -> [..., out]
  at::Tensor forward(const at::Tensor& x) const { return kernel_->forward(x, weight, bias); }
  const layers::Linear::Kernel& kernel() const { return *kernel_.operator->(); }

  at::Tensor weight;  // [out, in]
  at::Tensor bias;    // [out] or undefined

 private:
  layers::Slot<layers::Linear> kernel_;
};

// The products of x [..., in] with each of `linears`, two or more: in one call where one kernel serves
// them all and x has few rows. The results may be views of one tensor with a dense last dimension.
layers::Linear::Products join_forward(const at::Tensor& x,
                                      std::initializer_list<const Linear*> linears);

class Embedding : public Block {
 public:
  Embedding(int64_t num_embeddings, int64_t embedding_dim);

  // ids [B, S] int64 -> [B, S, H]
  at::Tensor forward(const at::Tensor& ids) const;

  at::Tensor weight;  // [V, H]
};

}  // namespace graft::nn
