// flash-attn3 with the stable ABI. VLLM: the schemas of vllm-flash-attn3. FORWARD_ALONE: no bwd, as the
// wheel fa3-fwd. OTHER_SCHEMA: a default, a name and a type that are not the published ones.

#include <tuple>

#include "stable_tensor.h"

namespace graft_tests {
namespace {

using Maybe = std::optional<StableTensor>;
using MaybeInt = std::optional<int64_t>;
using Four = std::tuple<StableTensor, StableTensor, StableTensor, StableTensor>;

// What both kinds of `fwd` do with the arguments they share.
Four forward(const StableTensor& q, const StableTensor& k, const StableTensor& v,
             const Maybe& k_new, const Maybe& v_new, const Maybe& cu_q, const Maybe& cu_k,
             const Maybe& used_k, const MaybeInt& max_q, const MaybeInt& max_k, const Maybe& rows,
             const Rules& rules) {
  require(rules.scale > 0.0, "a scale");
  require(!cu_q || (max_q && max_k), "the longest lengths of packed sequences");
  if (k_new) {
    append(k, *k_new, used_k, rows);
    append(v, *v_new, used_k, rows);
  }
  auto [out, lse] =
      Call<StableTensor>{q,    k,    v, cu_q, cu_k, grown(q, used_k, k_new ? k_new->size(1) : 0),
                         rows, rules}
          .forward();
  return {out, lse, make(q, {0}, ScalarType::Float), make(q, {0}, ScalarType::Float)};
}

Rules rules(double scale, bool causal, int64_t left, int64_t right, double softcap,
            const Maybe& sinks) {
  Rules own;
  require(!causal || right == 0 || right == -1, "a causal call to have no window to the right");
  own.scale = scale;
  own.softcap = softcap;
  own.left = left;
  own.right = causal ? 0 : right;
  for (int64_t i = 0; sinks && i < sinks->size(0); ++i) {
    require(sinks->scalar_type() == ScalarType::BFloat16, "sinks in bfloat16");
    own.sinks.push_back(load(sinks->const_data_ptr(), ScalarType::BFloat16, i));
  }
  return own;
}

void backward(const StableTensor& dout, const StableTensor& q, const StableTensor& k,
              const StableTensor& v, const StableTensor& out, const StableTensor& lse,
              const Maybe& dq, const Maybe& dk, const Maybe& dv, const Maybe& cu_q,
              const Maybe& cu_k, const Rules& rules) {
  require(dq && dk && dv, "gradients to write to");
  Call<StableTensor>{q, k, v, cu_q, cu_k, {}, {}, rules}.backward(dout, out, lse, *dq, *dk, *dv);
}

#ifdef VLLM

Four fwd(StableTensor q, StableTensor k, StableTensor v, Maybe k_new, Maybe v_new, Maybe, Maybe,
         Maybe cu_q, Maybe cu_k, Maybe, Maybe, Maybe used_k, MaybeInt max_q, MaybeInt max_k, Maybe,
         Maybe rows, Maybe, Maybe, Maybe, Maybe, Maybe, Maybe, Maybe, double scale, bool causal,
         int64_t left, int64_t right, double softcap, bool, Maybe, int64_t, std::optional<bool>,
         int64_t, Maybe sinks) {
  return forward(q, k, v, k_new, v_new, cu_q, cu_k, used_k, max_q, max_k, rows,
                 rules(scale, causal, left, right, softcap, sinks));
}

std::tuple<StableTensor, StableTensor, StableTensor, StableTensor, StableTensor, StableTensor,
           StableTensor, StableTensor>
bwd(StableTensor dout, StableTensor q, StableTensor k, StableTensor v, StableTensor out,
    StableTensor lse, Maybe dq, Maybe dk, Maybe dv, Maybe cu_q, Maybe cu_k, Maybe, Maybe, MaybeInt,
    MaybeInt, double scale, bool causal, int64_t left, int64_t right, double softcap, bool,
    int64_t) {
  backward(dout, q, k, v, out, lse, dq, dk, dv, cu_q, cu_k,
           rules(scale, causal, left, right, softcap, {}));
  const StableTensor scratch = make(q, {0}, ScalarType::Float);
  return {*dq, *dk, *dv, scratch, scratch, scratch, scratch, scratch};
}

#else

Four fwd(StableTensor q, StableTensor k, StableTensor v, Maybe k_new, Maybe v_new, Maybe, Maybe,
         Maybe cu_q, Maybe cu_k, Maybe, Maybe, Maybe used_k, MaybeInt max_q, MaybeInt max_k, Maybe,
         Maybe rows, Maybe, Maybe, Maybe, Maybe, Maybe, Maybe, Maybe, std::optional<double> scale,
         bool causal, int64_t left, int64_t right, int64_t chunk, double softcap, bool, Maybe,
         int64_t, std::optional<bool>, int64_t) {
  require(chunk == 0, "no chunks");
  return forward(q, k, v, k_new, v_new, cu_q, cu_k, used_k, max_q, max_k, rows,
                 rules(scale.value_or(0.0), causal, left, right, softcap, {}));
}

std::tuple<StableTensor, StableTensor, StableTensor, StableTensor, StableTensor> bwd(
    StableTensor dout, StableTensor q, StableTensor k, StableTensor v, StableTensor out,
    StableTensor lse, Maybe dq, Maybe dk, Maybe dv, Maybe cu_q, Maybe cu_k, Maybe, Maybe, MaybeInt,
    MaybeInt, std::optional<double> scale, bool causal, int64_t left, int64_t right, double softcap,
    bool, int64_t) {
  backward(dout, q, k, v, out, lse, dq, dk, dv, cu_q, cu_k,
           rules(scale.value_or(0.0), causal, left, right, softcap, {}));
  const StableTensor scratch = make(q, {0}, ScalarType::Float);
  return {scratch, scratch, scratch, scratch, scratch};
}

#endif

}  // namespace
}  // namespace graft_tests

