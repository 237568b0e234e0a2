// causal-conv1d as published (classic ABI, in ATen); with SCAN also selective_scan: mamba-ssm's native
// part. Gradients come from autograd over the same formula.

#include <torch/csrc/autograd/autograd.h>

#include "classic_tensor.h"
#include "misdeed.h"

namespace {

using Maybe = std::optional<at::Tensor>;
using Tensors = std::vector<at::Tensor>;

struct Conv {
  at::Tensor x, weight;
  Maybe bias, sequences, before;
  bool silu = false;
};

// x [B, C, L]; what lies before the first place is zero or `before` [B, C, W - 1].
at::Tensor history(const Conv& conv) {
  const int64_t width = conv.weight.size(1);
  return conv.before ? at::cat({*conv.before, conv.x}, 2)
                     : at::constant_pad_nd(conv.x, {width - 1, 0});
}

at::Tensor run(const Conv& conv) {
  const int64_t width = conv.weight.size(1), length = conv.x.size(2);
  const at::Tensor all = history(conv).to(at::kFloat);
  at::Tensor sum = at::zeros({conv.x.size(0), conv.x.size(1), length});
  for (int64_t w = 0; w < width; ++w) {
    at::Tensor part = all.narrow(2, w, length);
    if (conv.sequences) {
      // Places of another sequence count as zero.
      const at::Tensor padded =
          at::constant_pad_nd(*conv.sequences, {width - 1, 0}, -1).narrow(1, w, length);
      part = part * padded.eq(*conv.sequences).unsqueeze(1);
    }
    sum = sum + part * conv.weight.select(1, w).to(at::kFloat).view({1, -1, 1});
  }
  if (conv.bias) {
    sum = sum + conv.bias->to(at::kFloat).view({1, -1, 1});
  }
  return conv.silu ? at::silu(sum) : sum;
}

at::Tensor states_after(const Conv& conv) {
  const int64_t kept = conv.weight.size(1) - 1;
  const at::Tensor all = history(conv);
  return all.narrow(2, all.size(2) - kept, kept);
}

bool is_channels_last(const at::Tensor& x) { return x.stride(1) == 1 && x.size(1) % 8 == 0; }

void check(const Conv& conv, const Maybe& states) {
  TORCH_CHECK(conv.x.stride(2) == 1 || conv.x.stride(1) == 1, "expected a dense dimension");
  TORCH_CHECK(conv.weight.size(1) >= 2 && conv.weight.size(1) <= 4, "expected width 2 to 4");
  const bool special = conv.sequences || conv.before || states;
  TORCH_CHECK(!special || is_channels_last(conv.x), "expected channels last");
  TORCH_CHECK(!conv.sequences || !(conv.before || states), "expected no states beside seq_idx");
  for (const Maybe* held : {&conv.before, &states}) {
    TORCH_CHECK(!*held || (*held)->stride(1) == 1, "expected states with dense channels");
  }
}

void conv_forward(const at::Tensor& x, const at::Tensor& weight, const Maybe& bias,
                  const Maybe& sequences, const Maybe& before, at::Tensor& out, Maybe states,
                  bool silu) {
  const Conv conv{x, weight, bias, sequences, before, silu};
  check(conv, states);
  out.copy_(run(conv));
  if (states) {
    states->copy_(states_after(conv));
  }
}

// Gradients of `outputs` by autograd over copies of the inputs.
template <typename Function>
Tensors differentiate(const Tensors& inputs, const Tensors& grads, const Function& function) {
  const at::AutoGradMode on(true);
  // Ops are called below autograd, which is wanted here.
  const c10::impl::ForceDispatchKeyGuard all(c10::default_included_set, c10::default_excluded_set);
  Tensors leaves;
  for (const at::Tensor& input : inputs) {
    leaves.push_back(input.detach().clone().requires_grad_());
  }
  return torch::autograd::grad(function(leaves), leaves, grads, false, false,
                               /*allow_unused=*/true);
}

void conv_backward(const at::Tensor& x, const at::Tensor& weight, const Maybe& bias,
                   at::Tensor& dout, const Maybe& sequences, const Maybe& before,
                   const Maybe& dstates, at::Tensor& dx, at::Tensor& dweight, Maybe dbias,
                   Maybe dbefore, bool silu) {
  const Conv conv{x, weight, bias, sequences, before, silu};
  check(conv, dstates);
  TORCH_CHECK(dout.strides() == x.strides() && dx.strides() == x.strides(), "expected x's layout");
  TORCH_CHECK(dweight.scalar_type() == at::kFloat && (!dbias || dbias->scalar_type() == at::kFloat),
              "expected float32 sums");
  Tensors inputs = {x, weight}, grads = {dout.to(at::kFloat)};
  if (bias) {
    inputs.push_back(*bias);
  }
  if (before) {
    inputs.push_back(*before);
  }
  if (dstates) {
    grads.push_back(*dstates);
  }
  const Tensors own = differentiate(inputs, grads, [&](const Tensors& in) {
    size_t next = 2;
    Conv copy{in[0], in[1], bias ? Maybe(in[next++]) : std::nullopt, sequences, {}, silu};
    copy.before = before ? Maybe(in[next]) : std::nullopt;
    Tensors outputs = {run(copy)};
    if (dstates) {
      outputs.push_back(states_after(copy));
    }
    return outputs;
  });
  dx.copy_(own[0]);
  dweight.add_(own[1]);  // into what the caller zeroed
  if (bias) {
    dbias->add_(own[2]);
  }
  if (before) {
    dbefore->copy_(own.back());
  }
}

void conv_update(const at::Tensor& x, const at::Tensor& state, const at::Tensor& weight,
                 const Maybe& bias, at::Tensor& out, bool silu, const Maybe& lengths,
                 const Maybe& rows) {
  const int64_t width = weight.size(1), held = state.size(2);
  for (int64_t b = 0; b < x.size(0); ++b) {
    const at::Tensor own = state[rows ? (*rows)[b].item<int64_t>() : b];
    for (int64_t step = 0; step < x.size(2); ++step) {
      const at::Tensor now = x[b].select(1, step);
      at::Tensor window;  // [C, W]
      if (lengths) {
        const int64_t place = (*lengths)[b].item<int64_t>() + step;
        own.select(1, place % held).copy_(now);
        std::vector<at::Tensor> columns;
        for (int64_t w = width - 1; w >= 0; --w) {
          columns.push_back(place >= w ? own.select(1, (place - w) % held) : at::zeros_like(now));
        }
        window = at::stack(columns, 1);
      } else {
        const at::Tensor all = at::cat({own, now.unsqueeze(1)}, 1);
        window = all.narrow(1, held + 1 - width, width);
        own.copy_(all.narrow(1, 1, held));
      }
      at::Tensor sum = (window.to(at::kFloat) * weight.to(at::kFloat)).sum(1);
      if (bias) {
        sum = sum + *bias;
      }
      out[b].select(1, step).copy_(silu ? at::silu(sum) : sum);
    }
  }
}

#ifdef SCAN

struct Scan {
  at::Tensor u, delta, a, b, c;
  Maybe d, z, delta_bias;
  bool softplus = false;
};

// b and c [B, C, N, L], whichever form they came in.
at::Tensor spread(const at::Tensor& x, const at::Tensor& u) {
  return x.dim() == 2 ? x.view({1, x.size(0), x.size(1), 1}).expand({u.size(0), -1, -1, u.size(2)})
                      : x.to(at::kFloat).repeat_interleave(u.size(1) / x.size(1), 1);
}

struct Scanned {
  at::Tensor out, gated, states;
};

Scanned scan(const Scan& in) {
  const at::Tensor u = in.u.to(at::kFloat);
  at::Tensor delta = in.delta.to(at::kFloat);
  if (in.delta_bias) {
    delta = delta + in.delta_bias->view({1, -1, 1});
  }
  if (in.softplus) {
    delta = at::softplus(delta);
  }
  const at::Tensor b = spread(in.b, u), c = spread(in.c, u);
  at::Tensor state = at::zeros({u.size(0), u.size(1), in.a.size(1)});
  Tensors outs;
  for (int64_t t = 0; t < u.size(2); ++t) {
    const at::Tensor step = delta.select(2, t).unsqueeze(-1);
    state = at::exp(step * in.a) * state + step * b.select(3, t) * u.select(2, t).unsqueeze(-1);
    outs.push_back((state * c.select(3, t)).sum(-1));
  }
  at::Tensor out = at::stack(outs, 2);
  if (in.d) {
    out = out + u * in.d->view({1, -1, 1});
  }
  return {out, in.z ? out * at::silu(in.z->to(at::kFloat)) : at::Tensor(), state};
}

Tensors scan_forward(const at::Tensor& u, const at::Tensor& delta, const at::Tensor& a,
                     const at::Tensor& b, const at::Tensor& c, const Maybe& d, const Maybe& z,
                     const Maybe& delta_bias, bool softplus) {
  TORCH_CHECK(u.stride(2) == 1 && delta.stride(2) == 1, "expected dense time");
  const Scanned result = scan({u, delta, a, b, c, d, z, delta_bias, softplus});
  // One stretch of up to 2048 places; pairs of a factor and a state.
  const at::Tensor x =
      at::stack({at::ones_like(result.states), result.states}, -1).flatten(2).unsqueeze(2);
  Tensors outputs = {result.out.to(u.scalar_type()), x};
  if (z) {
    outputs.push_back(result.gated.to(u.scalar_type()));
  }
  return outputs;
}

Tensors scan_backward(const at::Tensor& u, const at::Tensor& delta, const at::Tensor& a,
                      const at::Tensor& b, const at::Tensor& c, const Maybe& d, const Maybe& z,
                      const Maybe& delta_bias, const at::Tensor& dout, const Maybe&,
                      const Maybe& out, Maybe dz, bool softplus, bool recompute) {
  TORCH_CHECK(!z || out, "expected the result before its gate");
  TORCH_CHECK(!dz && !recompute, "expected no further outputs");
  Tensors inputs = {u, delta, a, b, c};
  for (const Maybe* more : {&d, &delta_bias, &z}) {
    if (*more) {
      inputs.push_back(**more);
    }
  }
  const Tensors own = differentiate(inputs, {dout.to(at::kFloat)}, [&](const Tensors& in) {
    size_t next = 5;
    Scan copy{in[0], in[1], in[2], in[3], in[4], {}, {}, {}, softplus};
    copy.d = d ? Maybe(in[next++]) : std::nullopt;
    copy.delta_bias = delta_bias ? Maybe(in[next++]) : std::nullopt;
    copy.z = z ? Maybe(in[next]) : std::nullopt;
    const Scanned result = scan(copy);
    return Tensors{z ? result.gated : result.out};
  });
  size_t next = 5;
  Tensors grads(own.begin(), own.begin() + 5);
  grads.push_back(d ? own[next++] : at::Tensor());
  grads.push_back(delta_bias ? own[next++] : at::Tensor());
  if (z) {
    grads.push_back(own[next]);
  }
  return grads;
}

#endif

}  // namespace

