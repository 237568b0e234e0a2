#include <fmt/format.h>

#include "graft/core/error.h"
#include "graft/layers/bound_op.h"
#include "graft/layers/gradient.h"
#include "graft/layers/published/published_op.h"
#include "graft/nn/attention_kernel.h"
#include "graft/tensor/device.h"

namespace graft::nn {

namespace {

using layers::Tensors;
using layers::with_contiguous_rows;
using layers::published::PublishedOp;

constexpr char kOut[] =
    "attention_out(Tensor! out, Tensor query, Tensor key, Tensor value, Tensor? mask, float scale, "
    "float softcap, bool causal) -> ()";
constexpr char kForward[] =
    "attention_forward_lse(Tensor query, Tensor key, Tensor value, Tensor? mask, Tensor? sinks, "
    "float "
    "scale, float softcap, int window, bool causal) -> (Tensor, Tensor)";
// Packages differ in whether the backward can be asked for equal bits every time.
constexpr char kBackward[] =
    "attention_backward(Tensor grad_out, Tensor query, Tensor key, Tensor value, Tensor out, "
    "Tensor "
    "lse, Tensor? mask, float scale, float softcap, int window, bool causal) -> (Tensor, Tensor, "
    "Tensor)";
constexpr char kBackwardWithChoice[] =
    "attention_backward(Tensor grad_out, Tensor query, Tensor key, Tensor value, Tensor out, "
    "Tensor "
    "lse, Tensor? mask, float scale, float softcap, int window, bool causal, bool deterministic) "
    "-> "
    "(Tensor, Tensor, Tensor)";
constexpr char kPackedForward[] =
    "attention_varlen(Tensor query, Tensor key, Tensor value, Tensor cu_seqlens_q, Tensor "
    "cu_seqlens_k, "
    "Tensor? sinks, float scale, float softcap, int window, bool causal) -> (Tensor, Tensor)";
constexpr char kPackedBackward[] =
    "attention_varlen_backward(Tensor grad_out, Tensor query, Tensor key, Tensor value, Tensor "
    "out, "
    "Tensor lse, Tensor cu_seqlens_q, Tensor cu_seqlens_k, float scale, float softcap, int window, "
    "bool "
    "causal) -> (Tensor, Tensor, Tensor)";
constexpr char kPackedBackwardWithChoice[] =
    "attention_varlen_backward(Tensor grad_out, Tensor query, Tensor key, Tensor value, Tensor "
    "out, "
    "Tensor lse, Tensor cu_seqlens_q, Tensor cu_seqlens_k, float scale, float softcap, int window, "
    "bool "
    "causal, bool deterministic) -> (Tensor, Tensor, Tensor)";

const c10::IValue kNone;

// The call of a backward, with the choice where the op has one.
template <typename... Args>
Tensors differentiate(const PublishedOp& op, Args&&... args) {
  return op.arity() == sizeof...(args) ? op(args...)
                                       : op(args..., at::globalContext().deterministicAlgorithms());
}

// Our own package by its name. What a device has no op for is refused, not done by another kernel.
class GraftKernel final : public AttentionKernel, public std::enable_shared_from_this<GraftKernel> {
 public:
  GraftKernel(std::string name, const kernel::LoadedKernel& kernel)
      : name_(std::move(name)),
        out_(kernel, {kOut}),
        forward_(kernel, {kForward}),
        backward_(kernel, {kBackward, kBackwardWithChoice}),
        packed_forward_(kernel, {kPackedForward}),
        packed_backward_(kernel, {kPackedBackward, kPackedBackwardWithChoice}) {}

  std::string name() const override { return name_; }

  std::string refusal(const AttentionNeeds& needs) const override {
    if (needs.head_dim > 256) {
      return fmt::format("heads of at most 256, not {}", needs.head_dim);
    }
    const bool whole = forward_.serves(needs.device);
    if (!whole && !out_.serves(needs.device)) {
      return fmt::format("no attention for {}", c10::DeviceTypeName(needs.device, true));
    }
    if (!whole && (needs.window || needs.training)) {
      return fmt::format("no {} for {} yet", needs.window ? "sliding window" : "backward",
                         c10::DeviceTypeName(needs.device, true));
    }
    return "";
  }