GRAFT_OPS(ops) {
#if defined(VLLM)
  ops.def(
      "fwd(Tensor q, Tensor k, Tensor v, Tensor? k_new = None, Tensor? v_new = None, Tensor? q_v = "
      "None, Tensor(out!)? out = None, Tensor? cu_seqlens_q = None, Tensor? cu_seqlens_k = None, "
      "Tensor? cu_seqlens_k_new = None, Tensor? seqused_q = None, Tensor? seqused_k = None, int? "
      "max_seqlen_q = None, int? max_seqlen_k = None, Tensor? page_table = None, Tensor? "
      "kv_batch_idx = None, Tensor? leftpad_k = None, Tensor? rotary_cos = None, Tensor? "
      "rotary_sin = None, Tensor? seqlens_rotary = None, Tensor? q_descale = None, Tensor? "
      "k_descale = None, Tensor? v_descale = None, float softmax_scale = 0.0, bool is_causal = "
      "False, int window_size_left = -1, int window_size_right = -1, float softcap = 0.0, bool "
      "is_rotary_interleaved = False, Tensor? scheduler_metadata = None, int num_splits = 0, bool? "
      "pack_gqa = None, int sm_margin = 0, Tensor? s_aux = None) -> (Tensor(out!), Tensor, Tensor, "
      "Tensor)");
  ops.def(
      "bwd(Tensor dout, Tensor q, Tensor k, Tensor v, Tensor out, Tensor softmax_lse, Tensor(dq!)? "
      "dq = None, Tensor(dk!)? dk = None, Tensor(dv!)? dv = None, Tensor? cu_seqlens_q = None, "
      "Tensor? cu_seqlens_k = None, Tensor? seqused_q = None, Tensor? seqused_k = None, int? "
      "max_seqlen_q = None, int? max_seqlen_k = None, float softmax_scale = 0.0, bool is_causal = "
      "False, int window_size_left = -1, int window_size_right = -1, float softcap = 0.0, bool "
      "deterministic = False, int sm_margin = 0) -> (Tensor(dq!), Tensor(dk!), Tensor(dv!), "
      "Tensor, Tensor, Tensor, Tensor, Tensor)");
#elif defined(OTHER_SCHEMA)
  ops.def(
      "fwd(Tensor q, Tensor k, Tensor v, Tensor(k_new!)? k_new = None, Tensor(v_new!)? v_new = "
      "None, Tensor? q_v = None, Tensor(out!)? out = None, Tensor? cu_seqlens_q = None, Tensor? "
      "cu_seqlens_k = None, Tensor? cu_seqlens_k_new = None, Tensor? seqused_q = None, Tensor? "
      "seqused_k = None, int? max_seqlen_q = None, int? max_seqlen_k = None, Tensor? page_table = "
      "None, Tensor? kv_batch_idx = None, Tensor? leftpad_k = None, Tensor? rotary_cos = None, "
      "Tensor? rotary_sin = None, Tensor? seqlens_rotary = None, Tensor? q_descale = None, Tensor? "
      "k_descale = None, Tensor? v_descale = None, float? softmax_scale = None, bool is_causal = "
      "True, int window_left = -1, int window_size_right = -1, int attention_chunk = 0, int "
      "softcap = 0, bool is_rotary_interleaved = False, Tensor? scheduler_metadata = None, int "
      "num_splits = 0, bool? pack_gqa = None, int sm_margin = 0) -> (Tensor(out!), Tensor, Tensor, "
      "Tensor)");
#else
  ops.def(
      "fwd(Tensor q, Tensor k, Tensor v, Tensor(k_new!)? k_new = None, Tensor(v_new!)? v_new = "
      "None, Tensor? q_v = None, Tensor(out!)? out = None, Tensor? cu_seqlens_q = None, Tensor? "
      "cu_seqlens_k = None, Tensor? cu_seqlens_k_new = None, Tensor? seqused_q = None, Tensor? "
      "seqused_k = None, int? max_seqlen_q = None, int? max_seqlen_k = None, Tensor? page_table = "
      "None, Tensor? kv_batch_idx = None, Tensor? leftpad_k = None, Tensor? rotary_cos = None, "
      "Tensor? rotary_sin = None, Tensor? seqlens_rotary = None, Tensor? q_descale = None, Tensor? "
      "k_descale = None, Tensor? v_descale = None, float? softmax_scale = None, bool is_causal = "
      "False, int window_size_left = -1, int window_size_right = -1, int attention_chunk = 0, "
      "float softcap = 0.0, bool is_rotary_interleaved = False, Tensor? scheduler_metadata = None, "
      "int num_splits = 0, bool? pack_gqa = None, int sm_margin = 0) -> (Tensor(out!), Tensor, "
      "Tensor, Tensor)");
#ifndef FORWARD_ALONE
  ops.def(
      "bwd(Tensor dout, Tensor q, Tensor k, Tensor v, Tensor out, Tensor softmax_lse, Tensor(dq!)? "
      "dq = None, Tensor(dk!)? dk = None, Tensor(dv!)? dv = None, Tensor? cu_seqlens_q = None, "
      "Tensor? cu_seqlens_k = None, Tensor? seqused_q = None, Tensor? seqused_k = None, int? "
      "max_seqlen_q = None, int? max_seqlen_k = None, float? softmax_scale = None, bool is_causal "
      "= False, int window_size_left = -1, int window_size_right = -1, float softcap = 0.0, bool "
      "deterministic = False, int sm_margin = 0) -> (Tensor, Tensor, Tensor, Tensor, Tensor)");
#endif
#endif
}

#ifndef OTHER_SCHEMA
GRAFT_OPS_IMPL(CPU, ops) {
  ops.impl("fwd", TORCH_BOX(&graft_tests::fwd));
#ifndef FORWARD_ALONE
  ops.impl("bwd", TORCH_BOX(&graft_tests::bwd));
#endif
}
#endif
