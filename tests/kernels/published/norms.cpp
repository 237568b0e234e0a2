// rmsnorm, rotary, layer-norm and the CPU build of activation as published: classic ABI, in ATen. Which
// one: the macro RMSNORM, ROTARY, LAYER_NORM or ACTIVATION. OTHER_SCHEMA: not the published schema.

#include "classic_tensor.h"

namespace {

using Tensors = std::vector<at::Tensor>;

#if defined(RMSNORM)

at::Tensor inverse(const at::Tensor& x, double eps) {
  return at::rsqrt(x.pow(2).mean(-1, true) + eps);
}

Tensors forward(const at::Tensor& x, const at::Tensor& weight, double eps) {
  TORCH_CHECK(x.is_contiguous(), "expected a dense input");
  const at::Tensor wide = x.to(at::kFloat);
  // rstd is allocated and left unfilled, as the published CPU build does.
  return {weight * (wide * inverse(wide, eps)).to(x.scalar_type()), at::empty({x.size(0)})};
}

Tensors backward(const at::Tensor& grad, const at::Tensor& x, const at::Tensor& weight,
                 const at::Tensor&, const at::Tensor&, double eps, bool of_x, bool of_weight) {
  const at::Tensor wide = x.to(at::kFloat), scale = inverse(wide, eps);
  const at::Tensor own = grad.to(at::kFloat) * weight.to(at::kFloat);
  const at::Tensor grad_x =
      scale * (own - wide * scale.pow(2) * (own * wide).mean(-1, /*keepdim=*/true));
  const at::Tensor grad_weight =
      (grad.to(at::kFloat) * wide * scale).reshape({-1, x.size(-1)}).sum(0);
  return {of_x ? grad_x.to(x.scalar_type()) : at::Tensor(),
          of_weight ? grad_weight.to(weight.scalar_type()) : at::Tensor()};
}

#elif defined(ROTARY)

void apply_rotary(const at::Tensor& x1, const at::Tensor& x2, const at::Tensor& cos,
                  const at::Tensor& sin, at::Tensor& out1, at::Tensor& out2, bool conj) {
  for (const at::Tensor& x : {x2, cos, sin, out1, out2}) {
    TORCH_CHECK(x.scalar_type() == x1.scalar_type(), "expected one dtype");
  }
  const at::Tensor turn = conj ? sin.neg() : sin;
  const at::Tensor first = x1 * cos - x2 * turn, second = x1 * turn + x2 * cos;
  out1.copy_(first);
  out2.copy_(second);
}

#elif defined(LAYER_NORM)

using Maybe = std::optional<at::Tensor>;

struct Stats {
  at::Tensor mean, inverse;
};

Stats stats_of(const at::Tensor& x, double eps, bool is_rms) {
  const at::Tensor mean = is_rms ? at::zeros({x.size(0)}) : x.mean(-1);
  const at::Tensor centred = x - mean.unsqueeze(1);
  return {mean, at::rsqrt(centred.pow(2).mean(-1) + eps)};
}

void check(const at::Tensor& x) {
  TORCH_CHECK(x.dim() == 2 && x.is_contiguous() && x.size(1) % 8 == 0 && x.size(1) <= 8192,
              "expected dense rows of a multiple of 8");
}

at::Tensor dropped(const at::Tensor& x, double p, at::Tensor& mask) {
  if (p == 0.0) {
    return x;
  }
  mask = at::rand(x.sizes()).gt(p).to(at::kByte);
  return x * mask / (1.0 - p);
}

at::Tensor weigh(const at::Tensor& x, const Stats& stats, const at::Tensor& gamma,
                 const Maybe& beta) {
  const at::Tensor norm = (x - stats.mean.unsqueeze(1)) * stats.inverse.unsqueeze(1);
  const at::Tensor weighed = norm * gamma.to(at::kFloat);
  return beta ? weighed + beta->to(at::kFloat) : weighed;
}

Tensors forward(const at::Tensor& input, const at::Tensor& gamma, const Maybe& beta,
                const Maybe& rowscale, const Maybe& colscale, const Maybe& x0, const Maybe& z,
                double p, double eps, double, int64_t, std::optional<at::Generator>, bool,
                bool is_rms) {
  check(input);
  TORCH_CHECK(!rowscale && !colscale && !x0 && !z, "expected no subsets");
  at::Tensor mask;
  const at::Tensor x = dropped(input.to(at::kFloat), p, mask);
  const Stats stats = stats_of(x, eps, is_rms);
  return {weigh(x, stats, gamma, beta).to(input.scalar_type()),
          p > 0.0 ? x.to(input.scalar_type()) : at::Tensor(), mask, stats.mean, stats.inverse};
}

struct Gradients {
  at::Tensor x, gamma, beta;
};

Gradients gradients(const at::Tensor& dz, const at::Tensor& x, const at::Tensor& mean,
                    const at::Tensor& inverse, const at::Tensor& gamma, bool is_rms) {
  const at::Tensor grad = dz.to(at::kFloat);
  const at::Tensor norm = (x.to(at::kFloat) - mean.unsqueeze(1)) * inverse.unsqueeze(1);
  const at::Tensor own = grad * gamma.to(at::kFloat);
  at::Tensor centred = own - norm * (own * norm).mean(-1, true);
  if (!is_rms) {
    centred = centred - own.mean(-1, true);
  }
  return {centred * inverse.unsqueeze(1), (grad * norm).sum(0), grad.sum(0)};
}

at::Tensor undropped(const at::Tensor& grad, const Maybe& mask, double p) {
  return p > 0.0 ? grad * *mask / (1.0 - p) : grad;
}

Tensors backward(const at::Tensor& dz, const Maybe& dx, const at::Tensor& x, const Maybe& x0,
                 const Maybe& mask, const at::Tensor& mean, const at::Tensor& inverse,
                 const at::Tensor& gamma, const Maybe&, const Maybe&, const Maybe&, const Maybe&,
                 double p, double, int64_t, bool has_residual, bool is_rms) {
  TORCH_CHECK(!dx && !x0 && !has_residual, "expected the plain norm");
  const auto own = gradients(dz, x, mean, inverse, gamma, is_rms);
  return {undropped(own.x, mask, p).to(dz.scalar_type()),
          at::Tensor(),
          own.gamma,
          own.beta,
          at::Tensor(),
          at::Tensor()};
}

Tensors add_forward(const at::Tensor& input, const Maybe& x1, const Maybe& residual,
                    const at::Tensor& gamma, const Maybe& beta, const Maybe& gamma1, const Maybe&,
                    double p, double eps, std::optional<at::Generator>, bool wide_residual,
                    bool is_rms) {
  check(input);
  TORCH_CHECK(!x1 && !gamma1 && residual, "expected one branch and a residual");
  TORCH_CHECK(wide_residual == (residual->scalar_type() == at::kFloat), "expected its dtype");
  at::Tensor mask;
  const at::Tensor sum = dropped(input.to(at::kFloat), p, mask) + residual->to(at::kFloat);
  const Stats stats = stats_of(sum, eps, is_rms);
  return {weigh(sum, stats, gamma, beta).to(input.scalar_type()),
          at::Tensor(),
          sum.to(residual->scalar_type()),
          mask,
          at::Tensor(),
          stats.mean,
          stats.inverse};
}

Tensors add_backward(const at::Tensor& dz, const Maybe& dz1, const Maybe& dx, const at::Tensor& x,
                     const Maybe& mask, const Maybe&, const at::Tensor& mean,
                     const at::Tensor& inverse, const at::Tensor& gamma, const Maybe& gamma1,
                     double p, bool has_x1, bool has_residual, bool is_rms) {
  TORCH_CHECK(!dz1 && !gamma1 && !has_x1 && has_residual, "expected one branch and a residual");
  const auto own = gradients(dz, x, mean, inverse, gamma, is_rms);
  const at::Tensor sum = dx ? own.x + dx->to(at::kFloat) : own.x;
  const bool same = p == 0.0 && x.scalar_type() == dz.scalar_type();
  return {undropped(sum, mask, p).to(dz.scalar_type()),
          at::Tensor(),
          same ? at::Tensor() : sum.to(x.scalar_type()),
          own.gamma,
          own.beta,
          at::Tensor(),
          at::Tensor(),
          at::Tensor(),
          at::Tensor(),
          at::Tensor(),
          at::Tensor()};
}

#else

void silu_and_mul(at::Tensor& out, const at::Tensor& input) {
  const auto halves = input.chunk(2, -1);
  out.copy_(at::silu(halves[0]) * halves[1]);
}

#endif

}  // namespace

