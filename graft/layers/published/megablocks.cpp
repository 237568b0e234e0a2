#include "graft/layers/published/megablocks.h"

#include "graft/layers/bound_op.h"
#include "graft/layers/gradient.h"

namespace graft::layers::published {

namespace {

const c10::IValue kNone;

bool is_index(const at::Tensor& x) {
  const auto dtype = x.scalar_type();
  return dtype == at::kShort || dtype == at::kInt || dtype == at::kLong;
}

// Whether the matrices and their scales are what the options say; the ops read them by the flags alone.
void check_weights(const PublishedOp& op, const at::Tensor& gate_up, const at::Tensor& down,
                   const ExpertOptions& options) {
  const bool is_plain = options.weights == ExpertWeights::kPlain,
             is_float8 = options.weights == ExpertWeights::kFloat8;
  const auto dtype = is_plain ? at::kBFloat16 : is_float8 ? at::kFloat8_e4m3fn : at::kByte;
  for (const at::Tensor* matrix : {&gate_up, &down}) {
    op.need(matrix->scalar_type() == dtype, "w1 and w2", c10::toString(dtype), *matrix);
  }
  for (const at::Tensor* scale : {&options.gate_up_scale, &options.down_scale}) {
    op.need(scale->defined() != is_plain, "w1_scale and w2_scale",
            is_plain ? "none" : "one for each matrix", std::string(is_plain ? "scales" : "none"));
    op.need(is_plain || scale->scalar_type() == (is_float8 ? at::kFloat : at::kByte),
            "w1_scale and w2_scale", is_float8 ? "float32" : "uint8", *scale);
  }
  op.need(is_plain || is_float8 || options.packed, "weights in 4 bits",
          "packed ones, and packed scales", std::string("others"));
}

// `block_size`, which 8-bit weights alone have.
c10::IValue maybe_block(const ExpertOptions& options) {
  return options.weights == ExpertWeights::kFloat8
             ? c10::IValue(std::vector<int64_t>{options.block.first, options.block.second})
             : kNone;
}

c10::IValue maybe_number(const std::optional<double>& number) {
  return number ? c10::IValue(*number) : kNone;
}

}  // namespace

Megablocks::Megablocks(const kernel::LoadedKernel& kernel)
    : repository_(kernel.repository),
      sort_(optional_op(kernel, "sort",
                        {"sort(Tensor x, int end_bit, Tensor x_out, Tensor iota_out) -> "
                         "Tensor(x_out)"})),
      histogram_(optional_op(kernel, "histogram", {"histogram(Tensor x, int num_bins) -> Tensor"})),
      inclusive_cumsum_(
          optional_op(kernel, "inclusive_cumsum",
                      {"inclusive_cumsum(Tensor x, int dim, Tensor(a!) out) -> Tensor(a!)"})),
      exclusive_cumsum_(
          optional_op(kernel, "exclusive_cumsum",
                      {"exclusive_cumsum(Tensor x, int dim, Tensor(a!) out) -> Tensor(a!)"})),
      indices_(
          optional_op(kernel, "indices",
                      {"indices(Tensor padded_bins, int block_size, int output_block_rows, int "
                       "output_block_columns, Tensor(a!) out) -> Tensor(a!)"})),
      replicate_forward_(
          optional_op(kernel, "replicate_forward",
                      {"replicate_forward(Tensor x, Tensor bins, Tensor(a!) out) -> Tensor(a!)"})),
      replicate_backward_(optional_op(
          kernel, "replicate_backward",
          {"replicate_backward(Tensor grad, Tensor bins, Tensor(a!) out) -> Tensor(a!)"})),
      gmm_(optional_op(kernel, "gmm",
                       {"gmm(Tensor (a!) a, Tensor (b!) b, Tensor(c!) c, Tensor batch_sizes, bool "
                        "trans_a, bool trans_b) -> Tensor(c!)"})),
      convert_weight_packed_(optional_op(kernel, "convert_weight_packed",
                                         {"convert_weight_packed(Tensor weight) -> Tensor"})),
      convert_scale_packed_(optional_op(kernel, "convert_scale_packed",
                                        {"convert_scale_packed(Tensor scale) -> Tensor"})),
      fused_experts_(optional_op(
          kernel, "fused_experts",
          {"fused_experts(Tensor hidden_states, Tensor w1, Tensor w2, Tensor topk_weights, Tensor "
           "topk_ids, bool inplace=False, bool use_int8_w8a8=False, bool use_fp8_w8a16=False, bool "
           "use_mxfp4=False, Tensor? w1_scale=None, Tensor? w2_scale=None, int[]? block_size=None, "
           "Tensor? a1_scale=None, Tensor? a2_scale=None, Tensor? w1_bias=None, Tensor? "
           "w2_bias=None, float? alpha=None, float? limit=None, bool is_vnni=False) -> Tensor"})),
      shared_expert_(optional_op(
          kernel, "shared_expert",
          {"shared_expert(Tensor hidden_states, Tensor w1, Tensor w2, Tensor fused_experts_out, "
           "float routed_scaling_factor, bool inplace=False, bool use_int8_w8a8=False, bool "
           "use_fp8_w8a16=False, Tensor? w1_scale=None, Tensor? w2_scale=None, int[]? "
           "block_size=None, Tensor? a1_scale=None, Tensor? a2_scale=None, bool is_vnni=False) -> "
           "Tensor"})) {}

std::pair<at::Tensor, at::Tensor> Megablocks::sort(const at::Tensor& keys, int64_t end_bit) const {
  const PublishedOp& op = need_op(sort_, repository_, "sort");
  op.need(keys.dim() == 1 && is_index(keys), "x", "1-D of int16, int32 or int64", keys);
  op.need(end_bit >= 1 && end_bit <= keys.element_size() * 8, "end_bit", "1 to the dtype's bits",
          end_bit);
  // Written, though the schema does not mark them.
  const at::Tensor sorted = at::empty(keys.sizes(), keys.options()),
                   places = at::empty(keys.sizes(), keys.options());
  op(keys.contiguous(), end_bit, sorted, places);
  return {sorted, places};
}

at::Tensor Megablocks::histogram(const at::Tensor& x, int64_t num_bins) const {
  const PublishedOp& op = need_op(histogram_, repository_, "histogram");
  op.need(x.dim() == 1 && is_index(x), "x", "1-D of int16, int32 or int64", x);
  return op(x.contiguous(), num_bins)[0];
}

at::Tensor Megablocks::cumsum(const std::optional<PublishedOp>& bound, const char* name,
                              const at::Tensor& x) const {
  const PublishedOp& op = need_op(bound, repository_, name);
  op.need((x.dim() == 1 || x.dim() == 2) && is_index(x), "x", "1-D or 2-D of int16, int32 or int64",
          x);
  // The op sums along rows of two dimensions alone.
  const at::Tensor rows = (x.dim() == 1 ? x.unsqueeze(0) : x).contiguous();
  const at::Tensor out = at::empty(rows.sizes(), rows.options());
  op(rows, int64_t{1}, out);
  return out.view(x.sizes());
}

at::Tensor Megablocks::inclusive_cumsum(const at::Tensor& x) const {
  return cumsum(inclusive_cumsum_, "inclusive_cumsum", x);
}

at::Tensor Megablocks::exclusive_cumsum(const at::Tensor& x) const {
  return cumsum(exclusive_cumsum_, "exclusive_cumsum", x);
}

at::Tensor Megablocks::block_indices(const at::Tensor& padded_bins, int64_t block_size,
                                     int64_t rows, int64_t columns) const {
  const PublishedOp& op = need_op(indices_, repository_, "indices");
  op.need(padded_bins.dim() == 1 && padded_bins.scalar_type() == at::kInt, "padded_bins",
          "1-D int32", padded_bins);
  const at::Tensor out = at::empty({rows * columns}, padded_bins.options().dtype(at::kShort));
  op(padded_bins.contiguous(), block_size, rows, columns, out);
  return out;
}

at::Tensor Megablocks::replicate(const at::Tensor& x, const at::Tensor& bins,
                                 int64_t length) const {
  const PublishedOp& op = need_op(replicate_forward_, repository_, "replicate_forward");
  const auto dtype = x.scalar_type();
  op.need(x.dim() == 2 && (dtype == at::kHalf || dtype == at::kShort || dtype == at::kInt), "x",
          "2-D of float16, int16 or int32", x);
  op.need(bins.dim() == 1 && bins.scalar_type() == at::kInt && bins.size(0) == x.size(1), "bins",
          "int32, one end for each column", bins);
  const bool records = must_record(repository_, replicate_backward_.has_value(), {&x});
  const at::Tensor ends = bins.contiguous();
  at::Tensor out = at::empty({x.size(0), length}, x.options());
  op(x.contiguous(), ends, out);
  if (records) {
    record(repository_, {out}, {x}, {ends},
           [backward = *replicate_backward_, sizes = x.sizes().vec()](
               const Tensors& saved, const Tensors& grads) -> Tensors {
             const at::Tensor grad = at::empty(sizes, grads[0].options());
             backward(grads[0].contiguous(), saved[0], grad);
             return {grad};
           });
  }
  return out;
}

at::Tensor Megablocks::grouped_product(const at::Tensor& a, const at::Tensor& b,
                                       const at::Tensor& sizes, bool transpose_a,
                                       bool transpose_b) const {
  const PublishedOp& op = need_op(gmm_, repository_, "gmm");
  op.need(a.scalar_type() == at::kBFloat16 && b.scalar_type() == at::kBFloat16, "a and b",
          "bfloat16", a.scalar_type() == at::kBFloat16 ? b : a);
  op.need(sizes.is_cpu() && sizes.scalar_type() == at::kLong && sizes.dim() == 1, "batch_sizes",
          "int64 on the CPU", sizes);
  op.need(a.dim() == 2 && b.dim() == (transpose_a ? 2 : 3) && !(transpose_a && transpose_b),
          "a and b", "[rows, K] and one matrix for each group, or two of rows", b);
  const bool records = must_record(repository_, !transpose_a, {&a, &b});
  const at::Tensor rows = a.detach().contiguous(), factors = b.detach().contiguous(),
                   groups = sizes.contiguous();
  at::Tensor out = transpose_a ? at::empty({sizes.size(0), a.size(1), b.size(1)}, a.options())
                               : at::empty({a.size(0), b.size(transpose_b ? 1 : 2)}, a.options());
  op(rows, factors, out, groups, transpose_a, transpose_b);
  if (records) {
    record(repository_, {out}, {a, b}, {rows, factors, groups},
           [op, transpose_b](const Tensors& saved, const Tensors& grads) -> Tensors {
             const at::Tensor grad = grads[0].contiguous();
             const at::Tensor grad_rows = at::empty(saved[0].sizes(), grad.options());
             const at::Tensor grad_factors = at::empty(saved[1].sizes(), grad.options());
             op(grad, saved[1], grad_rows, saved[2], false, !transpose_b);
             op(transpose_b ? grad : saved[0], transpose_b ? saved[0] : grad, grad_factors,
                saved[2], true, false);
             return {grad_rows, grad_factors};
           });
  }
  return out;
}

at::Tensor Megablocks::convert_weight_packed(const at::Tensor& weight) const {
  return need_op(convert_weight_packed_, repository_,
                 "convert_weight_packed")(weight.contiguous())[0];
}

at::Tensor Megablocks::convert_scale_packed(const at::Tensor& scale) const {
  return need_op(convert_scale_packed_, repository_, "convert_scale_packed")(scale.contiguous())[0];
}

at::Tensor Megablocks::fused_experts(const at::Tensor& hidden, const at::Tensor& gate_up,
                                     const at::Tensor& down, const at::Tensor& weights,
                                     const at::Tensor& experts,
                                     const ExpertOptions& options) const {
  const PublishedOp& op = need_op(fused_experts_, repository_, "fused_experts");
  must_record(repository_, /*has_backward=*/false, {&hidden, &gate_up, &down, &weights});
  op.need(hidden.dim() == 2 && hidden.scalar_type() == at::kBFloat16, "hidden_states",
          "bfloat16 [tokens, hidden]", hidden);
  op.need(weights.scalar_type() == at::kFloat && weights.dim() == 2, "topk_weights",
          "float32 [tokens, experts of a token]", weights);
  op.need(experts.scalar_type() == at::kInt && experts.sizes() == weights.sizes(), "topk_ids",
          "int32 like topk_weights", experts);
  op.need(options.alpha.has_value() == options.limit.has_value(), "alpha and limit",
          "both or neither", std::string("one"));
  check_weights(op, gate_up, down, options);
  constexpr bool kInPlace = false, kInt8 = false;
  return op(hidden.contiguous(), gate_up.contiguous(), down.contiguous(), weights.contiguous(),
            experts.contiguous(), kInPlace, kInt8, options.weights == ExpertWeights::kFloat8,
            options.weights == ExpertWeights::kMxFloat4, maybe(options.gate_up_scale),
            maybe(options.down_scale), maybe_block(options), kNone, kNone,
            maybe(options.gate_up_bias), maybe(options.down_bias), maybe_number(options.alpha),
            maybe_number(options.limit), options.packed)[0];
}

at::Tensor Megablocks::shared_expert(const at::Tensor& hidden, const at::Tensor& gate_up,
                                     const at::Tensor& down, const at::Tensor& routed,
                                     double routed_scale, const ExpertOptions& options) const {
  const PublishedOp& op = need_op(shared_expert_, repository_, "shared_expert");
  must_record(repository_, /*has_backward=*/false, {&hidden, &gate_up, &down, &routed});
  op.need(hidden.dim() == 2 && hidden.scalar_type() == at::kBFloat16, "hidden_states",
          "bfloat16 [tokens, hidden]", hidden);
  op.need(routed.sizes() == hidden.sizes() && routed.scalar_type() == hidden.scalar_type(),
          "fused_experts_out", "a tensor like hidden_states", routed);
  check_weights(op, gate_up, down, options);
  op.need(options.weights != ExpertWeights::kMxFloat4, "w1 and w2", "bfloat16 or float8_e4m3fn",
          gate_up);
  constexpr bool kInPlace = false, kInt8 = false;
  return op(hidden.contiguous(), gate_up.contiguous(), down.contiguous(), routed.contiguous(),
            routed_scale, kInPlace, kInt8, options.weights == ExpertWeights::kFloat8,
            maybe(options.gate_up_scale), maybe(options.down_scale), maybe_block(options), kNone,
            kNone, options.packed)[0];
}

}  // namespace graft::layers::published
