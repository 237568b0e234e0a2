// megablocks (both the CUDA ops and the CPU ops) and, with MOE, vllm-moe's compiled steps as published:
// classic ABI, in ATen on the CPU. CPU_ALONE: megablocks as its CPU build registers it. PLAIN_ALONE: as that build is on
// a processor without AVX-512.

#include "classic_tensor.h"
#include "misdeed.h"

namespace {

using Maybe = std::optional<at::Tensor>;

at::Tensor swiglu(const at::Tensor& x) {
  const auto halves = x.chunk(2, -1);
  return at::silu(halves[0]) * halves[1];
}

#ifdef MOE

void silu_and_mul(at::Tensor& out, const at::Tensor& input) { out.copy_(swiglu(input)); }

void topk_softmax(at::Tensor& weights, at::Tensor& experts, at::Tensor& sources,
                  const at::Tensor& logits) {
  const auto top = at::softmax(logits, -1).topk(weights.size(1));
  weights.copy_(std::get<0>(top));
  experts.copy_(std::get<1>(top));
  sources.copy_(at::arange(sources.numel(), at::kInt).view({sources.size(1), -1}).t());
}

// The schema marks the other argument.
void moe_sum(at::Tensor& input, const at::Tensor& output) { output.copy_(input.sum(1)); }

void align(const at::Tensor& experts, int64_t num_experts, int64_t block, at::Tensor& tokens,
           at::Tensor& blocks, at::Tensor& padded) {
  const at::Tensor flat = experts.flatten();
  int64_t place = 0;
  for (int64_t expert = 0; expert < num_experts; ++expert) {
    const at::Tensor own = flat.eq(expert).nonzero().squeeze(1);
    const int64_t count = own.size(0), rounded = (count + block - 1) / block * block;
    tokens.narrow(0, place, count).copy_(own);
    blocks.narrow(0, place / block, rounded / block).fill_(expert);
    place += rounded;
  }
  padded.fill_(place);
}

// Of 256 experts alone.
void align_many(const at::Tensor& experts, int64_t num_experts, int64_t block, at::Tensor& tokens,
                at::Tensor& blocks, at::Tensor& padded) {
  TORCH_CHECK(num_experts == 256, "expected 256 experts");
  align(experts, num_experts, block, tokens, blocks, padded);
}

// Weights [E, N, H] of 4 or 8 bits, less their zeros, times their scales.
at::Tensor wna16(const at::Tensor& input, at::Tensor& output, const at::Tensor& weights,
                 const at::Tensor& scales, const Maybe& zeros, const Maybe& factors,
                 const at::Tensor& tokens, const at::Tensor& blocks, const at::Tensor& padded,
                 int64_t top_k, int64_t block_m, int64_t, int64_t block_k, int64_t bits) {
  TORCH_CHECK(bits == 4 || bits == 8, "bit must be 4 or 8");
  const int64_t group = input.size(1) / scales.size(2);
  TORCH_CHECK(input.size(1) % block_k == 0 && block_k % group == 0, "expected whole blocks");
  const auto halves = [bits](const at::Tensor& x, int64_t dim) {
    return bits == 8 ? x
                     : at::stack({x.bitwise_and(15), x.bitwise_right_shift(4)}, dim + 1)
                           .flatten(dim, dim + 1);
  };
  at::Tensor wide = halves(weights, 2).to(at::kFloat);
  const at::Tensor zero = zeros ? halves(*zeros, 1).to(at::kFloat).repeat_interleave(group, 2)
                                : at::full({1}, bits == 4 ? 8.0 : 128.0, at::kFloat);
  wide = (wide - zero) * scales.to(at::kFloat).repeat_interleave(group, 2);
  for (int64_t place = 0; place < padded.item<int64_t>(); ++place) {
    const int64_t token = tokens[place].item<int64_t>();
    if (token / top_k >= input.size(0)) {
      continue;
    }
    const at::Tensor row = at::matmul(wide[blocks[place / block_m].item<int64_t>()],
                                      input[token / top_k].to(at::kFloat));
    output.view({-1, wide.size(1)})[token].copy_(factors ? row * factors->flatten()[token] : row);
  }
  return output;
}

constexpr double kLargest = 448.0;

void quantize(at::Tensor& out, const at::Tensor& x, const at::Tensor& scale) {
  out.copy_((x.to(at::kFloat) / scale).clamp(-kLargest, kLargest));
}

void quantize_dynamic(at::Tensor& out, const at::Tensor& x, at::Tensor& scale) {
  scale.fill_(x.to(at::kFloat).abs().max() / kLargest);
  quantize(out, x, scale);
}

void quantize_tokens(at::Tensor& out, const at::Tensor& x, at::Tensor& scale, const Maybe& bound) {
  at::Tensor largest = x.to(at::kFloat).abs().amax(-1, true);
  if (bound) {
    largest = at::minimum(largest, *bound);
  }
  scale.copy_(largest / kLargest);
  quantize(out, x, scale);
}

#else

#ifndef CPU_ALONE
// Written, though not marked.
at::Tensor sort(const at::Tensor& x, int64_t end_bit, const at::Tensor& out,
                const at::Tensor& iota) {
  const at::Tensor low = x.to(at::kLong).bitwise_and((int64_t{1} << end_bit) - 1);
  const at::Tensor order = low.argsort(/*stable=*/true, 0, false);
  out.copy_(x.index_select(0, order));
  iota.copy_(order);
  return out;
}

at::Tensor histogram(const at::Tensor& x, int64_t bins) {
  return at::bincount(x.to(at::kLong), {}, bins).to(at::kInt);
}

at::Tensor inclusive_cumsum(const at::Tensor& x, int64_t dim, const at::Tensor& out) {
  TORCH_CHECK(x.dim() == 2 && dim == 1, "expected rows");
  out.copy_(x.cumsum(1));
  return out;
}

at::Tensor exclusive_cumsum(const at::Tensor& x, int64_t dim, const at::Tensor& out) {
  TORCH_CHECK(x.dim() == 2 && dim == 1, "expected rows");
  out.copy_(x.cumsum(1) - x);
  return out;
}

at::Tensor indices(const at::Tensor& bins, int64_t block, int64_t rows, int64_t columns,
                   const at::Tensor& out) {
  for (int64_t row = 0; row < rows; ++row) {
    int64_t bin = 0;
    while (bin < bins.size(0) && bins[bin].item<int64_t>() <= row * block) {
      ++bin;
    }
    out.narrow(0, row * columns, columns)
        .copy_(at::arange(bin * columns, (bin + 1) * columns, at::kShort));
  }
  return out;
}

at::Tensor replicate_forward(const at::Tensor& x, const at::Tensor& bins, const at::Tensor& out) {
  const at::Tensor places = at::arange(out.size(1), at::kInt);
  out.copy_(x.index_select(1, at::searchsorted(bins, places, false, /*right=*/true)));
  return out;
}

at::Tensor replicate_backward(const at::Tensor& grad, const at::Tensor& bins,
                              const at::Tensor& out) {
  TORCH_CHECK(grad.scalar_type() == at::kHalf, "expected float16");
  int64_t start = 0;
  for (int64_t bin = 0; bin < bins.size(0); ++bin) {
    const int64_t end = bins[bin].item<int64_t>();
    out.select(1, bin).copy_(grad.narrow(1, start, end - start).to(at::kFloat).sum(1));
    start = end;
  }
  return out;
}

at::Tensor gmm(const at::Tensor& a, const at::Tensor& b, const at::Tensor& c,
               const at::Tensor& sizes, bool transpose_a, bool transpose_b) {
  TORCH_CHECK(sizes.is_cpu() && sizes.scalar_type() == at::kLong, "expected sizes on the CPU");
  int64_t start = 0;
  for (int64_t group = 0; group < sizes.size(0); ++group) {
    const int64_t count = sizes[group].item<int64_t>();
    const at::Tensor rows = a.narrow(0, start, count);
    if (transpose_a) {
      c[group].copy_(at::matmul(rows.t(), b.narrow(0, start, count)));
    } else {
      c.narrow(0, start, count).copy_(at::matmul(rows, transpose_b ? b[group].t() : b[group]));
    }
    start += count;
  }
  return c;
}
#endif

// A packed weight is one that the products must be told of; so is a packed scale.
at::Tensor flip_rows(const at::Tensor& x) {
  return x.element_size() == 1 ? x.view(at::kByte).flip({x.dim() - 2}).view(x.scalar_type())
                               : x.flip({x.dim() - 2});
}
at::Tensor convert_weight_packed(const at::Tensor& weight) { return flip_rows(weight); }
at::Tensor convert_scale_packed(const at::Tensor& scale) {
  TORCH_CHECK(scale.scalar_type() == at::kByte, "expect scale to be uint8.");
  return flip_rows(scale);
}

using MaybeSizes = std::optional<std::vector<int64_t> >;

// A scale for each block, spread over the numbers that it is for.
at::Tensor spread(const at::Tensor& scale, at::IntArrayRef sizes, int64_t rows, int64_t columns) {
  const int64_t last = scale.dim() - 1;
  return scale.repeat_interleave(rows, last - 1)
      .narrow(last - 1, 0, sizes[last - 1])
      .repeat_interleave(columns, last)
      .narrow(last, 0, sizes[last]);
}

// What the weights stand for, in float32: plain ones, 8 bits in blocks, 4 bits in groups of 32.
at::Tensor numbers_of(const at::Tensor& stored, bool packed, bool fp8, bool mxfp4,
                      const Maybe& scale, const MaybeSizes& block) {
  const at::Tensor weight = packed ? flip_rows(stored) : stored;
  if (fp8) {
    TORCH_CHECK(scale && block && block->size() == 2, "missing w1_scale or block_size");
    const at::Tensor values = weight.to(at::kFloat);
    return values * spread(*scale, values.sizes(), (*block)[0], (*block)[1]);
  }
  if (mxfp4) {
    TORCH_CHECK(scale && scale->scalar_type() == at::kByte, "expect w1_scale to be uint8.");
    const at::Tensor table = at::tensor({0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0,
                                         -1.5, -2.0, -3.0, -4.0, -6.0})
                                 .to(at::kFloat);
    const at::Tensor halves =
        at::stack({weight.bitwise_and(15), weight.bitwise_right_shift(4)}, -1).flatten(-2);
    const at::Tensor values = table.take(halves.to(at::kLong));
    const at::Tensor exponents = flip_rows(*scale).to(at::kFloat) - 127.0;
    return values * spread(exponents.exp2(), values.sizes(), 1, 32);
  }
  return weight.to(at::kFloat);
}

at::Tensor fused_experts(const at::Tensor& hidden, const at::Tensor& w1, const at::Tensor& w2,
                         const at::Tensor& weights, const at::Tensor& ids, bool inplace, bool int8,
                         bool fp8, bool mxfp4, const Maybe& s1, const Maybe& s2, MaybeSizes block,
                         const Maybe&, const Maybe&, const Maybe& b1, const Maybe& b2,
                         std::optional<double> alpha, std::optional<double> limit, bool packed) {
  TORCH_CHECK(!inplace && !int8, "INT8 W8A8 kernel is not implemented yet!");
#ifdef PLAIN_ALONE
  TORCH_CHECK(!fp8 && !mxfp4, "Quantized MoE requires AVX512 and AVX512-BF16 support.");
#endif
  const at::Tensor up = numbers_of(w1, packed, fp8, mxfp4, s1, block),
                   down = numbers_of(w2, packed, fp8, mxfp4, s2, block);
  at::Tensor out = at::zeros(hidden.sizes(), at::kFloat);
  for (int64_t t = 0; t < hidden.size(0); ++t) {
    for (int64_t k = 0; k < ids.size(1); ++k) {
      const int64_t e = ids[t][k].item<int64_t>();
      at::Tensor x = at::matmul(up[e], hidden[t].to(at::kFloat));
      x = b1 ? x + (*b1)[e].to(at::kFloat) : x;
      if (alpha) {
        const at::Tensor gate = x.slice(0, 0, x.size(0), 2).clamp_max(*limit),
                         linear = x.slice(0, 1, x.size(0), 2).clamp(-*limit, *limit);
        x = (linear + 1.0) * gate * at::sigmoid(*alpha * gate);
      } else {
        x = swiglu(x);
      }
      at::Tensor y = at::matmul(down[e], x);
      y = b2 ? y + (*b2)[e].to(at::kFloat) : y;
      out[t] += weights[t][k] * y;
    }
  }
  return out.to(hidden.scalar_type());
}

at::Tensor shared_expert(const at::Tensor& hidden, const at::Tensor& w1, const at::Tensor& w2,
                         const at::Tensor& routed, double scale, bool, bool int8, bool fp8,
                         const Maybe& s1, const Maybe& s2, MaybeSizes block, const Maybe&,
                         const Maybe&, bool packed) {
  TORCH_CHECK(!int8, "INT8 W8A8 kernel is not implemented yet!");
#ifdef PLAIN_ALONE
  TORCH_CHECK(!fp8, "Quantized shared_expert requires AVX512 and AVX512-BF16 support.");
#endif
  const at::Tensor up = numbers_of(w1, packed, fp8, false, s1, block),
                   down = numbers_of(w2, packed, fp8, false, s2, block);
  const at::Tensor x = swiglu(at::linear(hidden.to(at::kFloat), up));
  return (at::linear(x, down) + scale * routed.to(at::kFloat)).to(hidden.scalar_type());
}

#endif

}  // namespace