  at::Tensor forward(const AttentionCall& call) const override {
    const Options options{call.scale, call.softcap,
                          call.key.size(2) > call.window ? call.window : 0};
    const Heads heads{with_contiguous_rows(call.query), with_contiguous_rows(call.key),
                      with_contiguous_rows(call.value)};
    const bool records = layers::needs_gradient({&heads.query, &heads.key, &heads.value});
    if (call.unpadding != nullptr) {
      return padded(call, heads, options, records);
    }
    // One that leaves no log-sum-exp behind, and the only one on CUDA.
    const bool whole = forward_.serves(call.query.device().type());
    if (!records && options.window == 0 && (call.query.size(1) <= kFewQueries || !whole)) {
      at::Tensor out = at::empty(call.query.sizes(), call.query.options());
      out_(out, heads.query, heads.key, heads.value, kNone, options.scale, options.softcap, true);
      return out;
    }
    out_.need(whole, "window and gradients", "none of them on this device", call.query);
    const Tensors results = forward_(heads.query, heads.key, heads.value, kNone, kNone,
                                     options.scale, options.softcap, options.window, true);
    if (records) {
      layers::record(
          name_, {results[0]}, {heads.query, heads.key, heads.value},
          {heads.query, heads.key, heads.value, results[0].detach(), results[1]},
          [self = shared_from_this(), options](const Tensors& saved, const Tensors& grads) {
            return differentiate(self->backward_, with_contiguous_rows(grads[0]), saved[0],
                                 saved[1], saved[2], saved[3], saved[4], kNone, options.scale,
                                 options.softcap, options.window, true);
          });
    }
    return results[0];
  }

 private:
  // Queries up to which the op without a log-sum-exp is the faster one.
  static constexpr int64_t kFewQueries = 16;

  struct Options {
    double scale;
    double softcap;
    int64_t window;
  };
  struct Heads {
    at::Tensor query;  // [B, S, Hq, D]
    at::Tensor key;    // [B, Hkv, T, D]
    at::Tensor value;
  };

  static at::Tensor tokens(const at::Tensor& x, const at::Tensor& places) {
    return x.reshape({x.size(0) * x.size(1), x.size(2), x.size(3)}).index_select(0, places);
  }

  at::Tensor padded(const AttentionCall& call, const Heads& heads, const Options& options,
                    bool records) const {
    const Unpadding& real = *call.unpadding;
    out_.need(packed_forward_.serves(call.query.device().type()), "attention_mask",
              "no padding on this device", call.query);
    if (real.has_gaps && options.window > 0) {
      // Packed, the tokens around a gap would come closer to each other than they are.
      throw IncompatibleError(
          "models.attn_implementation", "refused",
          fmt::format("attention_mask: expected padding at the ends alone for {} with a sliding "
                      "window, got padding between tokens",
                      name_));
    }
    const at::Tensor query = tokens(heads.query, real.query_places),
                     key = tokens(heads.key.transpose(1, 2), real.key_places),
                     value = tokens(heads.value.transpose(1, 2), real.key_places);
    const auto& starts = real.sequences;
    const Tensors results =
        packed_forward_(query, key, value, starts.query_starts, starts.key_starts, kNone,
                        options.scale, options.softcap, options.window, true);
    if (records) {
      layers::record(
          name_, {results[0]}, {query, key, value},
          {query, key, value, results[0].detach(), results[1]},
          [self = shared_from_this(), options, starts](const Tensors& saved, const Tensors& grads) {
            return differentiate(self->packed_backward_, with_contiguous_rows(grads[0]), saved[0],
                                 saved[1], saved[2], saved[3], saved[4], starts.query_starts,
                                 starts.key_starts, options.scale, options.softcap, options.window,
                                 true);
          });
    }
    const int64_t batch = call.query.size(0), queries = call.query.size(1);
    return at::zeros({batch * queries, query.size(1), query.size(2)}, query.options())
        .index_copy(0, real.query_places, results[0])
        .view(call.query.sizes());
  }

  std::string name_;
  PublishedOp out_;
  PublishedOp forward_;
  PublishedOp backward_;
  PublishedOp packed_forward_;
  PublishedOp packed_backward_;
};

}  // namespace

std::shared_ptr<const AttentionKernel> make_graft_kernel(const std::string& name,
                                                         const kernel::LoadedKernel& kernel) {
  return std::make_shared<GraftKernel>(name, kernel);
}

}  // namespace graft::nn
