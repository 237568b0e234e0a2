// Rotary position embedding of one new token a row, and the append of its key and value to a cache, in one
// launch. Place and position are read where the tensors lie: on CUDA one captured call serves all.
//
// query_out  [B, 1, Hq, D]   query's dtype                 may be query itself
// keys       [B, Hk, T, D]   query's dtype                 place lengths[b] - 1 gets the rotated key
// values     [B, Hk, T, D]   query's dtype                 and the value
// query      [B, 1, Hq, D]   float32, bfloat16, float16    any strides, last dimension dense
// key, value [B, 1, Hk, D]   query's dtype                 likewise
// cos, sin   [P, R]          query's dtype or float32      of every position; R even, at most D
// lengths    [B]             int32, dense                  keys in use, the new one counted
// positions  [B]             int32, dense                  the row of the tables
// Rounding as rotary (rotary.cpp). A row whose place or position lies outside is left alone.
// Throws   std::runtime_error `[op] argument: expected …, got …`
// Devices  cpu, cuda sm_80+   Autograd no, graph-capturable yes, deterministic yes, thread-safe yes
// Source   transformers' apply_rotary_pos_emb and StaticCache.update

#include "kernels/rotary/rotary_append_ops.h"

namespace graft_kernels::rotary {

namespace {

void check_like_query(const char* op, NamedTensor value, const Tensor& query) {
  check_dtype(op, value, scalar_type_of(query), "that of query");
  check_same_device(op, value, {"query", query});
  check_rows(op, value);
}

std::string sizes_text(std::initializer_list<int64_t> sizes) {
  std::string text = "shape [";
  for (const int64_t size : sizes) {
    text += (text.back() == '[' ? "" : ", ") + (size < 0 ? "any" : std::to_string(size));
  }
  return text + "]";
}

// A negative size stands for any.
void check_sizes(const char* op, NamedTensor value, std::initializer_list<int64_t> sizes) {
  bool fits = value.tensor.dim() == static_cast<int64_t>(sizes.size());
  int64_t dim = 0;
  for (const int64_t size : sizes) {
    fits = fits && (size < 0 || value.tensor.size(dim) == size);
    ++dim;
  }
  if (!fits) {
    fail(op, value.name, sizes_text(sizes), shape_text(value.tensor));
  }
}

const int32_t* read_counts(const char* op, NamedTensor value, const Tensor& query) {
  check_sizes(op, value, {query.size(0)});
  if (scalar_type_of(value.tensor) != ScalarType::Int) {
    fail(op, value.name, "int32", to_text(scalar_type_of(value.tensor)));
  }
  check_same_device(op, value, {"query", query});
  check_rows(op, value);
  return static_cast<const int32_t*>(read_pointer(value.tensor));
}

void describe_tables(const char* op, const AppendArguments& arguments, AppendProblem& problem) {
  const Tensor &cos = arguments.cos, &query = arguments.query;
  const bool shaped =
      cos.dim() == 2 && cos.size(1) % 2 == 0 && cos.size(1) >= 2 && cos.size(1) <= query.size(3);
  if (!shaped) {
    fail(op, "cos",
         "shape [positions, even, at least 2, at most " + std::to_string(query.size(3)) + "]",
         shape_text(cos));
  }
  check_same_shape(op, {"sin", arguments.sin}, {"cos", cos});
  check_dtype_or_float32(op, {"cos", cos}, {"query", query});
  check_dtype(op, {"sin", arguments.sin}, scalar_type_of(cos), "that of cos");
  for (const NamedTensor& table : {NamedTensor{"cos", cos}, NamedTensor{"sin", arguments.sin}}) {
    check_same_device(op, table, {"query", query});
    check_rows(op, table);
  }
  Problem& base = problem.base;
  base.cos.data = read_pointer(cos);
  base.sin.data = read_pointer(arguments.sin);
  problem.table_stride[0] = cos.stride(0);
  problem.table_stride[1] = arguments.sin.stride(0);
  problem.table_rows = cos.size(0);
  base.rotary_dim = cos.size(1);
  base.float_tables =
      scalar_type_of(cos) == ScalarType::Float && dtype_of(query) != Dtype::kFloat32;
}

void describe_cache(const char* op, const AppendArguments& arguments, AppendProblem& problem) {
  const Tensor &query = arguments.query, &key = arguments.key, &keys = arguments.keys;
  check_sizes(op, {"key", key}, {query.size(0), 1, -1, query.size(3)});
  check_sizes(op, {"keys", keys}, {query.size(0), key.size(2), -1, query.size(3)});
  check_same_shape(op, {"value", arguments.value}, {"key", key});
  check_same_shape(op, {"values", arguments.values}, {"keys", keys});
  for (const NamedTensor& value :
       {NamedTensor{"key", key}, NamedTensor{"value", arguments.value}, NamedTensor{"keys", keys},
        NamedTensor{"values", arguments.values}}) {
    check_like_query(op, value, query);
  }
  Heads& heads = problem.base.heads[1];
  heads.in = read_pointer(key);
  heads.out = write_pointer(keys);
  heads.count = key.size(2);
  const int64_t in_stride[3] = {key.stride(0), key.stride(1), key.stride(2)};
  const int64_t out_stride[3] = {keys.stride(0), 0, keys.stride(1)};
  for (int dim = 0; dim < 3; ++dim) {
    heads.in_stride[dim] = in_stride[dim];
    heads.out_stride[dim] = out_stride[dim];
    problem.values_stride[dim] = arguments.values.stride(dim);
  }
  problem.key_place_stride = keys.stride(2);
  problem.value = read_pointer(arguments.value);
  problem.value_stride[0] = arguments.value.stride(0);
  problem.value_stride[1] = arguments.value.stride(2);
  problem.values = write_pointer(arguments.values);
  problem.places = keys.size(2);
}

void run_meta(const AppendProblem&, const Tensor&) {}

}  // namespace

AppendProblem check_append(const char* op, const AppendArguments& arguments, bool interleaved) {
  const Tensor& query = arguments.query;
  check_floating(op, {"query", query});
  check_sizes(op, {"query", query}, {-1, 1, -1, -1});
  check_rows(op, {"query", query});
  check_same_shape(op, {"query_out", arguments.query_out}, {"query", query});
  check_like_query(op, {"query_out", arguments.query_out}, query);
  AppendProblem problem;
  problem.base.dtype = dtype_of(query);
  problem.base.interleaved = interleaved;
  problem.base.batch = query.size(0);
  problem.base.length = 1;
  problem.base.head_dim = query.size(3);
  Heads& heads = problem.base.heads[0];
  heads.in = read_pointer(query);
  heads.out = write_pointer(arguments.query_out);
  heads.count = query.size(2);
  for (int dim = 0; dim < 3; ++dim) {
    heads.in_stride[dim] = query.stride(dim);
    heads.out_stride[dim] = arguments.query_out.stride(dim);
  }
  describe_cache(op, arguments, problem);
  describe_tables(op, arguments, problem);
  problem.lengths = read_counts(op, {"lengths", arguments.lengths}, query);
  problem.positions = read_counts(op, {"positions", arguments.positions}, query);
  return problem;
}

using MetaAppendOps = AppendOps<&run_meta>;

}  // namespace graft_kernels::rotary

GRAFT_OPS_IMPL(Meta, ops) { graft_kernels::rotary::MetaAppendOps::implement(ops); }