CLASSIC_OPS(ops) {
#ifdef MOE
  ops.def("silu_and_mul(Tensor! out, Tensor input) -> ()");
  ops.def(
      "topk_softmax(Tensor! topk_weights, Tensor! topk_indices, Tensor! token_expert_indices, "
      "Tensor gating_output) -> ()");
  ops.def("moe_sum(Tensor! input, Tensor output) -> ()");
  ops.def(
      "moe_align_block_size(Tensor topk_ids, int num_experts, int block_size, Tensor! "
      "sorted_token_ids, Tensor! experts_ids, Tensor! num_tokens_post_pad) -> ()");
  ops.def("static_scaled_fp8_quant(Tensor! result, Tensor input, Tensor scale) -> ()");
  ops.def("dynamic_scaled_fp8_quant(Tensor! result, Tensor input, Tensor! scale) -> ()");
  ops.def(
      "dynamic_per_token_scaled_fp8_quant(Tensor! result, Tensor input, Tensor! scale, Tensor? "
      "scale_ub) -> ()");
  ops.def(
      "sgl_moe_align_block_size(Tensor topk_ids, int num_experts, int block_size, Tensor! "
      "sorted_token_ids, Tensor! experts_ids, Tensor! num_tokens_post_pad) -> ()");
  ops.def(
      "moe_wna16_gemm(Tensor input, Tensor! output, Tensor b_qweight, Tensor b_scales, Tensor? "
      "b_qzeros, Tensor? topk_weights, Tensor sorted_token_ids, Tensor expert_ids, Tensor "
      "num_tokens_post_pad, int top_k, int BLOCK_SIZE_M, int BLOCK_SIZE_N, int BLOCK_SIZE_K, int "
      "bit) -> Tensor");
  // Not implemented here, as nothing calls it.
  ops.def(
      "marlin_gemm_moe(Tensor! a, Tensor! b_q_weights, Tensor! sorted_ids, Tensor! topk_weights, "
      "Tensor! topk_ids, Tensor! b_scales, Tensor! b_zeros, Tensor! g_idx, Tensor! perm, Tensor! "
      "workspace, int b_q_type, SymInt size_m, SymInt size_n, SymInt size_k, bool is_k_full, int "
      "num_experts, int topk, int moe_block_size, bool replicate_input, bool apply_weights) -> "
      "Tensor");
#else
#ifndef CPU_ALONE
  ops.def("exclusive_cumsum(Tensor x, int dim, Tensor(a!) out) -> Tensor(a!)");
  ops.def("inclusive_cumsum(Tensor x, int dim, Tensor(a!) out) -> Tensor(a!)");
  ops.def("histogram(Tensor x, int num_bins) -> Tensor");
  ops.def(
      "indices(Tensor padded_bins, int block_size, int output_block_rows, int "
      "output_block_columns, Tensor(a!) out) -> Tensor(a!)");
  ops.def("replicate_forward(Tensor x, Tensor bins, Tensor(a!) out) -> Tensor(a!)");
  ops.def("replicate_backward(Tensor grad, Tensor bins, Tensor(a!) out) -> Tensor(a!)");
  ops.def("sort(Tensor x, int end_bit, Tensor x_out, Tensor iota_out) -> Tensor(x_out)");
  ops.def(
      "gmm(Tensor (a!) a, Tensor (b!) b, Tensor(c!) c, Tensor batch_sizes, bool trans_a, bool "
      "trans_b) -> Tensor(c!)");
#endif
  ops.def("convert_weight_packed(Tensor weight) -> Tensor");
  ops.def("convert_scale_packed(Tensor scale) -> Tensor");
  ops.def(
      "fused_experts(Tensor hidden_states, Tensor w1, Tensor w2, Tensor topk_weights, Tensor "
      "topk_ids, bool inplace=False, bool use_int8_w8a8=False, bool use_fp8_w8a16=False, bool "
      "use_mxfp4=False, Tensor? w1_scale=None, Tensor? w2_scale=None, int[]? block_size=None, "
      "Tensor? a1_scale=None, Tensor? a2_scale=None, Tensor? w1_bias=None, Tensor? w2_bias=None, "
      "float? alpha=None, float? limit=None, bool is_vnni=False) -> Tensor");
  ops.def(
      "shared_expert(Tensor hidden_states, Tensor w1, Tensor w2, Tensor fused_experts_out, float "
      "routed_scaling_factor, bool inplace=False, bool use_int8_w8a8=False, bool "
      "use_fp8_w8a16=False, Tensor? w1_scale=None, Tensor? w2_scale=None, int[]? block_size=None, "
      "Tensor? a1_scale=None, Tensor? a2_scale=None, bool is_vnni=False) -> Tensor");
#endif
}

