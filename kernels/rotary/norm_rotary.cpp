// RMSNorm of each head of query and key, by a weight of its own for each of the two, and the rotary position embedding
// of the result, in one launch; for one new token a row together with the append to a cache.
//
//   norm(x) = float(x) * rsqrt(mean(float(x)^2) + eps) over a head, in the numeric variant of the package rms-norm
//   (rms_norm.h), rounded to the heads' dtype; that is rotated, and rounded as rotary has it (rotary.cpp). The results
//   are those of the two ops one after another, to the last bit where a head has at most 128 vectors of 16 bytes.
//
// query_out     [B, S, Hq, D]   query's dtype                 may be query itself
// key_out       [B, S, Hk, D]   query's dtype                 may be key itself
// query         [B, S, Hq, D]   float32, bfloat16, float16    any strides, last dimension dense
// key           [B, S, Hk, D]   query's dtype                 likewise
// query_weight, key_weight [D]  query's dtype, or float32 in the variants 1, 2 and 3 (variant 0 would make a wider
//                               result of it); dense
// cos, sin      [B or 1, S, R]  query's dtype or float32      as in rotary.cpp; from element R on a head is normed alone
// variant       0 to 3, as rms_norm's; 3 multiplies by 1 + weight
// norm_rotary_append_out takes keys, values, value, lengths, positions and tables of all positions as
// rotary_append_out does (rotary_append.cpp).
// Throws   std::runtime_error `[op] argument: expected …, got …`
// Devices  cpu, cuda sm_80+   Autograd no: layers.py norms and rotates by the ops that have one
//          graph-capturable yes, deterministic yes, thread-safe yes
// Source   transformers' Qwen3Attention, Gemma3Attention

#include "kernels/rotary/norm_rotary_ops.h"

namespace graft_kernels::rotary {

namespace {

void check_weight(const char* op, NamedTensor weight, const Tensor& query, bool may_be_float) {
  const int64_t head_dim = query.size(3);
  if (weight.tensor.dim() != 1 || weight.tensor.size(0) != head_dim) {
    fail(op, weight.name, "shape [" + std::to_string(head_dim) + "] (head_dim of query)",
         shape_text(weight.tensor));
  }
  if (may_be_float) {
    check_dtype_or_float32(op, weight, {"query", query});
  } else {
    check_dtype(op, weight, scalar_type_of(query), "that of query, in variant 0");
  }
  check_rows(op, weight);
  check_same_device(op, weight, {"query", query});
}

void run_meta(const Problem&, const Tensor&) {}
void run_append_meta(const AppendProblem&, const Tensor&) {}

}  // namespace

void add_norm(const char* op, const NormArguments& arguments, const Tensor& query,
              Problem& problem) {
  if (arguments.variant < 0 || arguments.variant >= rms_norm::kNumVariants) {
    fail(op, "variant", "0, 1, 2 or 3", std::to_string(arguments.variant));
  }
  HeadNorm& norm = problem.norm;
  norm.variant = static_cast<rms_norm::Variant>(arguments.variant);
  const bool may_be_float = norm.variant != rms_norm::Variant::kCastBeforeWeight;
  const Tensor &first = arguments.query_weight, &second = arguments.key_weight;
  check_weight(op, {"query_weight", first}, query, may_be_float);
  check_weight(op, {"key_weight", second}, query, may_be_float);
  check_dtype(op, {"key_weight", second}, scalar_type_of(first), "that of query_weight");
  norm.weight[0] = read_pointer(first);
  norm.weight[1] = read_pointer(second);
  norm.float_weights =
      scalar_type_of(first) == ScalarType::Float && problem.dtype != Dtype::kFloat32;
  norm.eps = static_cast<float>(arguments.eps);
  problem.is_normed = true;
}

using MetaNormOps = NormOps<&run_meta>;
using MetaNormAppendOps = NormAppendOps<&run_append_meta>;

}  // namespace graft_kernels::rotary

GRAFT_OPS_IMPL(Meta, ops) {
  graft_kernels::rotary::MetaNormOps::implement(ops);
  graft_kernels::rotary::MetaNormAppendOps::implement(ops);
}
