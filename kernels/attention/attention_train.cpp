// Attention that leaves its log-sum-exp, its gradients, and both over sequences packed one after another.
//
//   z   = scale * query key^T, or softcap * tanh(z / softcap), + mask
//   lse = log(sum(exp(z))), sinks counted;   P = exp(z - lse);   out = P value
//   grad_value = P^T grad_out;   dz = P * (grad_out value^T - rowsum(grad_out * out))
//   grad_query = scale * dz key;   grad_key = scale * dz^T query      (dz through the cap's slope)
//
// query, out, grad_out, grad_query   [B, S, Hq, D], packed [N, Hq, D]   float32, bfloat16, float16;
//                                    D at most 256, last dimension dense
// key, value and their gradients     [B, Hk, T, D], packed [M, Hk, D]   likewise; Hq a multiple of Hk,
//                                    gradients summed over the heads that share a key
// lse       [B, Hq, S], packed [Hq, N]   float32   -infinity where a query sees no key: zeros there
// mask      [B or 1, Hq or 1, S or 1, T] query's dtype or float32; gets no gradient
// sinks     [Hq]                     query's dtype or float32; the backward needs lse alone
// window    a query sees the last `window` keys up to its own place; 0: all
// causal    query s sees keys up to T - S + s (of its own sequence)
// cu_seqlens_q, cu_seqlens_k   [sequences + 1]   int32   from 0 to N and M, never falling; on the
//                                    tensors' device
// deterministic   gradients have the same bits every time; without it, on Hopper, those of queries are
//           added in any order
// Sums are float32, rounded once; on CUDA, and for bfloat16 on CPUs that multiply it, weights and their
// gradients are rounded to the heads' dtype before they meet values, keys and queries.
// Throws    std::runtime_error `[op] argument: expected …, got …`
// Devices   cpu; cuda sm_80+ (attention_train_cuda.cu; Hopper's own kernels for 16-bit heads of 64
//           and 128 without mask and cap, tensor cores else, plain arithmetic for float32). On CUDA
//           starts of sequences are not read by the host: they are kept within the tensors, and
//           rows of no sequence stay unwritten. A NaN in what only some rows of a tile may see
//           can reach the others of its sequence.
//           Autograd no (package/training.py joins the two), deterministic yes on the CPU
//           (independent of threads), thread-safe yes
// Source    Dao et al. 2022, algorithm 4; Dao 2023; Shah et al. 2024 (Hopper)

#include "kernels/attention/attention_train_ops.h"

