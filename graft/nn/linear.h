// Linear projection and token embedding.
#pragma once

#include <memory>
#include <optional>
#include <string>

#include "graft/layers/slot.h"
#include "graft/nn/block.h"

namespace graft::nn {

class Linear : public Block {
 public:
  Linear(int64_t in_features, int64_t out_features, bool has_bias);

  // x [..., in] -> [..., out]
  at::Tensor forward(const at::Tensor& x) const {
    return packed_ ? (*packed_kernel_)->forward(x, *packed_, bias)
                   : (*kernel_)->forward(x, weight, bias);
  }

  // A packed weight changes the contract: the slot is then one of layers::PackedLinear.
  bool takes_packed(const std::string& name) const override { return name == "weight"; }
  void assign_packed(const std::string& name,
                     std::shared_ptr<const layers::PackedWeight> value) override;
  const std::shared_ptr<const layers::PackedWeight>& packed_weight() const override {
    return packed_;
  }

  // The active kernel of either contract; the other is null.
  const layers::Linear::Kernel* kernel() const { return packed_ ? nullptr : kernel_->operator->(); }
  const layers::PackedLinear::Kernel* packed_kernel() const {
    return packed_ ? packed_kernel_->operator->() : nullptr;
  }

  at::Tensor weight;  // [out, in]; undefined where it is packed
  at::Tensor bias;    // [out] or undefined

 private:
  std::optional<layers::Slot<layers::Linear>> kernel_;
  std::optional<layers::Slot<layers::PackedLinear>> packed_kernel_;
  std::shared_ptr<const layers::PackedWeight> packed_;
};

// The products of x [..., in] with each of `linears`, two or more: in one call where one kernel serves
// them all and x has few rows. The results may be views of one tensor with a dense last dimension.
layers::Linear::Products join_forward(const at::Tensor& x,
                                      std::initializer_list<const Linear*> linears);

class Embedding : public Block {
 public:
  Embedding(int64_t num_embeddings, int64_t embedding_dim);

  // ids [B, S] int64 -> [B, S, H], in the dtype of the weight; of a packed one, as set_packed_dtype() says.
  at::Tensor forward(const at::Tensor& ids) const;

  bool takes_packed(const std::string& name) const override { return name == "weight"; }
  void assign_packed(const std::string& name,
                     std::shared_ptr<const layers::PackedWeight> value) override;
  const std::shared_ptr<const layers::PackedWeight>& packed_weight() const override {
    return packed_;
  }

  // The dtype of what a packed weight's lookups give; on a GPU the rows to look up are unpacked to it now. Without a
  // packed weight nothing happens.
  void set_packed_dtype(at::ScalarType dtype);

  at::Tensor weight;  // [V, H]; undefined where it is packed

 private:
  std::shared_ptr<const layers::PackedWeight> packed_;
  at::ScalarType packed_dtype_ = at::kFloat;
  at::Tensor rows_;  // [V, H] of a packed weight on a GPU, where blocks cannot be read
};

// Lets the kernels of all packed weights below `root` make their layouts now.
void prepare_packed(const torch::nn::Module& root);

}  // namespace graft::nn
