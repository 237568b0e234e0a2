// New tokens of a sequence join its cache, and their queries attend to all of it, in one call: what a decode
// step of a model does between its projections.
//
// out        [B, S, Hq, D]   query's dtype               as attention_decode_out (attention_decode.cpp)
// lse        [B, Hq, S]      float32, dense              likewise, or absent
// key        [B, Hk, T, D]   query's dtype               the cache, written: place lengths[b] - S + s gets
//            [P, Hk, page, D] with block_table           the turned new key of token s
// value      like key                                    and its new value
// query      [B, S, Hq, D]   float32, bfloat16, float16  of the S new tokens; turned, and left as it is
// new_key    [B, S, Hk, D]   query's dtype               may be strided, last dimension dense
// new_value  like new_key
// cos, sin   [N, R]          query's dtype or float32    rotary tables of every position, R even, at most
//                                                        D; both absent: nothing is turned
// lengths    [B]             int32                       keys in use, the new ones counted; read on the
//                                                        device; absent: T
// positions  [B]             int32                       of the newest token, the row of the tables;
//                                                        absent: lengths - 1
// interleaved  pairs are neighbours, else halves of the first R elements; products and sum are rounded to
//            the tables' dtype, as separate operations leave them
// block_table, sinks, scale, softcap, window, causal, splits   as attention_decode_out
// An entry whose length is beyond T takes no new token, and places before the first take none; a token whose
// position is in no row of the tables is not turned. Tokens of different entries must not share a place.
// Throws   std::runtime_error `[op] argument: expected …, got …`
// Devices  cpu; cuda sm_80+ (Hopper: one kernel, 16-bit heads of a multiple of 8; else one more before)
//          Autograd no, graph-capturable yes, deterministic yes, thread-safe yes
// Source   transformers' apply_rotary_pos_emb and StaticCache.update; flash-attn's fwd_kvcache

#include "kernels/attention/attention_append_ops.h"

namespace graft_kernels::attention {

namespace {

void copy_strides(const Tensor& tensor, int64_t (&strides)[3]) {
  for (int dim = 0; dim < 3; ++dim) {
    strides[dim] = tensor.stride(dim);
  }
}

void check_new_heads(const char* op, NamedTensor value, const Tensor& query, const Tensor& key) {
  const Tensor& tensor = value.tensor;
  const bool fits = tensor.dim() == 4 && tensor.size(0) == query.size(0) &&
                    tensor.size(1) == query.size(1) && tensor.size(2) == key.size(1) &&
                    tensor.size(3) == query.size(3);
  if (!fits) {
    fail(op, value.name,
         "shape [" + std::to_string(query.size(0)) + ", " + std::to_string(query.size(1)) + ", " +
             std::to_string(key.size(1)) + ", " + std::to_string(query.size(3)) + "]",
         shape_text(tensor));
  }
  check_like(op, value, {"query", query});
}

void describe_tables(const char* op, const AppendArguments& arguments, const Tensor& query,
                     Append& append) {
  if (arguments.cos.has_value() != arguments.sin.has_value()) {
    fail(op, arguments.cos ? "sin" : "cos", "tables of both, or of none", "none");
  }
  if (!arguments.cos) {
    return;
  }
  const Tensor &cos = *arguments.cos, &sin = *arguments.sin;
  const bool shaped =
      cos.dim() == 2 && cos.size(1) % 2 == 0 && cos.size(1) >= 2 && cos.size(1) <= query.size(3);
  if (!shaped) {
    fail(op, "cos",
         "shape [positions, even, at least 2, at most " + std::to_string(query.size(3)) + "]",
         shape_text(cos));
  }
  check_same_shape(op, {"sin", sin}, {"cos", cos});
  check_dtype_or_float32(op, {"cos", cos}, {"query", query});
  check_dtype(op, {"sin", sin}, cos.scalar_type(), "that of cos");
  for (const NamedTensor& table : {NamedTensor{"cos", cos}, NamedTensor{"sin", sin}}) {
    check_same_device(op, table, {"query", query});
    check_rows(op, table);
  }
  append.cos = read_pointer(cos);
  append.sin = read_pointer(sin);
  append.table_stride[0] = cos.stride(0);
  append.table_stride[1] = sin.stride(0);
  append.table_rows = cos.size(0);
  append.rotary_dim = static_cast<int32_t>(cos.size(1));
  append.float_tables =
      cos.scalar_type() == ScalarType::Float && dtype_of(query) != Dtype::kFloat32;
}

// Meta tensors have no memory: the checks are all there is to do.
void run_meta(DecodeProblem, const Tensor&) {}

}  // namespace

DecodeProblem check_append(const char* op, const Arguments& arguments, const CacheArguments& cache,
                           const AppendArguments& arrived) {
  DecodeProblem problem = check_decode(op, arguments, cache);
  const Tensor& query = arguments.query;
  check_new_heads(op, {"new_key", arrived.new_key}, query, arguments.key);
  check_new_heads(op, {"new_value", arrived.new_value}, query, arguments.key);
  Append& append = problem.append;
  describe_tables(op, arrived, query, append);
  if (arrived.positions) {
    check_int32_rows(op, {"positions", *arrived.positions}, 1, query.size(0), query);
    append.positions = static_cast<const int32_t*>(read_pointer(*arrived.positions));
  }
  append.key = read_pointer(arrived.new_key);
  append.value = read_pointer(arrived.new_value);
  copy_strides(arrived.new_key, append.key_stride);
  copy_strides(arrived.new_value, append.value_stride);
  append.keys = write_pointer(arguments.key);
  append.values = write_pointer(arguments.value);
  append.interleaved = arrived.interleaved;
  return problem;
}

using MetaCacheOps = CacheOps<&run_meta>;

}  // namespace graft_kernels::attention

GRAFT_OPS_IMPL(Meta, ops) { graft_kernels::attention::MetaCacheOps::implement(ops); }
