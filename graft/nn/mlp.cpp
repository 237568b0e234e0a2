#include "graft/nn/mlp.h"

#include <array>
#include <string_view>

#include <fmt/format.h>

#include "graft/core/error.h"

namespace graft::nn {

namespace {

using layers::ActivationKind;

// Names as in transformers' ACT2FN; only those that one of our activations computes.
constexpr std::array<std::pair<std::string_view, ActivationKind>, 9> kActivations = {{
    {"silu", ActivationKind::kSilu},
    {"swish", ActivationKind::kSilu},
    {"gelu", ActivationKind::kGelu},
    {"gelu_python", ActivationKind::kGelu},
    {"gelu_pytorch_tanh", ActivationKind::kGeluTanh},
    {"gelu_python_tanh", ActivationKind::kGeluTanh},
    {"gelu_new", ActivationKind::kGeluNew},
    {"gelu_fast", ActivationKind::kGeluFast},
    {"quick_gelu", ActivationKind::kQuickGelu},
}};

}  // namespace

ActivationKind parse_activation(const std::string& name) {
  std::string known;
  for (const auto& [spelling, kind] : kActivations) {
    if (spelling == name) {
      return kind;
    }
    known += fmt::format("{}`{}`", known.empty() ? "" : ", ", spelling);
  }
  throw FormatError("models.config", "activation",
                    fmt::format("hidden_act: expected one of {}, got `{}`", known, name));
}

GatedMlp::GatedMlp(const MlpOptions& options)
    : mlp_(*this, {options.activation}),
      gate_proj_(
          add<Linear>("gate_proj", options.hidden_size, options.intermediate_size, options.bias)),
      up_proj_(
          add<Linear>("up_proj", options.hidden_size, options.intermediate_size, options.bias)),
      down_proj_(
          add<Linear>("down_proj", options.intermediate_size, options.hidden_size, options.bias)),
      act_and_mul_(*this, {options.activation}, "act_and_mul") {}

at::Tensor GatedMlp::forward(const at::Tensor& x) const {
  if (mlp_.module().swapped()) {
    return mlp_->forward(x, {gate_proj_->weight, up_proj_->weight, down_proj_->weight,
                             gate_proj_->bias, up_proj_->bias, down_proj_->bias});
  }
  const auto projected = join_forward(x, {gate_proj_.get(), up_proj_.get()});
  return down_proj_->forward(act_and_mul_->forward(projected[0], projected[1]));
}

FusedGatedMlp::FusedGatedMlp(const MlpOptions& options)
    : mlp_(*this, {options.activation}),
      gate_up_proj_(add<Linear>("gate_up_proj", options.hidden_size, 2 * options.intermediate_size,
                                options.bias)),
      down_proj_(
          add<Linear>("down_proj", options.intermediate_size, options.hidden_size, options.bias)),
      act_and_mul_(*this, {options.activation}, "act_and_mul") {}

namespace {

// The two halves of a fused projection's rows; undefined ones of none.
std::pair<at::Tensor, at::Tensor> halves(const at::Tensor& rows) {
  if (!rows.defined()) {
    return {};
  }
  const int64_t half = rows.size(0) / 2;
  return {rows.narrow(0, 0, half), rows.narrow(0, half, half)};
}

}  // namespace

at::Tensor FusedGatedMlp::forward(const at::Tensor& x) const {
  if (mlp_.module().swapped()) {
    const auto [gate, up] = halves(gate_up_proj_->weight);
    const auto [gate_bias, up_bias] = halves(gate_up_proj_->bias);
    return mlp_->forward(x, {gate, up, down_proj_->weight, gate_bias, up_bias, down_proj_->bias});
  }
  const at::Tensor gate_up = gate_up_proj_->forward(x);
  const int64_t half = gate_up.size(-1) / 2;
  return down_proj_->forward(
      act_and_mul_->forward(gate_up.narrow(-1, 0, half), gate_up.narrow(-1, half, half)));
}

}  // namespace graft::nn
