#include "graft/layers/published/moe.h"

#include "graft/layers/bound_op.h"

namespace graft::layers::published {

namespace {

constexpr int64_t kManyExperts = 256;  // of sgl_moe_align_block_size, which has no other
// Of moe_wna16_gemm: threads of a block, an output each, and what it keeps its inputs in.
constexpr int64_t kOutputsOfABlock = 64;
constexpr int64_t kSharedBytes = 48 * 1024;

}  // namespace

MoeOps::MoeOps(const kernel::LoadedKernel& kernel)
    : repository_(kernel.repository),
      silu_and_mul_(kernel, {"silu_and_mul(Tensor! out, Tensor input) -> ()"}),
      topk_softmax_(kernel, {"topk_softmax(Tensor! topk_weights, Tensor! topk_indices, Tensor! "
                             "token_expert_indices, Tensor gating_output) -> ()"}),
      moe_sum_(kernel, {"moe_sum(Tensor! input, Tensor output) -> ()"}),
      align_(kernel, {"moe_align_block_size(Tensor topk_ids, int num_experts, int block_size, "
                      "Tensor! sorted_token_ids, Tensor! experts_ids, Tensor! num_tokens_post_pad) "
                      "-> ()"}),
      static_quant_(kernel,
                    {"static_scaled_fp8_quant(Tensor! result, Tensor input, Tensor scale) -> ()"}),
      dynamic_quant_(
          kernel, {"dynamic_scaled_fp8_quant(Tensor! result, Tensor input, Tensor! scale) -> ()"}),
      token_quant_(kernel, {"dynamic_per_token_scaled_fp8_quant(Tensor! result, Tensor input, "
                            "Tensor! scale, Tensor? scale_ub) -> ()"}),
      align_256_(optional_op(
          kernel, "sgl_moe_align_block_size",
          {"sgl_moe_align_block_size(Tensor topk_ids, int num_experts, int block_size, Tensor! "
           "sorted_token_ids, Tensor! experts_ids, Tensor! num_tokens_post_pad) -> ()"})),
      wna16_(optional_op(
          kernel, "moe_wna16_gemm",
          {"moe_wna16_gemm(Tensor input, Tensor! output, Tensor b_qweight, Tensor b_scales, "
           "Tensor? "
           "b_qzeros, Tensor? topk_weights, Tensor sorted_token_ids, Tensor expert_ids, Tensor "
           "num_tokens_post_pad, int top_k, int BLOCK_SIZE_M, int BLOCK_SIZE_N, int BLOCK_SIZE_K, "
           "int bit) -> Tensor"})) {}

TopExperts MoeOps::top_experts(const at::Tensor& logits, int64_t k) const {
  must_record(repository_, /*has_backward=*/false, {&logits});
  topk_softmax_.need(logits.dim() == 2 && logits.scalar_type() == at::kFloat, "gating_output",
                     "float32 [tokens, experts]", logits);
  topk_softmax_.need(k >= 1 && k <= logits.size(1), "topk", "1 to the number of experts", k);
  const auto numbers = logits.options().dtype(at::kInt);
  TopExperts top{at::empty({logits.size(0), k}, logits.options()),
                 at::empty({logits.size(0), k}, numbers), at::empty({logits.size(0), k}, numbers)};
  topk_softmax_(top.weights, top.experts, top.sources, logits.contiguous());
  return top;
}

at::Tensor MoeOps::sum(const at::Tensor& x) const {
  must_record(repository_, /*has_backward=*/false, {&x});
  moe_sum_.need(x.dim() == 3, "input", "[tokens, experts of a token, hidden]", x);
  const at::Tensor out = at::empty({x.size(0), x.size(2)}, x.options());
  moe_sum_(x.contiguous(), out);
  return out;
}

at::Tensor MoeOps::silu_and_mul(const at::Tensor& x) const {
  must_record(repository_, /*has_backward=*/false, {&x});
  silu_and_mul_.need(x.dim() > 0 && x.size(-1) % 2 == 0, "input", "rows of two halves", x);
  std::vector<int64_t> sizes = x.sizes().vec();
  sizes.back() /= 2;
  const at::Tensor out = at::empty(sizes, x.options());
  silu_and_mul_(out, x.contiguous());
  return out;
}

ExpertBlocks MoeOps::align(const at::Tensor& experts, int64_t num_experts,
                           int64_t block_size) const {
  align_.need(experts.scalar_type() == at::kInt, "topk_ids", "int32", experts);
  align_.need(num_experts > 0 && block_size > 0, "num_experts and block_size", "positive",
              num_experts > 0 ? block_size : num_experts);
  // Every expert may leave its last block almost empty.
  const int64_t most = experts.numel() + num_experts * (block_size - 1);
  const auto options = experts.options();
  ExpertBlocks blocks{at::empty({most}, options).fill_(experts.numel()),
                      at::zeros({(most + block_size - 1) / block_size}, options),
                      at::empty({1}, options)};
  const PublishedOp& op = num_experts == kManyExperts && align_256_ ? *align_256_ : align_;
  op(experts.contiguous(), num_experts, block_size, blocks.token_ids, blocks.expert_ids,
     blocks.padded_count);
  return blocks;
}

at::Tensor MoeOps::multiply(const at::Tensor& x, const QuantizedExperts& experts,
                            const ExpertBlocks& blocks, int64_t k, int64_t block_size,
                            const at::Tensor& factors) const {
  const PublishedOp& op = need_op(wna16_, repository_, "moe_wna16_gemm");
  must_record(repository_, /*has_backward=*/false, {&x, &factors});
  const auto& [weights, scales, zeros, bits] = experts;
  op.need(x.dim() == 2 && (x.scalar_type() == at::kHalf || x.scalar_type() == at::kBFloat16),
          "input", "[tokens, hidden] of float16 or bfloat16", x);
  op.need(bits == 4 || bits == 8, "bit", "4 or 8", bits);
  op.need(weights.dim() == 3 && weights.scalar_type() == at::kByte &&
              weights.size(2) * 8 == x.size(1) * bits,
          "b_qweight", "uint8 [experts, outputs, hidden * bits / 8]", weights);
  op.need(scales.dim() == 3 && scales.scalar_type() == x.scalar_type() &&
              scales.size(0) == weights.size(0) && scales.size(1) == weights.size(1),
          "b_scales", "[experts, outputs, groups] in the dtype of the input", scales);
  const int64_t groups = scales.size(2);
  op.need((groups == 1 || groups == 2 || groups == 4 || groups == 8) && x.size(1) % groups == 0 &&
              x.size(1) / groups % 32 == 0,
          "b_scales", "1, 2, 4 or 8 groups of a multiple of 32", scales);
  op.need(
      !zeros.defined() || (zeros.scalar_type() == at::kByte && zeros.dim() == 3 &&
                           zeros.size(1) * 8 == weights.size(1) * bits && zeros.size(2) == groups),
      "b_qzeros", "uint8 [experts, outputs * bits / 8, groups]", zeros);
  op.need(!factors.defined() ||
              (factors.scalar_type() == at::kFloat && factors.numel() == x.size(0) * k),
          "topk_weights", "float32 [tokens, experts of a token]", factors);
  op.need(block_size >= 1 && block_size * x.size(1) * 2 <= kSharedBytes && block_size <= 64,
          "BLOCK_SIZE_M", "1 to 64, and rows that fit into 48 KiB", block_size);
  const at::Tensor out = at::zeros({x.size(0), k, weights.size(1)}, x.options());
  op(x.contiguous(), out, weights.contiguous(), scales.contiguous(),
     maybe(zeros.defined() ? zeros.contiguous() : zeros),
     maybe(factors.defined() ? factors.contiguous() : factors), blocks.token_ids, blocks.expert_ids,
     blocks.padded_count, k, block_size, kOutputsOfABlock, x.size(1), bits);
  return out;
}

at::Tensor MoeOps::quantize(const at::Tensor& x, const at::Tensor& scale) const {
  must_record(repository_, /*has_backward=*/false, {&x});
  static_quant_.need(scale.scalar_type() == at::kFloat && scale.numel() == 1, "scale",
                     "float32 of one element", scale);
  const at::Tensor values = at::empty(x.sizes(), x.options().dtype(at::kFloat8_e4m3fn));
  static_quant_(values, x.contiguous(), scale);
  return values;
}

Float8 MoeOps::quantize_dynamic(const at::Tensor& x) const {
  must_record(repository_, /*has_backward=*/false, {&x});
  Float8 result{at::empty(x.sizes(), x.options().dtype(at::kFloat8_e4m3fn)),
                at::zeros({1}, x.options().dtype(at::kFloat))};
  dynamic_quant_(result.values, x.contiguous(), result.scale);
  return result;
}

Float8 MoeOps::quantize_per_token(const at::Tensor& x, const at::Tensor& bound) const {
  must_record(repository_, /*has_backward=*/false, {&x});
  token_quant_.need(x.dim() == 2, "input", "[tokens, hidden]", x);
  Float8 result{at::empty(x.sizes(), x.options().dtype(at::kFloat8_e4m3fn)),
                at::empty({x.size(0), 1}, x.options().dtype(at::kFloat))};
  token_quant_(result.values, x.contiguous(), result.scale, maybe(bound));
  return result;
}

}  // namespace graft::layers::published
