#include "graft/layers/contract.h"

#include <array>
#include <cmath>
#include <limits>

#include <ATen/core/Reduction.h>

#include "graft/layers/packed_weight.h"

namespace graft::layers {

namespace {

class RmsNormReference final : public RmsNorm::Kernel {
 public:
  explicit RmsNormReference(RmsNormVariant variant) : variant_(variant) {}

  at::Tensor forward(const at::Tensor& x, const at::Tensor& weight, double eps) const override {
    const at::Tensor x_float = x.to(at::kFloat);
    const at::Tensor norm = x_float * at::rsqrt(x_float.pow(2).mean(-1, /*keepdim=*/true) + eps);
    switch (variant_) {
      case RmsNormVariant::kCastBeforeWeight:
        return weight * norm.to(x.scalar_type());
      case RmsNormVariant::kCastAfterWeight:
        return (weight * norm).to(x.scalar_type());
      case RmsNormVariant::kFloatWeight:
        return (weight.to(at::kFloat) * norm).to(x.scalar_type());
      case RmsNormVariant::kZeroCentered:
        return (norm * (1.0 + weight.to(at::kFloat))).to(x.scalar_type());
    }
    return {};
  }

 private:
  RmsNormVariant variant_;
};

at::Tensor activate(ActivationKind kind, const at::Tensor& x) {
  switch (kind) {
    case ActivationKind::kSilu:
      return at::silu(x);
    case ActivationKind::kGelu:
      return at::gelu(x);
    case ActivationKind::kGeluTanh:
      return at::gelu(x, "tanh");
    case ActivationKind::kGeluNew:
      // Unfused in the input's dtype, exactly as transformers' NewGELUActivation.
      return 0.5 * x * (1.0 + at::tanh(std::sqrt(2.0 / M_PI) * (x + 0.044715 * at::pow(x, 3.0))));
    case ActivationKind::kGeluFast:
      return 0.5 * x * (1.0 + at::tanh(x * 0.7978845608 * (1.0 + 0.044715 * x * x)));
    case ActivationKind::kQuickGelu:
      return x * at::sigmoid(1.702 * x);
  }
  return {};
}

class ActivationReference final : public Activation::Kernel {
 public:
  explicit ActivationReference(ActivationKind kind) : kind_(kind) {}
  at::Tensor forward(const at::Tensor& x) const override { return activate(kind_, x); }

 private:
  ActivationKind kind_;
};

class GatedActivationReference final : public GatedActivation::Kernel {
 public:
  explicit GatedActivationReference(ActivationKind kind) : kind_(kind) {}
  at::Tensor forward(const at::Tensor& gate, const at::Tensor& up) const override {
    return activate(kind_, gate) * up;
  }

 private:
  ActivationKind kind_;
};

at::Tensor linear(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias) {
  return at::linear(x, weight, bias.defined() ? std::optional<at::Tensor>(bias) : std::nullopt);
}

class LinearReference final : public Linear::Kernel {
 public:
  at::Tensor forward(const at::Tensor& x, const at::Tensor& weight,
                     const at::Tensor& bias) const override {
    return linear(x, weight, bias);
  }
};

class PackedLinearReference final : public PackedLinear::Kernel {
 public:
  at::Tensor forward(const at::Tensor& x, const PackedWeight& weight,
                     const at::Tensor& bias) const override {
    const at::ScalarType dtype = x.scalar_type();
    const at::Tensor values = weight.layout(std::string("values ") + c10::toString(dtype),
                                            [&] { return weight.unpacked(dtype).to(x.device()); });
    return linear(x, values, bias);
  }
};

// Below this many elements a copy of query and key costs less than five more calls.
constexpr int64_t kJointElements = 1 << 14;

// x [B, S, H, D]
at::Tensor rotate(const at::Tensor& x, const RotaryTables& tables) {
  const int64_t rotary_dim = tables.cos.size(-1), half = rotary_dim / 2;
  const bool partial = rotary_dim < x.size(-1);
  const at::Tensor head = partial ? x.narrow(-1, 0, rotary_dim) : x;
  // -x2 * sin and x2 * -sin have the same bits, so the sign sits in the table.
  const at::Tensor swapped = at::cat({head.narrow(-1, half, half), head.narrow(-1, 0, half)}, -1);
  at::Tensor out = (head * tables.cos.unsqueeze(2)).add_(swapped * tables.signed_sin.unsqueeze(2));
  if (out.scalar_type() != x.scalar_type()) {
    out = out.to(x.scalar_type());
  }
  return partial ? at::cat({out, x.narrow(-1, rotary_dim, x.size(-1) - rotary_dim)}, -1) : out;
}

class RotaryReference final : public Rotary::Kernel {
 public:
  std::pair<at::Tensor, at::Tensor> forward(const at::Tensor& query, const at::Tensor& key,
                                            const RotaryTables& tables) const override {
    if (query.numel() > kJointElements) {
      return {rotate(query, tables), rotate(key, tables)};
    }
    // Few tokens: the cost is the number of calls, so both go through as one tensor.
    const at::Tensor both = rotate(at::cat({query, key}, 2), tables);
    return {both.narrow(2, 0, query.size(2)), both.narrow(2, query.size(2), key.size(2))};
  }
};

class QkNormRotaryReference final : public QkNormRotary::Kernel {
 public:
  explicit QkNormRotaryReference(RmsNormVariant variant)
      : norm_(RmsNorm::reference({variant})), rotary_(Rotary::reference({})) {}

