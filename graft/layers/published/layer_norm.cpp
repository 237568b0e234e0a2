#include "graft/layers/published/layer_norm.h"

#include <memory>

#include <fmt/format.h>

#include "graft/layers/gradient.h"

namespace graft::layers::published {

namespace {

constexpr char kForward[] =
    "dropout_add_ln_fwd(Tensor input, Tensor gamma, Tensor? beta, Tensor? rowscale, Tensor? "
    "colscale, "
    "Tensor? x0_subset, Tensor? z_subset, float dropout_p, float epsilon, float rowscale_const, "
    "int "
    "z_numrows, Generator? gen, bool residual_in_fp32, bool is_rms_norm) -> Tensor[]";
constexpr char kBackward[] =
    "dropout_add_ln_bwd(Tensor dz, Tensor? dx, Tensor x, Tensor? x0, Tensor? dmask, Tensor mu, "
    "Tensor "
    "rsigma, Tensor gamma, Tensor? rowscale, Tensor? colscale, Tensor? x0_subset, Tensor? "
    "z_subset, "
    "float dropout_p, float rowscale_const, int x0_numrows, bool has_residual, bool is_rms_norm) "
    "-> "
    "Tensor[]";
constexpr char kAddForward[] =
    "dropout_add_ln_parallel_residual_fwd(Tensor input, Tensor? x1, Tensor? residual, Tensor "
    "gamma0, "
    "Tensor? beta0, Tensor? gamma1, Tensor? beta1, float dropout_p, float epsilon, Generator? gen, "
    "bool "
    "residual_in_fp32, bool is_rms_norm) -> Tensor[]";
constexpr char kAddBackward[] =
    "dropout_add_ln_parallel_residual_bwd(Tensor dz0, Tensor? dz1, Tensor? dx, Tensor x, Tensor? "
    "dmask0, "
    "Tensor? dmask1, Tensor mu, Tensor rsigma, Tensor gamma0, Tensor? gamma1, float dropout_p, "
    "bool "
    "has_x1, bool has_residual, bool is_rms_norm) -> Tensor[]";

constexpr int64_t kMaxHidden = 8192;
const c10::IValue kNone;

at::Tensor rows_of(const at::Tensor& x) { return x.reshape({-1, x.size(-1)}).contiguous(); }

bool is_served(at::ScalarType dtype) {
  return dtype == at::kFloat || dtype == at::kHalf || dtype == at::kBFloat16;
}

}  // namespace

LayerNorm::LayerNorm(const kernel::LoadedKernel& kernel)
    : repository_(kernel.repository),
      forward_(kernel, {kForward}),
      backward_(kernel, {kBackward}),
      add_forward_(kernel, {kAddForward}),
      add_backward_(kernel, {kAddBackward}) {}

std::string LayerNorm::row_refusal(int64_t hidden) {
  return hidden % 8 == 0 && hidden <= kMaxHidden
             ? ""
             : fmt::format("rows of a multiple of 8 up to {} elements, not {}", kMaxHidden, hidden);
}

void LayerNorm::check(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias,
                      const NormOptions& options) const {
  forward_.need(x.dim() > 0 && row_refusal(x.size(-1)).empty(), "input",
                "rows of a multiple of 8 up to 8192 elements", x);
  forward_.need(is_served(x.scalar_type()), "input", "float32, float16 or bfloat16", x);
  forward_.need(weight.sizes() == at::IntArrayRef{x.size(-1)} &&
                    (weight.scalar_type() == x.scalar_type() || weight.scalar_type() == at::kFloat),
                "gamma", "one row of the input's dtype or float32", weight);
  forward_.need(!bias.defined() ||
                    (bias.sizes() == weight.sizes() && bias.scalar_type() == weight.scalar_type()),
                "beta", "a tensor like gamma", bias);
  forward_.need(!(options.is_rms && bias.defined()), "beta", "none for RMSNorm", bias);
  forward_.need(options.dropout >= 0.0 && options.dropout < 1.0, "dropout_p", "0 up to below 1",
                options.dropout);
}

at::Tensor LayerNorm::forward(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias,
                              const NormOptions& options) const {
  check(x, weight, bias, options);
  if (x.numel() == 0) {
    return x.clone();
  }
  const bool records = needs_gradient({&x, &weight, &bias});
  const at::Tensor rows = rows_of(x.detach());
  const Tensors results =
      forward_(rows, weight, maybe(bias), kNone, kNone, kNone, kNone, options.dropout, options.eps,
               1.0, rows.size(0), kNone, false, options.is_rms);
  at::Tensor out = results[0].view(x.sizes());
  if (records) {
    // What was normalized is the input itself unless something dropped parts of it.
    const at::Tensor normalized = results[1].defined() ? results[1] : rows;
    record(repository_, {out}, {x, weight, bias},
           {normalized, results[2], results[3], results[4], weight},
           [backward = backward_, options, sizes = x.sizes().vec(), biased = bias.defined()](
               const Tensors& saved, const Tensors& grads) -> Tensors {
             const Tensors own =
                 backward(rows_of(grads[0]), kNone, saved[0], kNone, maybe(saved[1]), saved[2],
                          saved[3], saved[4], kNone, kNone, kNone, kNone, options.dropout, 1.0,
                          int64_t{0}, false, options.is_rms);
             return {own[0].view(sizes), own[2].to(saved[4].scalar_type()),
                     biased ? own[3].to(saved[4].scalar_type()) : at::Tensor()};
           });
  }
  return out;
}

std::pair<at::Tensor, at::Tensor> LayerNorm::add_forward(const at::Tensor& x,
                                                         const at::Tensor& residual,
                                                         const at::Tensor& weight,
                                                         const at::Tensor& bias,
                                                         const NormOptions& options) const {
  check(x, weight, bias, options);
  add_forward_.need(residual.sizes() == x.sizes() && (residual.scalar_type() == x.scalar_type() ||
                                                      residual.scalar_type() == at::kFloat),
                    "residual", "the input's shape, its dtype or float32", residual);
  const bool records = needs_gradient({&x, &residual, &weight, &bias});
  const Tensors results = add_forward_(
      rows_of(x.detach()), kNone, rows_of(residual.detach()), weight, maybe(bias), kNone, kNone,
      options.dropout, options.eps, kNone, residual.scalar_type() == at::kFloat, options.is_rms);
  at::Tensor out = results[0].view(x.sizes()), sum = results[2].view(x.sizes());
  if (records) {
    record(repository_, {out, sum}, {x, residual, weight, bias},
           {results[2].detach(), results[3], results[5], results[6], weight},
           [backward = add_backward_, options, sizes = x.sizes().vec(), biased = bias.defined(),
            hidden = x.options()](const Tensors& saved, const Tensors& grads) -> Tensors {
             const at::Tensor grad_out =
                 grads[0].defined() ? rows_of(grads[0]) : at::zeros(saved[0].sizes(), hidden);
             const at::Tensor grad_sum = grads[1].defined() ? rows_of(grads[1]) : at::Tensor();
             const Tensors own = backward(grad_out, kNone, maybe(grad_sum), saved[0],
                                          maybe(saved[1]), kNone, saved[2], saved[3], saved[4],
                                          kNone, options.dropout, false, true, options.is_rms);
             // Without dropout and with one dtype the kernel leaves the residual's gradient out.
             const at::Tensor grad_x = own[0].view(sizes);
             return {grad_x, own[2].defined() ? own[2].view(sizes) : grad_x,
                     own[3].to(saved[4].scalar_type()),
                     biased ? own[4].to(saved[4].scalar_type()) : at::Tensor()};
           });
  }
  return {out, sum};
}

}  // namespace graft::layers::published
