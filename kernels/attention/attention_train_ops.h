// The ops for training as functions on tensors; each device file implements forward and backward.
#pragma once

#include <optional>
#include <tuple>

#include "kernels/attention/attention_ops.h"
#include "kernels/attention/attention_train.h"

namespace graft_kernels::attention {

// What a call takes beside the tensors.
struct TrainOptions {
  double scale;
  double softcap;
  int64_t window;
  bool causal;
  bool deterministic = true;  // the same bits every time
};

struct TrainInputs {
  const Tensor& query;
  const Tensor& key;
  const Tensor& value;
  const Tensor& out;
  const Tensor& lse;
  const std::optional<Tensor>& mask;
  const std::optional<Tensor>& sinks;
};

struct Gradients {
  const Tensor& out;  // incoming
  const Tensor& query;
  const Tensor& key;
  const Tensor& value;
  const Tensor& delta;  // room for one float32 per row, laid out as lse
};

// Sequence i is queries [query[i], query[i + 1]) against keys [key[i], key[i + 1]).
struct Sequences {
  const Tensor& query;
  const Tensor& key;
};

// Throw std::runtime_error `[op] argument: expected …, got …`. The packed form describes one sequence that
// holds all tokens.
TrainProblem check_train(const char* op, const TrainInputs& inputs, const TrainOptions& options);
TrainProblem check_packed(const char* op, const TrainInputs& inputs, const TrainOptions& options,
                          const Sequences& sequences);
void check_gradients(const char* op, const TrainInputs& inputs, const Gradients& gradients,
                     bool packed, TrainProblem& problem);

// Room for the log-sum-exp of a dense or packed query.
inline Tensor new_lse(const Tensor& query) {
  if (query.dim() == 4) {
    return torch::stable::new_empty(query, {query.size(0), query.size(2), query.size(1)},
                                    ScalarType::Float);
  }
  if (query.dim() != 3) {
    fail("attention", "query", "3 or 4 dimensions", shape_text(query));
  }
  return torch::stable::new_empty(query, {query.size(1), query.size(0)}, ScalarType::Float);
}

// Room for the gradient of a key or value. Heads lie inside positions where they do in `tensor`: models pass such views
// [B, Hk, T, D], whose gradient then needs no copy.
inline Tensor new_like_view(const Tensor& tensor) {
  if (tensor.dim() != 4 || tensor.stride(1) >= tensor.stride(2)) {
    return torch::stable::new_empty(tensor, tensor.sizes());
  }
  Tensor room = torch::stable::new_empty(
      tensor, {tensor.size(0), tensor.size(2), tensor.size(1), tensor.size(3)});
  return torch::stable::transpose(room, 1, 2);
}

// The ops for a device whose work is done by kRun; sequences are absent for the dense ones, and the
// problem says whether gradients are asked for.
// `like` is a tensor of the call, for further memory and its device.
template <void (*kRun)(const TrainProblem&, const Sequences*, const Tensor& like)>
struct TrainOps {
  using Optional = std::optional<Tensor>;
  static std::tuple<Tensor, Tensor> attention_forward_lse(const Tensor& query, const Tensor& key,
                                                          const Tensor& value, const Optional& mask,
                                                          const Optional& sinks, double scale,
                                                          double softcap, int64_t window,
                                                          bool causal) {
    Tensor out = torch::stable::new_empty(query, query.sizes()), lse = new_lse(query);
    kRun(check_train("attention_forward_lse", {query, key, value, out, lse, mask, sinks},
                     {scale, softcap, window, causal}),
         nullptr, query);
    return {out, lse};
  }
  static std::tuple<Tensor, Tensor, Tensor> attention_backward(
      const Tensor& grad_out, const Tensor& query, const Tensor& key, const Tensor& value,
      const Tensor& out, const Tensor& lse, const Optional& mask, double scale, double softcap,
      int64_t window, bool causal, bool deterministic) {
    const char* op = "attention_backward";
    const Optional none;
    const TrainInputs inputs{query, key, value, out, lse, mask, none};
    TrainProblem problem = check_train(op, inputs, {scale, softcap, window, causal, deterministic});
    return backward(op, inputs, grad_out, nullptr, problem);
  }
  static std::tuple<Tensor, Tensor> attention_varlen(const Tensor& query, const Tensor& key,
                                                     const Tensor& value,
                                                     const Tensor& cu_seqlens_q,
                                                     const Tensor& cu_seqlens_k,
                                                     const Optional& sinks, double scale,
                                                     double softcap, int64_t window, bool causal) {
    Tensor out = torch::stable::new_empty(query, query.sizes()), lse = new_lse(query);
    const Optional none;
    const Sequences sequences{cu_seqlens_q, cu_seqlens_k};
    kRun(check_packed("attention_varlen", {query, key, value, out, lse, none, sinks},
                      {scale, softcap, window, causal}, sequences),
         &sequences, query);
    return {out, lse};
  }
  static std::tuple<Tensor, Tensor, Tensor> attention_varlen_backward(
      const Tensor& grad_out, const Tensor& query, const Tensor& key, const Tensor& value,
      const Tensor& out, const Tensor& lse, const Tensor& cu_seqlens_q, const Tensor& cu_seqlens_k,
      double scale, double softcap, int64_t window, bool causal, bool deterministic) {
    const char* op = "attention_varlen_backward";
    const Optional none;
    const TrainInputs inputs{query, key, value, out, lse, none, none};
    const Sequences sequences{cu_seqlens_q, cu_seqlens_k};
    TrainProblem problem =
        check_packed(op, inputs, {scale, softcap, window, causal, deterministic}, sequences);
    return backward(op, inputs, grad_out, &sequences, problem);
  }
  static std::tuple<Tensor, Tensor, Tensor> backward(const char* op, const TrainInputs& inputs,
                                                     const Tensor& grad_out,
                                                     const Sequences* sequences,
                                                     TrainProblem& problem) {
    Tensor grad_query = torch::stable::new_empty(inputs.query, inputs.query.sizes());
    Tensor grad_key = new_like_view(inputs.key), grad_value = new_like_view(inputs.value);
    const Tensor delta = torch::stable::new_empty(inputs.lse, inputs.lse.sizes());
    check_gradients(op, inputs, {grad_out, grad_query, grad_key, grad_value, delta},
                    sequences != nullptr, problem);
    kRun(problem, sequences, inputs.query);
    return {grad_query, grad_key, grad_value};
  }
  static void implement(torch::stable::detail::StableLibrary& library) {
    library.impl("attention_forward_lse", TORCH_BOX(&attention_forward_lse));
    library.impl("attention_backward", TORCH_BOX(&attention_backward));
    library.impl("attention_varlen", TORCH_BOX(&attention_varlen));
    library.impl("attention_varlen_backward", TORCH_BOX(&attention_varlen_backward));
  }
};

}  // namespace graft_kernels::attention