  std::pair<at::Tensor, at::Tensor> forward(const at::Tensor& query, const at::Tensor& key,
                                            const QkNormRotary::Norms& norms,
                                            const RotaryTables& tables) const override {
    return rotary_->forward(norm_->forward(query, norms.query_weight, norms.eps),
                            norm_->forward(key, norms.key_weight, norms.eps), tables);
  }

 private:
  std::shared_ptr<const RmsNorm::Kernel> norm_;
  std::shared_ptr<const Rotary::Kernel> rotary_;
};

class AttentionReference final : public Attention::Kernel {
 public:
  at::Tensor forward(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                     const at::Tensor& mask, double scale, double softcap) const override {
    const int64_t groups = query.size(2) / key.size(1);
    at::Tensor scores =
        at::matmul(query.transpose(1, 2), key.repeat_interleave(groups, 1).transpose(2, 3)) * scale;
    if (softcap > 0.0) {
      scores = at::tanh(scores / softcap) * softcap;
    }
    if (mask.defined()) {
      scores = scores + mask;
    }
    const at::Tensor weights = at::softmax(scores, -1, at::kFloat).to(query.scalar_type());
    return at::matmul(weights, value.repeat_interleave(groups, 1)).transpose(1, 2);
  }
};

class CausalLossReference final : public CausalLoss::Kernel {
 public:
  at::Tensor forward(const at::Tensor& hidden, const at::Tensor& weight, const at::Tensor& labels,
                     double softcap, int64_t num_items) const override {
    at::Tensor logits = at::linear(hidden, weight);
    if (softcap > 0.0) {
      logits = at::tanh(logits / softcap) * softcap;
    }
    const at::Tensor loss = at::cross_entropy_loss(
        logits.to(at::kFloat), labels, /*weight=*/{},
        num_items > 0 ? at::Reduction::Sum : at::Reduction::Mean, CausalLoss::kIgnoredLabel);
    return num_items > 0 ? loss / static_cast<double>(num_items) : loss;
  }
};

class MlpReference final : public Mlp::Kernel {
 public:
  explicit MlpReference(ActivationKind kind) : kind_(kind) {}
  at::Tensor forward(const at::Tensor& x, const Mlp::Weights& weights) const override {
    const at::Tensor gate = linear(x, weights.gate, weights.gate_bias);
    const at::Tensor up = linear(x, weights.up, weights.up_bias);
    return linear(activate(kind_, gate) * up, weights.down, weights.down_bias);
  }

