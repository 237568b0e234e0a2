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

  at::Tensor weight;  // [out, in]
  at::Tensor bias;    // [out] or undefined

 private:
  layers::Slot<layers::Linear> kernel_;
};

class Embedding : public Block {
 public:
  Embedding(int64_t num_embeddings, int64_t embedding_dim);

  // ids [B, S] int64 -> [B, S, H]
  at::Tensor forward(const at::Tensor& ids) const;

  at::Tensor weight;  // [V, H]
};

}  // namespace graft::nn
