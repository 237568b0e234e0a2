// Rotary position embedding of query and key in one launch.
//
//   half-split   (x1, x2) = halves of the first R elements of a head:
//                x1' = x1 * cos1 - x2 * sin1, x2' = x2 * cos2 + x1 * sin2   (Llama, Qwen, Gemma, Phi)
//   interleaved  the same over neighbours (x[2i], x[2i + 1])                 (GPT-J, Cohere, GLM)
//   inverse      the transposed rotation: the gradient, and the form that turns the other way
// Every product and the sum are rounded to the tables' dtype, as separate operations leave them; with
// float32 tables beside 16-bit heads only the result is rounded.
//
// query_out  [B, S, Hq, D]   query's dtype                 may be query itself
// key_out    [B, S, Hk, D]   query's dtype                 may be key itself
// query      [B, S, Hq, D]   float32, bfloat16, float16    any strides, last dimension dense
// key        [B, S, Hk, D]   query's dtype                 likewise
// cos, sin   [B or 1, S, R]  query's dtype or float32      likewise; R even, at most D
// A model with heads before positions passes transposed views.
// Throws   std::runtime_error `[op] argument: expected …, got …`
// Devices  cpu, cuda sm_80+   Autograd through `inverse`
//          graph-capturable yes, deterministic yes, thread-safe yes
// Source   Su et al. 2021; transformers' apply_rotary_pos_emb

#include "kernels/rotary/rotary_ops.h"

namespace graft_kernels::rotary {

namespace {

void check_four_dims(const char* op, NamedTensor value) {
  if (value.tensor.dim() != 4) {
    fail(op, value.name, "shape [batch, length, heads, head_dim]", shape_text(value.tensor));
  }
  check_rows(op, value);
}

Heads describe_heads(const char* op, NamedTensor out, NamedTensor in, NamedTensor query) {
  check_four_dims(op, in);
  check_same_shape(op, out, in);
  for (const NamedTensor& value : {in, out}) {
    check_dtype(op, value, scalar_type_of(query.tensor), "that of query");
    check_same_device(op, value, query);
    check_rows(op, value);
  }
  for (const int64_t dim : {0, 1, 3}) {
    if (in.tensor.size(dim) != query.tensor.size(dim)) {
      fail(op, in.name, "batch, length and head_dim of query " + shape_text(query.tensor),
           shape_text(in.tensor));
    }
  }
  Heads heads;
  heads.in = read_pointer(in.tensor);
  heads.out = write_pointer(out.tensor);
  heads.count = in.tensor.size(2);
  for (int dim = 0; dim < 3; ++dim) {
    heads.in_stride[dim] = in.tensor.stride(dim);
    heads.out_stride[dim] = out.tensor.stride(dim);
  }
  return heads;
}

Table describe_table(const char* op, NamedTensor table, NamedTensor cos, const Tensor& query) {
  const int64_t batch = query.size(0), length = query.size(1), head_dim = query.size(3);
  const Tensor& t = table.tensor;
  const bool shaped = t.dim() == 3 && (t.size(0) == 1 || t.size(0) == batch) &&
                      t.size(1) == length && t.size(2) % 2 == 0 && t.size(2) >= 2 &&
                      t.size(2) <= head_dim;
  if (!shaped) {
    fail(op, table.name,
         "shape [1 or " + std::to_string(batch) + ", " + std::to_string(length) +
             ", even, at least 2, at most " + std::to_string(head_dim) + "]",
         shape_text(t));
  }
  check_dtype_or_float32(op, table, {"query", query});
  check_same_shape(op, table, cos);
  check_dtype(op, table, scalar_type_of(cos.tensor), "that of cos");
  check_same_device(op, table, {"query", query});
  check_rows(op, table);
  return {read_pointer(t), {t.size(0) == 1 ? 0 : t.stride(0), t.stride(1)}};
}

// Meta tensors have no memory: the checks are all there is to do.
void run_meta(const Problem&, const Tensor&) {}

}  // namespace

Problem check_problem(const char* op, const Arguments& arguments, bool interleaved, bool inverse) {
  const NamedTensor query{"query", arguments.query}, cos{"cos", arguments.cos};
  check_floating(op, query);
  Problem problem;
  problem.heads[0] = describe_heads(op, {"query_out", arguments.query_out}, query, query);
  problem.heads[1] =
      describe_heads(op, {"key_out", arguments.key_out}, {"key", arguments.key}, query);
  problem.cos = describe_table(op, cos, cos, arguments.query);
  problem.sin = describe_table(op, {"sin", arguments.sin}, cos, arguments.query);
  problem.dtype = dtype_of(arguments.query);
  problem.float_tables =
      scalar_type_of(arguments.cos) == ScalarType::Float && problem.dtype != Dtype::kFloat32;
  problem.interleaved = interleaved;
  problem.inverse = inverse;
  problem.batch = arguments.query.size(0);
  problem.length = arguments.query.size(1);
  problem.head_dim = arguments.query.size(3);
  problem.rotary_dim = arguments.cos.size(2);
  return problem;
}

using MetaOps = Ops<&run_meta>;

}  // namespace graft_kernels::rotary

GRAFT_OPS(ops) {
  ops.def(
      "rotary_out(Tensor! query_out, Tensor! key_out, Tensor query, Tensor key, Tensor cos, Tensor "
      "sin, bool interleaved, bool inverse) -> ()");
  ops.def(
      "rotary(Tensor query, Tensor key, Tensor cos, Tensor sin, bool interleaved, bool inverse) -> "
      "(Tensor, Tensor)");
  ops.def(
      "rotary_append_out(Tensor(a!) query_out, Tensor(b!) keys, Tensor(c!) values, Tensor query, "
      "Tensor key, Tensor value, Tensor cos, Tensor sin, Tensor lengths, Tensor positions, bool "
      "interleaved) -> ()");
  ops.def(
      "norm_rotary_out(Tensor! query_out, Tensor! key_out, Tensor query, Tensor key, Tensor "
      "query_weight, Tensor key_weight, Tensor cos, Tensor sin, float eps, int variant, bool "
      "interleaved) -> ()");
  ops.def(
      "norm_rotary(Tensor query, Tensor key, Tensor query_weight, Tensor key_weight, Tensor cos, "
      "Tensor sin, float eps, int variant, bool interleaved) -> (Tensor, Tensor)");
  ops.def(
      "norm_rotary_append_out(Tensor(a!) query_out, Tensor(b!) keys, Tensor(c!) values, Tensor "
      "query, Tensor key, Tensor value, Tensor query_weight, Tensor key_weight, Tensor cos, Tensor "
      "sin, Tensor lengths, Tensor positions, float eps, int variant, bool interleaved) -> ()");
}

GRAFT_OPS_IMPL(Meta, ops) { graft_kernels::rotary::MetaOps::implement(ops); }