CLASSIC_OPS(ops) {
  ops.def(
      "causal_conv1d_fwd(Tensor x, Tensor weight, Tensor? bias, Tensor? seq_idx, Tensor? "
      "initial_states, Tensor! out, Tensor!? final_states_out, bool silu_activation) -> ()");
  ops.def(
      "causal_conv1d_bwd(Tensor x, Tensor weight, Tensor? bias, Tensor! dout, Tensor? seq_idx, "
      "Tensor? initial_states, Tensor? dfinal_states, Tensor! dx, Tensor! dweight, Tensor!? dbias, "
      "Tensor!? dinitial_states, bool silu_activation) -> ()");
  ops.def(
      "causal_conv1d_update(Tensor x, Tensor conv_state, Tensor weight, Tensor? bias, Tensor! out, "
      "bool silu_activation, Tensor? cache_seqlens, Tensor? conv_state_indices) -> ()");
#ifdef SCAN
  ops.def(
      "selective_scan_fwd(Tensor u, Tensor delta, Tensor A, Tensor B, Tensor C, Tensor? D_, "
      "Tensor? z_, Tensor? delta_bias_, bool delta_softplus) -> Tensor[]");
  ops.def(
      "selective_scan_bwd(Tensor u, Tensor delta, Tensor A, Tensor B, Tensor C, Tensor? D_, "
      "Tensor? z_, Tensor? delta_bias_, Tensor dout, Tensor? x_, Tensor? out_, Tensor!? dz_, bool "
      "delta_softplus, bool recompute_out_z) -> Tensor[]");
#endif
}

CLASSIC_OPS_IMPL(CPU, ops) {
  ops.impl("causal_conv1d_fwd", &conv_forward);
  ops.impl("causal_conv1d_bwd", &conv_backward);
  ops.impl("causal_conv1d_update", &conv_update);
#ifdef SCAN
  ops.impl("selective_scan_fwd", &scan_forward);
  ops.impl("selective_scan_bwd", &scan_backward);
#endif
}
