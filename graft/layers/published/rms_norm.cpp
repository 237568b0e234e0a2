#include <fmt/format.h>

#include "graft/core/error.h"
#include "graft/layers/bound_op.h"
#include "graft/layers/gradient.h"
#include "graft/layers/published/contracts.h"
#include "graft/layers/published/layer_norm.h"

namespace graft::layers::published {

namespace {

constexpr char kForward[] =
    "apply_rms_norm(Tensor hidden_states, Tensor weight, float variance_epsilon) -> Tensor[]";
constexpr char kBackward[] =
    "apply_rms_norm_backward(Tensor grad_output, Tensor hidden_states, Tensor weight, Tensor "
    "output, "
    "Tensor rstd, float variance_epsilon, bool input_requires_grad, bool weight_requires_grad) -> "
    "Tensor[]";

class PublishedRmsNorm final : public RmsNorm::Kernel {
 public:
  explicit PublishedRmsNorm(const kernel::LoadedKernel& kernel)
      : repository_(kernel.repository),
        forward_(kernel, {kForward}),
        backward_(kernel, {kBackward}) {}

  at::Tensor forward(const at::Tensor& x, const at::Tensor& weight, double eps) const override {
    forward_.need(weight.scalar_type() == x.scalar_type(), "weight", "the input's dtype", weight);
    const bool records = needs_gradient({&x, &weight});
    const at::Tensor rows = x.contiguous();
    const Tensors results = forward_(rows, weight, eps);
    if (records) {
      // rstd is passed through as it came: the CPU build leaves it unfilled and reads it nowhere.
      record(repository_, {results[0]}, {x, weight},
             {rows, weight, results[0].detach(), results[1]},
             [backward = backward_, eps, of_x = x.requires_grad(),
              of_weight = weight.requires_grad()](const Tensors& saved, const Tensors& grads) {
               return backward(grads[0].contiguous(), saved[0], saved[1], saved[2], saved[3], eps,
                               of_x, of_weight);
             });
    }
    return results[0];
  }

 private:
  std::string repository_;
  PublishedOp forward_;
  PublishedOp backward_;
};

// The RMSNorm of layer-norm, which weighs in float32 and rounds once: no further from the exact value
// than a norm that rounds before the weight.
class PublishedLayerNorm final : public RmsNorm::Kernel {
 public:
  explicit PublishedLayerNorm(const kernel::LoadedKernel& kernel) : norm_(kernel) {}

  std::string row_refusal(int64_t hidden) const override { return LayerNorm::row_refusal(hidden); }

  at::Tensor forward(const at::Tensor& x, const at::Tensor& weight, double eps) const override {
    return norm_.forward(x, weight, {}, {.eps = eps, .is_rms = true});
  }

 private:
  LayerNorm norm_;
};

}  // namespace

std::shared_ptr<const RmsNorm::Kernel> bind_rms_norm(const RmsNorm::Spec& spec,
                                                     const kernel::LoadedKernel& kernel,
                                                     const kernel::PackageLayer& layer) {
  variant_number(kernel, layer, RmsNorm::variant_name(spec));
  std::shared_ptr<const RmsNorm::Kernel> bound;
  if (layer.published == "layer-norm") {
    bound = std::make_shared<PublishedLayerNorm>(kernel);
  } else {
    bound = std::make_shared<PublishedRmsNorm>(kernel);
  }
  const std::string reason = spec.hidden_size > 0 ? bound->row_refusal(spec.hidden_size) : "";
  if (!reason.empty()) {
    throw IncompatibleError("layers.published", "unsupported",
                            fmt::format("`{}`: expected {}", kernel.repository, reason));
  }
  return bound;
}

}  // namespace graft::layers::published
