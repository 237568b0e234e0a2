// softmax(query key^T * scale + mask) value for every query head, query heads sharing key heads.
//
// out     [B, S, Hq, D]   query's dtype                 may be strided, last dimension dense
// query   [B, S, Hq, D]   float32, bfloat16, float16    likewise; D at most 256
// key     [B, Hk, T, D]   query's dtype                 likewise; Hq a multiple of Hk
// value   [B, Hk, T, D]   query's dtype                 likewise
// mask    [B or 1, Hq or 1, S or 1, T]   query's dtype or float32, added to the scaled scores, last
//         dimension dense; -infinity hides a key, whatever lies there
// softcap  scores become softcap * tanh(score / softcap) before the mask; 0: off
// causal   query s sees keys up to T - S + s (the last query sees all)
// Scores, weights and sums are float32, rounded once; with more than 16 rows a key, weights are rounded to bfloat16 where
// the processor multiplies values as bfloat16. A query that sees no key gives zeros.
// Throws   std::runtime_error `[op] argument: expected …, got …`
// Devices  cpu, cuda sm_80+ (attention_cuda.cu; there a NaN or infinity in a key that only some of 16
//          neighbouring rows may see can reach the others)
//          Autograd no, deterministic yes (independent of threads), thread-safe yes
// Source   Vaswani et al. 2017; Dao 2023 (the running softmax)

#include "kernels/attention/attention_ops.h"

namespace graft_kernels::attention {

namespace {

void check_heads(const char* op, NamedTensor value, NamedTensor query, const char* shape) {
  if (value.tensor.dim() != 4) {
    fail(op, value.name, std::string("shape ") + shape, shape_text(value.tensor));
  }
  check_like(op, value, query);
}

void copy_strides(const Tensor& tensor, int64_t (&strides)[3]) {
  for (int dim = 0; dim < 3; ++dim) {
    strides[dim] = tensor.stride(dim);
  }
}

void check_keys(const char* op, NamedTensor key, const Tensor& query, bool paged) {
  const Tensor& k = key.tensor;
  const int64_t heads = query.size(2);
  if ((!paged && k.size(0) != query.size(0)) || k.size(3) != query.size(3)) {
    fail(op, key.name, "batch and head_dim of query " + shape_text(query), shape_text(k));
  }
  if (k.size(1) == 0 ? heads != 0 : heads % k.size(1) != 0) {
    fail(op, key.name, "a number of heads that divides " + std::to_string(heads),
         std::to_string(k.size(1)));
  }
}

void describe_mask(const char* op, const Tensor& mask, const Tensor& query, int64_t keys,
                   Problem& problem) {
  const int64_t expected[3] = {query.size(0), query.size(2), query.size(1)};
  bool fits = mask.dim() == 4 && mask.size(3) == keys;
  for (int dim = 0; fits && dim < 3; ++dim) {
    fits = mask.size(dim) == 1 || mask.size(dim) == expected[dim];
  }
  if (!fits) {
    fail(op, "mask",
         "shape [1 or " + std::to_string(expected[0]) + ", 1 or " + std::to_string(expected[1]) +
             ", 1 or " + std::to_string(expected[2]) + ", " + std::to_string(keys) + "]",
         shape_text(mask));
  }
  check_dtype_or_float32(op, {"mask", mask}, {"query", query});
  check_same_device(op, {"mask", mask}, {"query", query});
  check_rows(op, {"mask", mask});
  problem.mask = read_pointer(mask);
  problem.float_mask = mask.scalar_type() == ScalarType::Float;
  for (int dim = 0; dim < 3; ++dim) {
    problem.mask_stride[dim] = mask.size(dim) == 1 ? 0 : mask.stride(dim);
  }
}

void run_meta(const Problem&) {}

}  // namespace

Problem check_problem(const char* op, const Arguments& arguments) {
  const Tensor &query = arguments.query, &key = arguments.key, &value = arguments.value;
  const NamedTensor named_query{"query", query};
  check_floating(op, named_query);
  check_heads(op, named_query, named_query, "[batch, length, heads, head_dim]");
  check_heads(op, {"key", key}, named_query, "[batch, heads, length, head_dim]");
  check_heads(op, {"value", value}, named_query, "[batch, heads, length, head_dim]");
  check_heads(op, {"out", arguments.out}, named_query, "[batch, length, heads, head_dim]");
  check_same_shape(op, {"out", arguments.out}, named_query);
  check_same_shape(op, {"value", value}, {"key", key});
  check_keys(op, {"key", key}, query, arguments.paged);
  if (query.size(3) > kMaxHeadDim) {
    fail(op, "query", "head_dim of at most " + std::to_string(kMaxHeadDim),
         std::to_string(query.size(3)));
  }
  Problem problem;
  problem.dtype = dtype_of(query);
  problem.batch = query.size(0);
  problem.queries = query.size(1);
  problem.keys = key.size(2);
  problem.key_heads = key.size(1);
  problem.groups = key.size(1) == 0 ? 0 : query.size(2) / key.size(1);
  problem.head_dim = query.size(3);
  problem.query = read_pointer(query);
  problem.key = read_pointer(key);
  problem.value = read_pointer(value);
  problem.out = write_pointer(arguments.out);
  copy_strides(query, problem.query_stride);
  copy_strides(key, problem.key_stride);
  copy_strides(value, problem.value_stride);
  copy_strides(arguments.out, problem.out_stride);
  if (arguments.mask) {
    describe_mask(op, *arguments.mask, query, problem.keys, problem);
  }
  problem.scale = static_cast<float>(arguments.scale);
  problem.softcap = static_cast<float>(arguments.softcap);
  problem.causal = arguments.causal;
  return problem;
}

Sinks check_sinks(const char* op, const std::optional<Tensor>& sinks, const Tensor& query) {
  if (!sinks) {
    return {};
  }
  const int64_t heads = query.size(query.dim() - 2);
  if (sinks->dim() != 1 || sinks->size(0) != heads) {
    fail(op, "sinks", "shape [" + std::to_string(heads) + "]", shape_text(*sinks));
  }
  check_dtype_or_float32(op, {"sinks", *sinks}, {"query", query});
  check_same_device(op, {"sinks", *sinks}, {"query", query});
  check_rows(op, {"sinks", *sinks});
  return {read_pointer(*sinks), sinks->scalar_type() == ScalarType::Float};
}

using MetaOps = Ops<&run_meta>;

}  // namespace graft_kernels::attention

