#include "graft/layers/published/selective_scan.h"

#include "graft/layers/bound_op.h"
#include "graft/layers/gradient.h"

namespace graft::layers::published {

namespace {

constexpr char kForward[] =
    "selective_scan_fwd(Tensor u, Tensor delta, Tensor A, Tensor B, Tensor C, Tensor? D_, Tensor? "
    "z_, "
    "Tensor? delta_bias_, bool delta_softplus) -> Tensor[]";
constexpr char kBackward[] =
    "selective_scan_bwd(Tensor u, Tensor delta, Tensor A, Tensor B, Tensor C, Tensor? D_, Tensor? "
    "z_, "
    "Tensor? delta_bias_, Tensor dout, Tensor? x_, Tensor? out_, Tensor!? dz_, bool "
    "delta_softplus, "
    "bool recompute_out_z) -> Tensor[]";

constexpr int64_t kMaxStates = 256;

// b and c that vary with time belong to groups of channels; one group where none is named.
at::Tensor grouped(const at::Tensor& x) {
  return x.dim() == 2 ? x.contiguous() : with_contiguous_rows(x.dim() == 3 ? x.unsqueeze(1) : x);
}

at::Tensor ungrouped(const at::Tensor& grad, int64_t dims) {
  return dims == 3 ? grad.squeeze(1) : grad;
}

}  // namespace

SelectiveScan::SelectiveScan(const kernel::LoadedKernel& kernel)
    : repository_(kernel.repository),
      forward_(kernel, {kForward}),
      backward_(kernel, {kBackward}) {}

ScanResult SelectiveScan::forward(const at::Tensor& u, const at::Tensor& delta,
                                  const ScanInputs& in) const {
  const auto dtype = u.scalar_type();
  forward_.need(
      u.dim() == 3 && (dtype == at::kFloat || dtype == at::kHalf || dtype == at::kBFloat16), "u",
      "[batch, channels, length] in float32, float16 or bfloat16", u);
  forward_.need(delta.sizes() == u.sizes() && delta.scalar_type() == dtype, "delta",
                "a tensor like u", delta);
  forward_.need(in.a.dim() == 2 && in.a.size(0) == u.size(1) && in.a.size(1) <= kMaxStates &&
                    in.a.scalar_type() == at::kFloat,
                "A", "[channels, at most 256 states] in float32 (complex is not served)", in.a);
  for (const at::Tensor* x : {&in.b, &in.c}) {
    forward_.need(x->defined() && x->dim() >= 2 && x->dim() <= 4 &&
                      x->scalar_type() == (x->dim() == 2 ? at::kFloat : dtype),
                  "B and C",
                  "[batch, states, length] or [batch, groups, states, length] in u's dtype, or "
                  "[channels, states] in A's",
                  *x);
  }
  for (const at::Tensor* x : {&in.d, &in.delta_bias}) {
    forward_.need(!x->defined() ||
                      (x->scalar_type() == at::kFloat && x->sizes() == at::IntArrayRef{u.size(1)}),
                  "D and delta_bias", "[channels] in float32", *x);
  }
  forward_.need(!in.z.defined() || (in.z.sizes() == u.sizes() && in.z.scalar_type() == dtype), "z",
                "a tensor like u", in.z);
  const bool records =
      needs_gradient({&u, &delta, &in.a, &in.b, &in.c, &in.d, &in.z, &in.delta_bias});
  const auto rows = [](const at::Tensor& x) {
    return x.defined() ? with_contiguous_rows(x.detach()) : x;
  };
  const Tensors call = {rows(u),
                        rows(delta),
                        in.a.detach().contiguous(),
                        grouped(in.b.detach()),
                        grouped(in.c.detach()),
                        rows(in.d),
                        rows(in.z),
                        rows(in.delta_bias)};
  const Tensors results = forward_(call[0], call[1], call[2], call[3], call[4], maybe(call[5]),
                                   maybe(call[6]), maybe(call[7]), in.delta_softplus);
  // States are left as pairs of a factor and a state, one pair for each stretch of the text.
  const at::Tensor last =
      results[1].select(2, -1).slice(-1, 1, results[1].size(-1), 2).to(at::kFloat);
  at::Tensor out = in.z.defined() ? results[2] : results[0];
  if (records) {
    Tensors saved = call;
    saved.push_back(results[1]);
    saved.push_back(in.z.defined() ? results[0] : at::Tensor());
    record(repository_, {out}, {u, delta, in.a, in.b, in.c, in.d, in.z, in.delta_bias}, saved,
           [backward = backward_, softplus = in.delta_softplus, b_dims = in.b.dim(),
            c_dims = in.c.dim()](const Tensors& s, const Tensors& grads) -> Tensors {
             const Tensors own = backward(s[0], s[1], s[2], s[3], s[4], maybe(s[5]), maybe(s[6]),
                                          maybe(s[7]), with_contiguous_rows(grads[0]), maybe(s[8]),
                                          maybe(s[9]), c10::IValue(), softplus, false);
             return {own[0],
                     own[1],
                     own[2],
                     ungrouped(own[3], b_dims).to(s[3].scalar_type()),
                     ungrouped(own[4], c_dims).to(s[4].scalar_type()),
                     s[5].defined() ? own[5] : at::Tensor(),
                     s[6].defined() ? own[7] : at::Tensor(),
                     s[7].defined() ? own[6] : at::Tensor()};
           });
  }
  return {out, last};
}

at::Tensor mamba_inner(const CausalConv1d& conv, const SelectiveScan& scan, const at::Tensor& xz,
                       const MambaWeights& weights, bool delta_softplus) {
  const int64_t states = weights.a.size(1), rank = weights.dt_proj.size(1);
  const auto halves = xz.chunk(2, 1);
  const at::Tensor u =
      conv.forward(halves[0], weights.conv_weight, weights.conv_bias, {.silu = true}).out;
  // [B, L, R + 2 N]
  const auto parts =
      at::linear(u.transpose(1, 2), weights.x_proj).split_with_sizes({rank, states, states}, -1);
  const at::Tensor delta = at::linear(parts[0], weights.dt_proj).transpose(1, 2);
  const at::Tensor out = scan.forward(u, delta,
                                      {.a = weights.a,
                                       .b = parts[1].transpose(1, 2),
                                       .c = parts[2].transpose(1, 2),
                                       .d = weights.d,
                                       .z = halves[1],
                                       .delta_bias = weights.dt_bias,
                                       .delta_softplus = delta_softplus})
                             .out;
  return at::linear(out.transpose(1, 2), weights.out_proj, maybe(weights.out_bias));
}

}  // namespace graft::layers::published
