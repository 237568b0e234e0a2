#include <ATen/ops/arange.h>
#include <fmt/format.h>

#include "graft/layers/bound_op.h"
#include "graft/layers/gradient.h"
#include "graft/layers/published/flash_attention.h"
#include "graft/layers/published/published_op.h"
#include "graft/tensor/device.h"

namespace graft::layers::published {

namespace {

constexpr char kForward[] =
    "fwd(Tensor! q, Tensor k, Tensor v, Tensor(out_!)? out_, Tensor? alibi_slopes_, float "
    "p_dropout, "
    "float softmax_scale, bool is_causal, int window_size_left, int window_size_right, float "
    "softcap, "
    "bool return_softmax, Generator? gen_)";
constexpr char kVarlenForward[] =
    "varlen_fwd(Tensor! q, Tensor k, Tensor v, Tensor? out_, Tensor cu_seqlens_q, Tensor "
    "cu_seqlens_k, "
    "Tensor? seqused_k_, Tensor? leftpad_k_, Tensor? block_table_, Tensor? alibi_slopes_, int "
    "max_seqlen_q, int max_seqlen_k, float p_dropout, float softmax_scale, bool zero_tensors, bool "
    "is_causal, int window_size_left, int window_size_right, float softcap, bool return_softmax, "
    "Generator? gen_)";
constexpr char kBackward[] =
    "bwd(Tensor! dout, Tensor! q, Tensor! k, Tensor! v, Tensor! out, Tensor! softmax_lse, Tensor? "
    "dq_, "
    "Tensor? dk_, Tensor? dv_, Tensor? alibi_slopes_, float p_dropout, float softmax_scale, bool "
    "is_causal, int window_size_left, int window_size_right, float softcap, bool deterministic, "
    "Generator? gen_, Tensor? rng_state)";
constexpr char kVarlenBackward[] =
    "varlen_bwd(Tensor! dout, Tensor! q, Tensor! k, Tensor! v, Tensor! out, Tensor! softmax_lse, "
    "Tensor? "
    "dq_, Tensor? dk_, Tensor? dv_, Tensor cu_seqlens_q, Tensor cu_seqlens_k, Tensor? "
    "alibi_slopes_, int "
    "max_seqlen_q, int max_seqlen_k, float p_dropout, float softmax_scale, bool zero_tensors, bool "
    "is_causal, int window_size_left, int window_size_right, float softcap, bool deterministic, "
    "Generator? gen_, Tensor? rng_state)";
constexpr char kCacheForward[] =
    "fwd_kvcache(Tensor! q, Tensor! kcache, Tensor! vcache, Tensor? k_, Tensor? v_, Tensor? "
    "seqlens_k_, "
    "Tensor? rotary_cos_, Tensor? rotary_sin_, Tensor? cache_batch_idx_, Tensor? leftpad_k_, "
    "Tensor? "
    "block_table_, Tensor? alibi_slopes_, Tensor? out_, float softmax_scale, bool is_causal, int "
    "window_size_left, int window_size_right, float softcap, bool is_rotary_interleaved, int "
    "num_splits)";

// The CUDA build returns tuples, the CPU and XPU builds lists.
std::optional<PublishedOp> bind_op(const kernel::LoadedKernel& kernel, const std::string& name,
                                   std::string_view arguments, int results) {
  std::string tuple = fmt::format("{} -> (Tensor", arguments);
  for (int i = 1; i < results; ++i) {
    tuple += ", Tensor";
  }
  return optional_op(kernel, name, {tuple + ")", fmt::format("{} -> Tensor[]", arguments)});
}

const c10::IValue kNone;

class FlashAttention2 final : public FlashAttention,
                              public std::enable_shared_from_this<FlashAttention2> {
 public:
  explicit FlashAttention2(const kernel::LoadedKernel& kernel)
      : repository_(kernel.repository),
        forward_(bind_op(kernel, "fwd", kForward, 4)),
        varlen_forward_(*bind_op(kernel, "varlen_fwd", kVarlenForward, 4)),
        backward_(bind_op(kernel, "bwd", kBackward, 4)),
        varlen_backward_(bind_op(kernel, "varlen_bwd", kVarlenBackward, 4)),
        cache_forward_(bind_op(kernel, "fwd_kvcache", kCacheForward, 2)) {}

  std::string_view family() const override { return "flash-attn2"; }
  bool has_cache_op() const override { return cache_forward_.has_value(); }

  std::string refusal(const AttentionNeeds& needs) const override {
    if (needs.dtype != at::kHalf && needs.dtype != at::kBFloat16) {
      return fmt::format("flash-attn2 takes float16 and bfloat16, not {}",
                         tensor::dtype_name(needs.dtype));
    }
    if (needs.head_dim > 256) {
      return fmt::format("flash-attn2 takes heads of at most 256, not {}", needs.head_dim);
    }
    if (needs.sinks) {
      return "flash-attn2 has no attention sinks";
    }
    if (only_packed() && needs.window) {
      return "this build of flash-attn2 (varlen_fwd alone, as on the CPU) has no sliding window";
    }
    if (only_packed() && needs.softcap) {
      return "this build of flash-attn2 (varlen_fwd alone, as on the CPU) has no soft cap";
    }
    if (needs.training && !varlen_backward_) {
      return "this build of flash-attn2 has no backward";
    }
    return "";
  }

 protected:
  const std::string& repository() const override { return repository_; }

  void check(const at::Tensor&, const FlashOptions& options) const override {
    varlen_forward_.need(!options.sinks.defined(), "sinks",
                         "none (flash-attn2 has no such argument)", options.sinks);
    if (only_packed()) {
      varlen_forward_.need(options.window_left < 0 && options.window_right <= 0, "window",
                           "none (this build has varlen_fwd alone, as on the CPU)",
                           options.window_left);
      varlen_forward_.need(options.softcap == 0.0, "softcap",
                           "0 (this build has varlen_fwd alone, as on the CPU)", options.softcap);
    }
  }

  FlashResult run(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                  const FlashOptions& options) const override {
    if (!forward_) {
      return run_dense_as_packed(query, key, value, options);
    }
    const bool records = must_record(repository_, backward_.has_value(), {&query, &key, &value});
    const Tensors results =
        (*forward_)(query, key, value, kNone, kNone, 0.0, options.scale, options.causal,
                    options.window_left, options.window_right, options.softcap, false, kNone);
    if (records) {
      record(repository_, {results[0]}, {query, key, value},
             {query, key, value, results[0].detach(), results[1], rng_state(results)},
             [self = shared_from_this(), options](const Tensors& saved, const Tensors& grads) {
               return self->gradients(saved, grads[0], options);
             });
    }
    return {results[0], results[1]};
  }

  FlashResult run_packed(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                         const PackedSequences& sequences,
                         const FlashOptions& options) const override {
    const bool records =
        must_record(repository_, varlen_backward_.has_value(), {&query, &key, &value});
    const Tensors results = varlen_forward_(
        query, key, value, kNone, sequences.query_starts, sequences.key_starts, kNone, kNone, kNone,
        kNone, sequences.max_query_length, sequences.max_key_length, 0.0, options.scale, false,
        options.causal, only_packed() ? -1 : options.window_left,
        only_packed() ? -1 : options.window_right, options.softcap, false, kNone);
    if (records) {
      record(repository_, {results[0]}, {query, key, value},
             {query, key, value, results[0].detach(), results[1], rng_state(results)},
             [self = shared_from_this(), options, sequences](const Tensors& saved,
                                                             const Tensors& grads) {
               return self->packed_gradients(saved, grads[0], sequences, options);
             });
    }
    return {results[0], results[1]};
  }

  FlashResult run_cache(const at::Tensor& query, const at::Tensor& key_cache,
                        const at::Tensor& value_cache, const FlashCache& cache,
                        const FlashOptions& options) const override {
    const Tensors results = need_op(cache_forward_, repository_, "fwd_kvcache")(
        query, key_cache, value_cache, maybe(cache.new_keys), maybe(cache.new_values),
        maybe(cache.lengths), maybe(cache.rotary_cos), maybe(cache.rotary_sin), maybe(cache.rows),
        maybe(cache.left_padding), maybe(cache.block_table), kNone, kNone, options.scale,
        options.causal, options.window_left, options.window_right, options.softcap,
        cache.rotary_interleaved, cache.num_splits);
    return {results[0], results[1]};
  }

 private:
  // The CPU build registers varlen_fwd alone, and that without window and soft cap.
  bool only_packed() const { return !forward_; }

  static at::Tensor rng_state(const Tensors& results) {
    return results.size() > 3 ? results[3] : at::Tensor();
  }

  // A batch of equal lengths, packed.
  FlashResult run_dense_as_packed(const at::Tensor& query, const at::Tensor& key,
                                  const at::Tensor& value, const FlashOptions& options) const {
    const int64_t batch = query.size(0), queries = query.size(1), keys = key.size(1);
    const auto starts = [&](int64_t length) {
      return at::arange(batch + 1, query.options().dtype(at::kInt).requires_grad(false)) * length;
    };
    FlashResult packed = run_packed(query.flatten(0, 1), key.flatten(0, 1), value.flatten(0, 1),
                                    {starts(queries), starts(keys), queries, keys}, options);
    packed.out = packed.out.view(query.sizes());
    packed.lse = packed.lse.view({query.size(2), batch, queries}).transpose(0, 1);
    return packed;
  }

  Tensors gradients(const Tensors& saved, const at::Tensor& grad_out,
                    const FlashOptions& options) const {
    const Tensors grads = like_inputs(saved);
    (*backward_)(with_contiguous_rows(grad_out), saved[0], saved[1], saved[2], saved[3], saved[4],
                 grads[0], grads[1], grads[2], kNone, 0.0, options.scale, options.causal,
                 options.window_left, options.window_right, options.softcap, options.deterministic,
                 kNone, maybe(saved[5]));
    return grads;
  }

  Tensors packed_gradients(const Tensors& saved, const at::Tensor& grad_out,
                           const PackedSequences& sequences, const FlashOptions& options) const {
    const Tensors grads = like_inputs(saved);
    (*varlen_backward_)(with_contiguous_rows(grad_out), saved[0], saved[1], saved[2], saved[3],
                        saved[4], grads[0], grads[1], grads[2], sequences.query_starts,
                        sequences.key_starts, kNone, sequences.max_query_length,
                        sequences.max_key_length, 0.0, options.scale, false, options.causal,
                        options.window_left, options.window_right, options.softcap,
                        options.deterministic, kNone, maybe(saved[5]));
    return grads;
  }

  static Tensors like_inputs(const Tensors& saved) {
    return {at::empty(saved[0].sizes(), saved[0].options()),
            at::empty(saved[1].sizes(), saved[1].options()),
            at::empty(saved[2].sizes(), saved[2].options())};
  }

  std::string repository_;
  std::optional<PublishedOp> forward_;
  PublishedOp varlen_forward_;
  std::optional<PublishedOp> backward_;
  std::optional<PublishedOp> varlen_backward_;
  std::optional<PublishedOp> cache_forward_;
};

}  // namespace

std::shared_ptr<const FlashAttention> bind_flash_attention2(const kernel::LoadedKernel& kernel) {
  return std::make_shared<FlashAttention2>(kernel);
}

}  // namespace graft::layers::published