CLASSIC_OPS(ops) {
#if defined(RMSNORM)
  ops.def(
      "apply_rms_norm(Tensor hidden_states, Tensor weight, float variance_epsilon) -> Tensor[]");
  ops.def(
      "apply_rms_norm_backward(Tensor grad_output, Tensor hidden_states, Tensor weight, Tensor "
      "output, Tensor rstd, float variance_epsilon, bool input_requires_grad, bool "
      "weight_requires_grad) -> Tensor[]");
#elif defined(ROTARY) && defined(OTHER_SCHEMA)
  ops.def(
      "apply_rotary(Tensor x1, Tensor x2, Tensor cos, Tensor sin, Tensor out1, Tensor! out2, bool "
      "conj, bool interleaved=False) -> ()");
#elif defined(ROTARY)
  ops.def(
      "apply_rotary(Tensor x1, Tensor x2, Tensor cos, Tensor sin, Tensor! out1, Tensor! out2, bool "
      "conj) -> ()");
#elif defined(LAYER_NORM)
  ops.def(
      "dropout_add_ln_fwd(Tensor input, Tensor gamma, Tensor? beta, Tensor? rowscale, Tensor? "
      "colscale, Tensor? x0_subset, Tensor? z_subset, float dropout_p, float epsilon, float "
      "rowscale_const, int z_numrows, Generator? gen, bool residual_in_fp32, bool is_rms_norm) -> "
      "Tensor[]");
  ops.def(
      "dropout_add_ln_bwd(Tensor dz, Tensor? dx, Tensor x, Tensor? x0, Tensor? dmask, Tensor mu, "
      "Tensor rsigma, Tensor gamma, Tensor? rowscale, Tensor? colscale, Tensor? x0_subset, Tensor? "
      "z_subset, float dropout_p, float rowscale_const, int x0_numrows, bool has_residual, bool "
      "is_rms_norm) -> Tensor[]");
  ops.def(
      "dropout_add_ln_parallel_residual_fwd(Tensor input, Tensor? x1, Tensor? residual, Tensor "
      "gamma0, Tensor? beta0, Tensor? gamma1, Tensor? beta1, float dropout_p, float epsilon, "
      "Generator? gen, bool residual_in_fp32, bool is_rms_norm) -> Tensor[]");
  ops.def(
      "dropout_add_ln_parallel_residual_bwd(Tensor dz0, Tensor? dz1, Tensor? dx, Tensor x, Tensor? "
      "dmask0, Tensor? dmask1, Tensor mu, Tensor rsigma, Tensor gamma0, Tensor? gamma1, float "
      "dropout_p, bool has_x1, bool has_residual, bool is_rms_norm) -> Tensor[]");
#else
  ops.def("silu_and_mul(Tensor! out, Tensor input) -> ()");
#endif
}

#if defined(RMSNORM)
CLASSIC_OPS_IMPL(CompositeExplicitAutograd, ops) {
  ops.impl("apply_rms_norm", &forward);
  ops.impl("apply_rms_norm_backward", &backward);
}
#elif !defined(OTHER_SCHEMA)
CLASSIC_OPS_IMPL(CPU, ops) {
#if defined(ROTARY)
  ops.impl("apply_rotary", &apply_rotary);
#elif defined(LAYER_NORM)
  ops.impl("dropout_add_ln_fwd", &forward);
  ops.impl("dropout_add_ln_bwd", &backward);
  ops.impl("dropout_add_ln_parallel_residual_fwd", &add_forward);
  ops.impl("dropout_add_ln_parallel_residual_bwd", &add_backward);
#else
  ops.impl("silu_and_mul", &silu_and_mul);
#endif
}
#endif