 private:
  ActivationKind kind_;
};

}  // namespace

std::pair<at::Tensor, at::Tensor> RmsNorm::Kernel::add_forward(const at::Tensor& x,
                                                               const at::Tensor& residual,
                                                               const at::Tensor& weight,
                                                               double eps) const {
  at::Tensor sum = residual + x;
  return {forward(sum, weight, eps), sum};
}

void append_to_cache(const at::Tensor& key, const at::Tensor& value, const StepPlace& place,
                     const at::Tensor& keys, const at::Tensor& values) {
  const at::Tensor index = place.lengths.narrow(0, 0, 1).to(at::kLong) - 1;
  at::Tensor all_keys = keys, all_values = values;
  all_keys.index_copy_(2, index, key.transpose(1, 2));
  all_values.index_copy_(2, index, value.transpose(1, 2));
}

namespace {

// The rows of each batch entry's newest token, [B, 1, R].
RotaryTables rows_at(const RotaryTables& tables, const StepPlace& place) {
  const auto rows = [&](const at::Tensor& table) {
    return table.squeeze(0).index_select(0, place.positions).unsqueeze(1);
  };
  return {rows(tables.cos), rows(tables.sin), rows(tables.signed_sin)};
}

}  // namespace

at::Tensor Rotary::Kernel::append_forward(const at::Tensor& query, const at::Tensor& key,
                                          const at::Tensor& value, const RotaryTables& tables,
                                          const StepPlace& place, const at::Tensor& keys,
                                          const at::Tensor& values) const {
  const auto [rotated, rotated_key] = forward(query, key, rows_at(tables, place));
  append_to_cache(rotated_key, value, place, keys, values);
  return rotated;
}

at::Tensor QkNormRotary::Kernel::append_forward(const at::Tensor& query, const at::Tensor& key,
                                                const at::Tensor& value, const Norms& norms,
                                                const RotaryTables& tables, const StepPlace& place,
                                                const at::Tensor& keys,
                                                const at::Tensor& values) const {
  const auto [rotated, rotated_key] = forward(query, key, norms, rows_at(tables, place));
  append_to_cache(rotated_key, value, place, keys, values);
  return rotated;
}

at::Tensor Attention::Kernel::causal_forward(const at::Tensor& query, const at::Tensor& key,
                                             const at::Tensor& value, double scale) const {
  const int64_t length = query.size(1);
  const at::Tensor mask =
      at::full({length, length}, -std::numeric_limits<double>::infinity(), query.options()).triu(1);
  return forward(query, key, value, mask.view({1, 1, length, length}), scale, /*softcap=*/0.0);
}

at::Tensor Attention::Kernel::decode_forward(const at::Tensor& query, const at::Tensor& key,
                                             const at::Tensor& value, const at::Tensor& lengths,
                                             const at::Tensor& mask, double scale, double softcap,
                                             int64_t window) const {
  const at::Tensor places = at::arange(key.size(2), lengths.options());
  const at::Tensor ends = lengths.view({-1, 1, 1, 1});
  at::Tensor hidden = places.ge(ends);
  if (window > 0) {
    hidden = hidden.logical_or(places.lt(ends - window));
  }
  at::Tensor all = at::zeros(hidden.sizes(), query.options());
  if (mask.defined()) {
    all = all + mask;
  }
  return forward(query, key, value,
                 all.masked_fill(hidden, -std::numeric_limits<double>::infinity()), scale, softcap);
}

std::shared_ptr<const RmsNorm::Kernel> RmsNorm::reference(const Spec& spec) {
  return std::make_shared<RmsNormReference>(spec.variant);
}

std::string RmsNorm::variant_name(const Spec& spec) {
  constexpr std::array kNames = {"cast_before_weight", "cast_after_weight", "float_weight",
                                 "zero_centered"};
  return kNames[static_cast<size_t>(spec.variant)];
}

std::string_view activation_layer_name(ActivationKind kind) {
  constexpr std::array<std::string_view, 6> kNames = {"SiLU",    "GeLU",     "GeluTanh",
                                                      "NewGELU", "FastGELU", "QuickGELU"};
  return kNames[static_cast<size_t>(kind)];
}

std::shared_ptr<const Activation::Kernel> Activation::reference(const Spec& spec) {
  return std::make_shared<ActivationReference>(spec.kind);
}

std::string Activation::variant_name(const Spec&) { return "default"; }

std::shared_ptr<const GatedActivation::Kernel> GatedActivation::reference(const Spec& spec) {
  return std::make_shared<GatedActivationReference>(spec.kind);
}

std::string GatedActivation::variant_name(const Spec&) { return "default"; }

Linear::Products Linear::Kernel::join_forward(const at::Tensor& x, const Factors& factors) const {
  Products products;
  for (const auto& [weight, bias] : factors) {
    products.push_back(forward(x, weight, bias));
  }
  return products;
}

std::shared_ptr<const Linear::Kernel> Linear::reference(const Spec&) {
  return std::make_shared<LinearReference>();
}

std::string Linear::variant_name(const Spec&) { return "default"; }

PackedLinear::Products PackedLinear::Kernel::join_forward(const at::Tensor& x,
                                                          const Factors& factors) const {
  Products products;
  for (const auto& [weight, bias] : factors) {
    products.push_back(forward(x, *weight, bias));
  }
  return products;
}

std::shared_ptr<const PackedLinear::Kernel> PackedLinear::reference(const Spec&) {
  return std::make_shared<PackedLinearReference>();
}

std::string PackedLinear::variant_name(const Spec& spec) {
  return std::string(io::info(spec.type).name);
}

std::shared_ptr<const Rotary::Kernel> Rotary::reference(const Spec&) {
  return std::make_shared<RotaryReference>();
}

std::string Rotary::variant_name(const Spec&) { return "half_split"; }

std::shared_ptr<const QkNormRotary::Kernel> QkNormRotary::reference(const Spec& spec) {
  return std::make_shared<QkNormRotaryReference>(spec.variant);
}

std::string QkNormRotary::variant_name(const Spec& spec) {
  return RmsNorm::variant_name({spec.variant});
}

std::shared_ptr<const CausalLoss::Kernel> CausalLoss::reference(const Spec&) {
  return std::make_shared<CausalLossReference>();
}

std::string CausalLoss::variant_name(const Spec&) { return "default"; }

std::shared_ptr<const Mlp::Kernel> Mlp::reference(const Spec& spec) {
  return std::make_shared<MlpReference>(spec.kind);
}

std::string Mlp::variant_name(const Spec& spec) {
  constexpr std::array kNames = {"silu",     "gelu",      "gelu_tanh",
                                 "gelu_new", "gelu_fast", "quick_gelu"};
  return kNames[static_cast<size_t>(spec.kind)];
}

std::shared_ptr<const Attention::Kernel> Attention::reference(const Spec&) {
  return std::make_shared<AttentionReference>();
}

std::string Attention::variant_name(const Spec&) { return "default"; }

std::string layer_name(const RmsNorm::Spec&) { return std::string(RmsNorm::kName); }

std::string layer_name(const Activation::Spec& spec) {
  return std::string(activation_layer_name(spec.kind));
}

std::string layer_name(const GatedActivation::Spec& spec) {
  switch (spec.kind) {
    case ActivationKind::kSilu:
      return "SiluAndMul";
    case ActivationKind::kGelu:
      return "GeluAndMul";
    case ActivationKind::kGeluTanh:
      return "GeluTanhAndMul";
    default:
      // No package offers these; the slot then stays on its reference and the trace says so.
      return std::string(activation_layer_name(spec.kind)) + "AndMul";
  }
}

std::string layer_name(const Linear::Spec&) { return std::string(Linear::kName); }

std::string layer_name(const PackedLinear::Spec&) { return std::string(PackedLinear::kName); }

std::string layer_name(const CausalLoss::Spec&) { return std::string(CausalLoss::kName); }

std::string layer_name(const Mlp::Spec& spec) {
  switch (spec.kind) {
    case ActivationKind::kSilu:
      return "SwiGLUMLP";
    case ActivationKind::kGeluTanh:
      return "GeGLUMLP";
    default:
      return std::string(Mlp::kName);
  }
}

std::string layer_name(const Attention::Spec&) { return std::string(Attention::kName); }

std::string layer_name(const QkNormRotary::Spec&) { return std::string(QkNormRotary::kName); }

std::string layer_name(const Rotary::Spec&) { return std::string(Rotary::kName); }

}  // namespace graft::layers
