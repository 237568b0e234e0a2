// softmax(query key^T * scale + mask) value over a cache whose lengths lie on the device.
//
// out     [B, S, Hq, D]    query's dtype               may be strided, last dimension dense
// lse     [B, Hq, S]       float32, dense              log of the sum of exp(score), sinks counted;
//                                                      absent: not written
// query   [B, S, Hq, D]    float32, bfloat16, float16  the last S tokens; D at most 256
// key     [B, Hk, T, D]    query's dtype               T: room; may be strided; Hq a multiple of Hk.
//         [P, Hk, page, D] with block_table
// value   like key
// lengths [B]              int32                       keys in use, the S queries' own counted; read
//                                                      on the device; cut at T; absent: T
// block_table [B, N]       int32                       the page that holds keys [i page, (i+1) page)
// mask    [B or 1, Hq or 1, S or 1, T]  query's dtype or float32, added; not with block_table
// sinks   [Hq]             query's dtype or float32    a score beside the keys' that has no value
// softcap  scores become softcap * tanh(score / softcap) before the mask; 0: off
// window   a query sees the last `window` keys up to its own place; 0: all
// causal   query s sees keys up to length - S + s
// splits   parts the keys are divided into, at most 128; 0: chosen by shape and device
// A query that sees no key gives zeros and an lse of -infinity. A NaN or infinity in a key that only
// some of the 16 rows worked on together may see can reach the others; beyond lengths, and where the
// mask hides a key from all, nothing is read into the result.
// Throws   std::runtime_error `[op] argument: expected …, got …`
// Devices  cpu; cuda sm_80+ (Hopper: attention_decode_sm90_kernel.cuh, 16-bit heads of a multiple of 8
//          without mask)   Autograd no, graph-capturable yes, deterministic yes, thread-safe yes
// Source   Dao et al., Flash-Decoding, 2023 (keys divided, parts merged by their log-sum-exp)

#include "kernels/attention/attention_decode_ops.h"

namespace graft_kernels::attention {

void check_int32_rows(const char* op, NamedTensor value, int64_t dims, int64_t batch,
                      const Tensor& query) {
  const Tensor& tensor = value.tensor;
  if (tensor.dim() != dims || tensor.size(0) != batch) {
    fail(op, value.name,
         std::string("shape [") + std::to_string(batch) + (dims == 1 ? "]" : ", pages]"),
         shape_text(tensor));
  }
  if (tensor.scalar_type() != ScalarType::Int) {
    fail(op, value.name, "int32", to_text(tensor.scalar_type()));
  }
  check_same_device(op, value, {"query", query});
  check_rows(op, value);
}

namespace {

void describe_table(const char* op, const Tensor& table, const Arguments& arguments,
                    const CacheArguments& cache, DecodeProblem& problem) {
  check_int32_rows(op, {"block_table", table}, 2, problem.base.batch, arguments.query);
  if (!cache.lengths) {
    fail(op, "lengths", "a tensor beside block_table", "none");
  }
  if (arguments.mask) {
    fail(op, "mask", "none beside block_table", shape_text(*arguments.mask));
  }
  problem.table = static_cast<const int32_t*>(read_pointer(table));
  problem.table_stride = table.stride(0);
  problem.page_keys = static_cast<int32_t>(arguments.key.size(2));
  problem.pages = arguments.key.size(0);
  problem.base.keys = table.size(1) * arguments.key.size(2);
}

void describe_lse(const char* op, const Tensor& lse, const Tensor& query, DecodeProblem& problem) {
  const int64_t batch = query.size(0), queries = query.size(1), heads = query.size(2);
  const bool fits = lse.dim() == 3 && lse.size(0) == batch && lse.size(1) == heads &&
                    lse.size(2) == queries && lse.is_contiguous();
  if (!fits) {
    fail(op, "lse",
         "dense, of shape [" + std::to_string(batch) + ", " + std::to_string(heads) + ", " +
             std::to_string(queries) + "]",
         shape_text(lse));
  }
  check_dtype(op, {"lse", lse}, ScalarType::Float, "a sum");
  check_same_device(op, {"lse", lse}, {"query", query});
  problem.lse = static_cast<float*>(write_pointer(lse));
}

void check_range(const char* op, const char* argument, int64_t value, int64_t largest) {
  if (value < 0 || value > largest) {
    fail(op, argument, "0 to " + std::to_string(largest), std::to_string(value));
  }
}

}  // namespace

DecodeProblem check_decode(const char* op, Arguments arguments, const CacheArguments& cache) {
  arguments.paged = cache.block_table.has_value();
  constexpr int64_t kMaxInt = (int64_t{1} << 31) - 1;
  DecodeProblem problem;
  problem.base = check_problem(op, arguments);
  if (cache.block_table) {
    describe_table(op, *cache.block_table, arguments, cache, problem);
  }
  check_range(op, "key", problem.base.keys, kMaxInt - kTileKeys);
  check_range(op, "query", problem.base.queries, kMaxInt / 256);
  check_range(op, "window", cache.window, kMaxInt);
  check_range(op, "splits", cache.splits, kMaxSplits);
  if (cache.lengths) {
    check_int32_rows(op, {"lengths", *cache.lengths}, 1, problem.base.batch, arguments.query);
    problem.lengths = static_cast<const int32_t*>(read_pointer(*cache.lengths));
  }
  problem.sinks = check_sinks(op, cache.sinks, arguments.query);
  if (cache.lse) {
    describe_lse(op, *cache.lse, arguments.query, problem);
  }
  problem.window = static_cast<int32_t>(cache.window);
  problem.splits = static_cast<int32_t>(cache.splits);
  return problem;
}

}  // namespace graft_kernels::attention
