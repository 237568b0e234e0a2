// The five ops of flash-attn2 over tensors of either ABI. Generator: what stands for `Generator?`.
#pragma once

#include <tuple>

#include "flash_ops.h"

namespace graft_tests {

template <typename Tensor, typename Generator>
struct FlashAttn2 {
  using Maybe = std::optional<Tensor>;
  using Four = std::tuple<Tensor, Tensor, Tensor, Tensor>;

  static Rules rules(double p_dropout, double scale, bool causal, int64_t left, int64_t right,
                     double softcap, const Generator& generator) {
    require(p_dropout == 0.0 && !generator, "no dropout and no generator");
    require(!causal || right == 0, "a causal call to have no window to the right");
    require(scale > 0.0, "a scale");
    Rules own;
    own.scale = scale;
    own.softcap = softcap;
    own.left = left;
    own.right = right;
    own.empty_lse = std::numeric_limits<double>::infinity();
    return own;
  }

  static Four finished(const Call<Tensor>& call) {
    auto [out, lse] = call.forward();
    Tensor state = make(call.query, {2}, ScalarType::Long);
    auto* words = static_cast<int64_t*>(const_cast<void*>(state.const_data_ptr()));
    words[0] = 17;  // that the backward sees the forward's state
    words[1] = 0;
    return {out, lse, make(call.query, {0}, call.query.scalar_type()), state};
  }

  static Four fwd(Tensor q, Tensor k, Tensor v, Maybe out, Maybe alibi, double p_dropout,
                  double scale, bool causal, int64_t left, int64_t right, double softcap,
                  bool return_softmax, Generator generator) {
    require(!out && !alibi && !return_softmax, "no out, alibi or softmax");
    return finished({q,
                     k,
                     v,
                     {},
                     {},
                     {},
                     {},
                     rules(p_dropout, scale, causal, left, right, softcap, generator)});
  }

  static Four varlen_fwd(Tensor q, Tensor k, Tensor v, Maybe out, Tensor cu_q, Tensor cu_k,
                         Maybe used, Maybe leftpad, Maybe blocks, Maybe alibi, int64_t max_q,
                         int64_t max_k, double p_dropout, double scale, bool, bool causal,
                         int64_t left, int64_t right, double softcap, bool return_softmax,
                         Generator generator) {
    require(!out && !used && !leftpad && !blocks && !alibi && !return_softmax, "no further inputs");
    if (causal) {
      right = 0;
    }
    Call<Tensor> call{
        q,    k,  v,  cu_q,
        cu_k, {}, {}, rules(p_dropout, scale, causal, left, right, softcap, generator)};
    for (int64_t i = 0; i < call.sequences(); ++i) {
      require(call.sequence(i).queries <= max_q && call.sequence(i).keys <= max_k, "right maxima");
    }
    return finished(call);
  }

  static Four gradients(const Call<Tensor>& call, const Tensor& dout, const Tensor& out,
                        const Tensor& lse, const Maybe& dq, const Maybe& dk, const Maybe& dv,
                        const Maybe& state) {
    require(dq && dk && dv, "gradients to write to");
    require(state && static_cast<const int64_t*>(state->const_data_ptr())[0] == 17,
            "the forward's random state");
    call.backward(dout, out, lse, *dq, *dk, *dv);
    return {*dq, *dk, *dv, make(call.query, {0}, ScalarType::Float)};
  }

  static Four bwd(Tensor dout, Tensor q, Tensor k, Tensor v, Tensor out, Tensor lse, Maybe dq,
                  Maybe dk, Maybe dv, Maybe, double p_dropout, double scale, bool causal,
                  int64_t left, int64_t right, double softcap, bool, Generator generator,
                  Maybe state) {
    return gradients(
        {q, k, v, {}, {}, {}, {}, rules(p_dropout, scale, causal, left, right, softcap, generator)},
        dout, out, lse, dq, dk, dv, state);
  }

  static Four varlen_bwd(Tensor dout, Tensor q, Tensor k, Tensor v, Tensor out, Tensor lse,
                         Maybe dq, Maybe dk, Maybe dv, Tensor cu_q, Tensor cu_k, Maybe, int64_t,
                         int64_t, double p_dropout, double scale, bool, bool causal, int64_t left,
                         int64_t right, double softcap, bool, Generator generator, Maybe state) {
    return gradients({q,
                      k,
                      v,
                      cu_q,
                      cu_k,
                      {},
                      {},
                      rules(p_dropout, scale, causal, left, right, softcap, generator)},
                     dout, out, lse, dq, dk, dv, state);
  }

  static std::tuple<Tensor, Tensor> fwd_kvcache(Tensor q, Tensor kcache, Tensor vcache, Maybe k,
                                                Maybe v, Maybe lengths, Maybe cos, Maybe sin,
                                                Maybe rows, Maybe leftpad, Maybe blocks,
                                                Maybe alibi, Maybe out, double scale, bool causal,
                                                int64_t left, int64_t right, double softcap, bool,
                                                int64_t) {
    require(!cos && !sin && !leftpad && !blocks && !alibi && !out, "a plain cache");
    if (k) {
      append(kcache, *k, lengths, rows);
      append(vcache, *v, lengths, rows);
    }
    auto [result, lse] = Call<Tensor>{q,      kcache,
                                      vcache, {},
                                      {},     grown(q, lengths, k ? k->size(1) : 0),
                                      rows,   rules(0.0, scale, causal, left, right, softcap, {})}
                             .forward();
    return {result, lse};
  }
};

}  // namespace graft_tests