namespace graft_kernels::attention {

namespace {

constexpr int64_t kMaxInt = (int64_t{1} << 31) - 1;

void describe_options(const char* op, const TrainOptions& options, TrainProblem& problem) {
  if (options.window < 0 || options.window > kMaxInt) {
    fail(op, "window", "0 to " + std::to_string(kMaxInt), std::to_string(options.window));
  }
  problem.window = options.window;
  problem.base.scale = static_cast<float>(options.scale);
  problem.base.softcap = static_cast<float>(options.softcap);
  problem.base.causal = options.causal;
  problem.deterministic = options.deterministic;
}

void describe_lse(const char* op, const Tensor& lse, const Tensor& query, TrainProblem& problem) {
  const Tensor expected = new_lse(query);
  check_same_shape(op, {"lse", lse}, {"[batch, heads, length] of query", expected});
  check_dtype(op, {"lse", lse}, ScalarType::Float, "a sum");
  check_same_device(op, {"lse", lse}, {"query", query});
  if (!lse.is_contiguous()) {
    fail(op, "lse", "a dense tensor", "a strided one");
  }
  problem.lse = static_cast<float*>(write_pointer(lse));
  problem.lse_stride[0] = lse.dim() == 3 ? lse.stride(0) : 0;
  problem.lse_stride[1] = lse.stride(lse.dim() - 2);
}

// Batch, then the two dimensions before the last; packed tensors have one batch entry, and their
// keys' dimensions come in the queries' order.
void copy_strides(const Tensor& tensor, bool swapped, int64_t (&strides)[3]) {
  const bool packed = tensor.dim() == 3;
  const int64_t first = tensor.stride(packed ? 0 : 1), second = tensor.stride(packed ? 1 : 2);
  strides[0] = packed ? 0 : tensor.stride(0);
  strides[1] = swapped ? second : first;
  strides[2] = swapped ? first : second;
}

void check_sequences(const char* op, NamedTensor sequences, const Tensor& query) {
  if (sequences.tensor.dim() != 1 || sequences.tensor.size(0) < 1) {
    fail(op, sequences.name, "shape [sequences + 1]", shape_text(sequences.tensor));
  }
  check_dtype(op, sequences, ScalarType::Int, "an index");
  check_same_device(op, sequences, {"query", query});
  check_rows(op, sequences);
}

void check_heads(const char* op, const Tensor& query, const Tensor& key) {
  const int64_t heads = query.size(1), key_heads = key.size(1);
  if (query.size(2) != key.size(2)) {
    fail(op, "key", "head_dim of query " + shape_text(query), shape_text(key));
  }
  if (query.size(2) > kMaxHeadDim) {
    fail(op, "query", "head_dim of at most " + std::to_string(kMaxHeadDim),
         std::to_string(query.size(2)));
  }
  if (key_heads == 0 ? heads != 0 : heads % key_heads != 0) {
    fail(op, "key", "a number of heads that divides " + std::to_string(heads),
         std::to_string(key_heads));
  }
}

void run_meta(const TrainProblem&, const Sequences*, const Tensor&) {}

}  // namespace

TrainProblem check_train(const char* op, const TrainInputs& in, const TrainOptions& options) {
  TrainProblem problem;
  problem.base = check_problem(op, {in.out, in.query, in.key, in.value, in.mask, options.scale,
                                    options.softcap, options.causal});
  describe_options(op, options, problem);
  problem.sinks = check_sinks(op, in.sinks, in.query);
  describe_lse(op, in.lse, in.query, problem);
  return problem;
}

TrainProblem check_packed(const char* op, const TrainInputs& in, const TrainOptions& options,
                          const Sequences& sequences) {
  const NamedTensor query{"query", in.query};
  check_floating(op, query);
  for (const NamedTensor value : {query, {"key", in.key}, {"value", in.value}, {"out", in.out}}) {
    if (value.tensor.dim() != 3) {
      fail(op, value.name, "shape [tokens, heads, head_dim]", shape_text(value.tensor));
    }
    check_like(op, value, query);
  }
  check_same_shape(op, {"out", in.out}, query);
  check_same_shape(op, {"value", in.value}, {"key", in.key});
  check_heads(op, in.query, in.key);
  check_sequences(op, {"cu_seqlens_q", sequences.query}, in.query);
  check_sequences(op, {"cu_seqlens_k", sequences.key}, in.query);
  check_same_shape(op, {"cu_seqlens_k", sequences.key}, {"cu_seqlens_q", sequences.query});
  TrainProblem problem;
  Problem& base = problem.base;
  base.dtype = dtype_of(in.query);
  base.batch = 1;
  base.queries = in.query.size(0);
  base.keys = in.key.size(0);
  base.key_heads = in.key.size(1);
  base.groups = in.key.size(1) == 0 ? 0 : in.query.size(1) / in.key.size(1);
  base.head_dim = in.query.size(2);
  base.query = read_pointer(in.query);
  base.key = read_pointer(in.key);
  base.value = read_pointer(in.value);
  base.out = write_pointer(in.out);
  copy_strides(in.query, false, base.query_stride);
  copy_strides(in.key, true, base.key_stride);
  copy_strides(in.value, true, base.value_stride);
  copy_strides(in.out, false, base.out_stride);
  describe_options(op, options, problem);
  problem.sinks = check_sinks(op, in.sinks, in.query);
  describe_lse(op, in.lse, in.query, problem);
  return problem;
}

void check_gradients(const char* op, const TrainInputs& in, const Gradients& gradients, bool packed,
                     TrainProblem& problem) {
  check_same_shape(op, {"grad_out", gradients.out}, {"query", in.query});
  check_like(op, {"grad_out", gradients.out}, {"query", in.query});
  problem.backward = true;
  problem.grad_out = read_pointer(gradients.out);
  problem.grad_query = write_pointer(gradients.query);
  problem.grad_key = write_pointer(gradients.key);
  problem.grad_value = write_pointer(gradients.value);
  problem.delta = static_cast<float*>(write_pointer(gradients.delta));
  copy_strides(gradients.out, false, problem.grad_out_stride);
  copy_strides(gradients.query, false, problem.grad_query_stride);
  copy_strides(gradients.key, packed, problem.grad_key_stride);
  copy_strides(gradients.value, packed, problem.grad_value_stride);
}

using MetaTrainOps = TrainOps<&run_meta>;

}  // namespace graft_kernels::attention

GRAFT_OPS_IMPL(Meta, ops) { graft_kernels::attention::MetaTrainOps::implement(ops); }