GRAFT_OPS(ops) {
  ops.def(
      "attention_out(Tensor! out, Tensor query, Tensor key, Tensor value, Tensor? mask, float "
      "scale, float softcap, bool causal) -> ()");
  ops.def(
      "attention(Tensor query, Tensor key, Tensor value, Tensor? mask, float scale, float softcap, "
      "bool causal) -> Tensor");
  ops.def(
      "attention_decode_out(Tensor(a!) out, Tensor(b!)? lse, Tensor query, Tensor key, Tensor "
      "value, "
      "Tensor? lengths, Tensor? block_table, Tensor? mask, Tensor? sinks, float scale, float "
      "softcap, int window, bool causal, int splits) -> ()");
  ops.def(
      "attention_append_out(Tensor(a!) out, Tensor(b!)? lse, Tensor(c!) key, Tensor(d!) value, "
      "Tensor query, Tensor new_key, Tensor new_value, Tensor? cos, Tensor? sin, Tensor? lengths, "
      "Tensor? positions, Tensor? block_table, Tensor? sinks, float scale, float softcap, int "
      "window, bool causal, bool interleaved, int splits) -> ()");
  ops.def(
      "attention_forward_lse(Tensor query, Tensor key, Tensor value, Tensor? mask, Tensor? sinks, "
      "float scale, float softcap, int window, bool causal) -> (Tensor, Tensor)");
  ops.def(
      "attention_backward(Tensor grad_out, Tensor query, Tensor key, Tensor value, Tensor out, "
      "Tensor lse, Tensor? mask, float scale, float softcap, int window, bool causal, bool "
      "deterministic) -> (Tensor, Tensor, Tensor)");
  ops.def(
      "attention_varlen(Tensor query, Tensor key, Tensor value, Tensor cu_seqlens_q, Tensor "
      "cu_seqlens_k, Tensor? sinks, float scale, float softcap, int window, bool causal) -> "
      "(Tensor, "
      "Tensor)");
  ops.def(
      "attention_varlen_backward(Tensor grad_out, Tensor query, Tensor key, Tensor value, Tensor "
      "out, Tensor lse, Tensor cu_seqlens_q, Tensor cu_seqlens_k, float scale, float softcap, int "
      "window, bool causal, bool deterministic) -> (Tensor, Tensor, Tensor)");
}

GRAFT_OPS_IMPL(Meta, ops) { graft_kernels::attention::MetaOps::implement(ops); }
