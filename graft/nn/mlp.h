// The gated feed-forward block: down(act(gate(x)) * up(x)).
#pragma once

#include <string>

#include "graft/layers/slot.h"
#include "graft/nn/linear.h"

namespace graft::nn {

// Reads an activation's name as configs spell it (`silu`, `gelu_pytorch_tanh`, …).
// Throws   FormatError for an unknown name, listing the known ones.
layers::ActivationKind parse_activation(const std::string& name);

struct MlpOptions {
  int64_t hidden_size = 0;
  int64_t intermediate_size = 0;
  layers::ActivationKind activation = layers::ActivationKind::kSilu;
  bool bias = false;
};

// Weights gate_proj, up_proj, down_proj. A kernel for the whole (contract Mlp) does the work of all its slots.
class GatedMlp : public Block {
 public:
  explicit GatedMlp(const MlpOptions& options);
  at::Tensor forward(const at::Tensor& x) const;

 private:
  layers::Slot<layers::Mlp> mlp_;  // before those that it encloses
  std::shared_ptr<Linear> gate_proj_;
  std::shared_ptr<Linear> up_proj_;
  std::shared_ptr<Linear> down_proj_;
  layers::Slot<layers::GatedActivation> act_and_mul_;
};

// Weights gate_up_proj (gate rows first), down_proj. Slots as GatedMlp's.
class FusedGatedMlp : public Block {
 public:
  explicit FusedGatedMlp(const MlpOptions& options);
  at::Tensor forward(const at::Tensor& x) const;

 private:
  layers::Slot<layers::Mlp> mlp_;  // before those that it encloses
  std::shared_ptr<Linear> gate_up_proj_;
  std::shared_ptr<Linear> down_proj_;
  layers::Slot<layers::GatedActivation> act_and_mul_;
};

}  // namespace graft::nn