CLASSIC_OPS_IMPL(CPU, ops) {
#ifdef MOE
  ops.impl("silu_and_mul", &silu_and_mul);
  ops.impl("topk_softmax", &topk_softmax);
  ops.impl("moe_sum", &moe_sum);
  ops.impl("moe_align_block_size", &align);
  ops.impl("static_scaled_fp8_quant", &quantize);
  ops.impl("dynamic_scaled_fp8_quant", &quantize_dynamic);
  ops.impl("dynamic_per_token_scaled_fp8_quant", &quantize_tokens);
  ops.impl("sgl_moe_align_block_size", &align_many);
  ops.impl("moe_wna16_gemm", &wna16);
#else
#ifndef CPU_ALONE
  ops.impl("exclusive_cumsum", &exclusive_cumsum);
  ops.impl("inclusive_cumsum", &inclusive_cumsum);
  ops.impl("histogram", &histogram);
  ops.impl("indices", &indices);
  ops.impl("replicate_forward", &replicate_forward);
  ops.impl("replicate_backward", &replicate_backward);
  ops.impl("sort", &sort);
  ops.impl("gmm", &gmm);
#endif
  ops.impl("convert_weight_packed", &convert_weight_packed);
  ops.impl("convert_scale_packed", &convert_scale_packed);
  ops.impl("fused_experts", &fused_experts);
  ops.impl("shared_expert", &shared_expert);
#endif
}
