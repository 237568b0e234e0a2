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
    : gate_proj_(
          add<Linear>("gate_proj", options.hidden_size, options.intermediate_size, options.bias)),
      up_proj_(
          add<Linear>("up_proj", options.hidden_size, options.intermediate_size, options.bias)),
      down_proj_(
          add<Linear>("down_proj", options.intermediate_size, options.hidden_size, options.bias)),
      act_and_mul_(*this, {options.activation}, "act_and_mul") {}

at::Tensor GatedMlp::forward(const at::Tensor& x) const {
  const auto projected = join_forward(x, {gate_proj_.get(), up_proj_.get()});
  return down_proj_->forward(act_and_mul_->forward(projected[0], projected[1]));
}

FusedGatedMlp::FusedGatedMlp(const MlpOptions& options)
    : gate_up_proj_(add<Linear>("gate_up_proj", options.hidden_size, 2 * options.intermediate_size,
                                options.bias)),
      down_proj_(
          add<Linear>("down_proj", options.intermediate_size, options.hidden_size, options.bias)),
      act_and_mul_(*this, {options.activation}, "act_and_mul") {}

at::Tensor FusedGatedMlp::forward(const at::Tensor& x) const {
  const at::Tensor gate_up = gate_up_proj_->forward(x);
  const int64_t half = gate_up.size(-1) / 2;
  return down_proj_->forward(
      act_and_mul_->forward(gate_up.narrow(-1, 0, half), gate_up.narrow(-1, half, half)));
}

}  // namespace graft::nn
