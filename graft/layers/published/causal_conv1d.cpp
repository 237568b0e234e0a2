#include "graft/layers/published/causal_conv1d.h"

#include "graft/layers/bound_op.h"
#include "graft/layers/gradient.h"

namespace graft::layers::published {

namespace {

constexpr char kForward[] =
    "causal_conv1d_fwd(Tensor x, Tensor weight, Tensor? bias, Tensor? seq_idx, Tensor? "
    "initial_states, "
    "Tensor! out, Tensor!? final_states_out, bool silu_activation) -> ()";
constexpr char kBackward[] =
    "causal_conv1d_bwd(Tensor x, Tensor weight, Tensor? bias, Tensor! dout, Tensor? seq_idx, "
    "Tensor? "
    "initial_states, Tensor? dfinal_states, Tensor! dx, Tensor! dweight, Tensor!? dbias, Tensor!? "
    "dinitial_states, bool silu_activation) -> ()";
constexpr char kUpdate[] =
    "causal_conv1d_update(Tensor x, Tensor conv_state, Tensor weight, Tensor? bias, Tensor! out, "
    "bool "
    "silu_activation, Tensor? cache_seqlens, Tensor? conv_state_indices) -> ()";

constexpr int64_t kChannelMultiple = 8;

// [B, C, L] whose channels lie together, as sequences and states want it.
at::Tensor channels_last(const at::Tensor& x) {
  return x.stride(1) == 1 ? x : x.transpose(1, 2).contiguous().transpose(1, 2);
}

// The layouts that the kernels read: time or channels dense.
at::Tensor readable(const at::Tensor& x, bool needs_channels_last) {
  if (needs_channels_last) {
    return channels_last(x);
  }
  return x.stride(2) == 1 || x.stride(1) == 1 ? x : x.contiguous();
}

// [B, C, W - 1] with dense channels.
at::Tensor empty_states(const at::Tensor& x, int64_t width) {
  return at::empty({x.size(0), width - 1, x.size(1)}, x.options()).transpose(1, 2);
}

// A gradient in the layout of x, which the kernels want alike.
at::Tensor in_layout_of(const at::Tensor& grad, const at::Tensor& x) {
  return at::empty_strided(x.sizes(), x.strides(), x.options()).copy_(grad);
}

}  // namespace

CausalConv1d::CausalConv1d(const kernel::LoadedKernel& kernel)
    : repository_(kernel.repository),
      forward_(kernel, {kForward}),
      backward_(kernel, {kBackward}),
      update_(kernel, {kUpdate}) {}

void CausalConv1d::check(const at::Tensor& x, const at::Tensor& weight,
                         const at::Tensor& bias) const {
  const auto dtype = x.scalar_type();
  forward_.need(dtype == at::kFloat || dtype == at::kHalf || dtype == at::kBFloat16, "x",
                "float32, float16 or bfloat16", x);
  forward_.need(weight.dim() == 2 && weight.size(0) == x.size(1) && weight.size(1) >= 2 &&
                    weight.size(1) <= 4,
                "weight", "[channels, width] of width 2 to 4", weight);
  forward_.need(
      !bias.defined() || (bias.scalar_type() == weight.scalar_type() &&
                          bias.sizes() == at::IntArrayRef{x.size(1)} && bias.is_contiguous()),
      "bias", "[channels] in weight's dtype", bias);
}

ConvResult CausalConv1d::forward(const at::Tensor& x, const at::Tensor& weight,
                                 const at::Tensor& bias, const ConvOptions& options) const {
  forward_.need(x.dim() == 3, "x", "[batch, channels, length]", x);
  check(x, weight, bias);
  const at::Tensor& sequences = options.sequences;
  const at::Tensor& states = options.initial_states;
  const bool stateful = states.defined() || options.want_final_states;
  forward_.need(
      !sequences.defined() || (sequences.scalar_type() == at::kInt &&
                               sequences.sizes() == at::IntArrayRef{x.size(0), x.size(2)}),
      "seq_idx", "int32 [batch, length]", sequences);
  forward_.need(!(sequences.defined() && stateful), "seq_idx", "none beside states", sequences);
  forward_.need(!(sequences.defined() || stateful) || x.size(1) % kChannelMultiple == 0, "x",
                "a multiple of 8 channels beside seq_idx or states", x);
  forward_.need(!states.defined() ||
                    states.sizes() == at::IntArrayRef{x.size(0), x.size(1), weight.size(1) - 1},
                "initial_states", "[batch, channels, width - 1]", states);
  const bool records = needs_gradient({&x, &weight, &bias, &states});
  const at::Tensor input = readable(x.detach(), sequences.defined() || stateful);
  const at::Tensor before = states.defined() ? channels_last(states.detach()) : at::Tensor();
  const at::Tensor own_sequences = sequences.defined() ? sequences.contiguous() : at::Tensor();
  const at::Tensor own_weight = weight.detach().contiguous();
  ConvResult result{at::empty_strided(input.sizes(), input.strides(), input.options()),
                    options.want_final_states ? empty_states(input, weight.size(1)) : at::Tensor()};
  forward_(input, own_weight, maybe(bias), maybe(own_sequences), maybe(before), result.out,
           maybe(result.final_states), options.silu);
  if (!records) {
    return result;
  }
  Tensors outputs = {result.out};
  if (result.final_states.defined()) {
    outputs.push_back(result.final_states);
  }
  record(
      repository_, outputs, {x, weight, bias, states},
      {input, own_weight, bias, own_sequences, before},
      [backward = backward_, silu = options.silu](const Tensors& saved, const Tensors& grads) {
        const at::Tensor& in = saved[0];
        const at::Tensor grad_out =
            grads[0].defined() ? in_layout_of(grads[0], in)
                               : at::empty_strided(in.sizes(), in.strides(), in.options()).zero_();
        const at::Tensor grad_final =
            grads.size() > 1 && grads[1].defined() ? channels_last(grads[1]) : at::Tensor();
        // The kernel adds into these two, in float32.
        const at::Tensor grad_weight = at::zeros(saved[1].sizes(), in.options().dtype(at::kFloat));
        const at::Tensor grad_bias =
            saved[2].defined() ? at::zeros(saved[2].sizes(), grad_weight.options()) : at::Tensor();
        const at::Tensor grad_in = at::empty_strided(in.sizes(), in.strides(), in.options());
        const at::Tensor grad_before =
            saved[4].defined() ? empty_states(in, saved[1].size(1)) : at::Tensor();
        backward(in, saved[1], maybe(saved[2]), grad_out, maybe(saved[3]), maybe(saved[4]),
                 maybe(grad_final), grad_in, grad_weight, maybe(grad_bias), maybe(grad_before),
                 silu);
        return Tensors{grad_in, grad_weight.to(saved[1].scalar_type()),
                       grad_bias.defined() ? grad_bias.to(saved[2].scalar_type()) : grad_bias,
                       grad_before};
      });
  return result;
}

at::Tensor CausalConv1d::update(const at::Tensor& x, const at::Tensor& conv_state,
                                const at::Tensor& weight, const at::Tensor& bias, bool silu,
                                const at::Tensor& lengths, const at::Tensor& rows) const {
  update_.need(x.dim() == 2 || x.dim() == 3, "x", "[batch, channels] or [batch, channels, length]",
               x);
  check(x, weight, bias);
  must_record(repository_, /*has_backward=*/false, {&x, &conv_state, &weight, &bias});
  update_.need(
      conv_state.dim() == 3 && conv_state.size(1) == x.size(1) &&
          conv_state.size(2) >= weight.size(1) - 1 && conv_state.scalar_type() == x.scalar_type() &&
          (rows.defined() || conv_state.size(0) == x.size(0)),
      "conv_state", "[batch, channels, at least width - 1] in the input's dtype", conv_state);
  for (const at::Tensor* index : {&lengths, &rows}) {
    update_.need(!index->defined() || (index->scalar_type() == at::kInt && index->is_contiguous() &&
                                       index->sizes() == at::IntArrayRef{x.size(0)}),
                 "cache_seqlens and conv_state_indices", "int32 [batch]", *index);
  }
  const at::Tensor input = x.dim() == 2 ? x.unsqueeze(-1) : x;
  const at::Tensor out = at::empty(input.sizes(), input.options());
  update_(input, conv_state, weight.contiguous(), maybe(bias), out, silu, maybe(lengths),
          maybe(rows));
  return out.view(x.sizes());
}

}  // namespace graft::layers::published
