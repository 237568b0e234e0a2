#include <fmt/format.h>

#include "graft/layers/bound_op.h"
#include "graft/layers/gradient.h"
#include "graft/layers/published/flash_attention.h"
#include "graft/layers/published/published_op.h"
#include "graft/tensor/device.h"

namespace graft::layers::published {

namespace {

// flash-attn3: the wheel of Dao-AILab registers the same.
constexpr char kForward[] =
    "fwd(Tensor q, Tensor k, Tensor v, Tensor(k_new!)? k_new = None, Tensor(v_new!)? v_new = None, "
    "Tensor? q_v = None, Tensor(out!)? out = None, Tensor? cu_seqlens_q = None, Tensor? "
    "cu_seqlens_k = "
    "None, Tensor? cu_seqlens_k_new = None, Tensor? seqused_q = None, Tensor? seqused_k = None, "
    "int? "
    "max_seqlen_q = None, int? max_seqlen_k = None, Tensor? page_table = None, Tensor? "
    "kv_batch_idx = "
    "None, Tensor? leftpad_k = None, Tensor? rotary_cos = None, Tensor? rotary_sin = None, Tensor? "
    "seqlens_rotary = None, Tensor? q_descale = None, Tensor? k_descale = None, Tensor? v_descale "
    "= "
    "None, float? softmax_scale = None, bool is_causal = False, int window_size_left = -1, int "
    "window_size_right = -1, int attention_chunk = 0, float softcap = 0.0, bool "
    "is_rotary_interleaved = "
    "False, Tensor? scheduler_metadata = None, int num_splits = 0, bool? pack_gqa = None, int "
    "sm_margin "
    "= 0) -> (Tensor(out!), Tensor, Tensor, Tensor)";
constexpr char kBackwardArguments[] =
    "bwd(Tensor dout, Tensor q, Tensor k, Tensor v, Tensor out, Tensor softmax_lse, Tensor(dq!)? "
    "dq = "
    "None, Tensor(dk!)? dk = None, Tensor(dv!)? dv = None, Tensor? cu_seqlens_q = None, Tensor? "
    "cu_seqlens_k = None, Tensor? seqused_q = None, Tensor? seqused_k = None, int? max_seqlen_q = "
    "None, "
    "int? max_seqlen_k = None, {} softmax_scale = {}, bool is_causal = False, int window_size_left "
    "= "
    "-1, int window_size_right = -1, float softcap = 0.0, bool deterministic = False, int "
    "sm_margin = "
    "0) -> ({})";
// vllm-flash-attn3: no attention_chunk, a scale that must be passed, sinks at the end.
constexpr char kVllmForward[] =
    "fwd(Tensor q, Tensor k, Tensor v, Tensor? k_new = None, Tensor? v_new = None, Tensor? q_v = "
    "None, "
    "Tensor(out!)? out = None, Tensor? cu_seqlens_q = None, Tensor? cu_seqlens_k = None, Tensor? "
    "cu_seqlens_k_new = None, Tensor? seqused_q = None, Tensor? seqused_k = None, int? "
    "max_seqlen_q = "
    "None, int? max_seqlen_k = None, Tensor? page_table = None, Tensor? kv_batch_idx = None, "
    "Tensor? "
    "leftpad_k = None, Tensor? rotary_cos = None, Tensor? rotary_sin = None, Tensor? "
    "seqlens_rotary = "
    "None, Tensor? q_descale = None, Tensor? k_descale = None, Tensor? v_descale = None, float "
    "softmax_scale = 0.0, bool is_causal = False, int window_size_left = -1, int window_size_right "
    "= "
    "-1, float softcap = 0.0, bool is_rotary_interleaved = False, Tensor? scheduler_metadata = "
    "None, "
    "int num_splits = 0, bool? pack_gqa = None, int sm_margin = 0, Tensor? s_aux = None) -> "
    "(Tensor(out!), Tensor, Tensor, Tensor)";

std::string backward_schema(bool is_vllm) {
  return is_vllm ? fmt::format(kBackwardArguments, "float", "0.0",
                               "Tensor(dq!), Tensor(dk!), Tensor(dv!), Tensor, Tensor, Tensor, "
                               "Tensor, Tensor")
                 : fmt::format(kBackwardArguments, "float?", "None",
                               "Tensor, Tensor, Tensor, Tensor, Tensor");
}

// Of the two kinds the one that has sinks.
bool looks_like_vllm(const kernel::LoadedKernel& kernel) {
  return kernel.op("fwd").schema().argumentIndexWithName("s_aux").has_value();
}

const c10::IValue kNone;

// The arguments of `fwd` that differ from call to call; absent ones are undefined.
struct ForwardArguments {
  PackedSequences sequences;
  FlashCache cache;
  bool has_lengths = false;  // of packed sequences
};

class FlashAttention3 final : public FlashAttention,
                              public std::enable_shared_from_this<FlashAttention3> {
 public:
  explicit FlashAttention3(const kernel::LoadedKernel& kernel)
      : repository_(kernel.repository),
        is_vllm_(looks_like_vllm(kernel)),
        forward_(kernel, {is_vllm_ ? kVllmForward : kForward}),
        backward_(optional_op(kernel, "bwd", {backward_schema(is_vllm_)})) {}

  std::string_view family() const override { return is_vllm_ ? "vllm-flash-attn3" : "flash-attn3"; }
  bool has_cache_op() const override { return true; }

  std::string refusal(const AttentionNeeds& needs) const override {
    if (needs.dtype != at::kHalf && needs.dtype != at::kBFloat16) {
      return fmt::format("{} takes float16 and bfloat16, not {}", family(),
                         tensor::dtype_name(needs.dtype));
    }
    if (needs.head_dim > 256) {
      return fmt::format("{} takes heads of at most 256, not {}", family(), needs.head_dim);
    }
    if (needs.sinks && !is_vllm_) {
      return "flash-attn3 has no attention sinks (vllm-flash-attn3 has)";
    }
    if (needs.training && !backward_) {
      return fmt::format("this build of {} has no backward", family());
    }
    return "";
  }

 protected:
  const std::string& repository() const override { return repository_; }

  void check(const at::Tensor& query, const FlashOptions& options) const override {
    const at::Tensor& sinks = options.sinks;
    if (!sinks.defined()) {
      return;
    }
    forward_.need(is_vllm_, "sinks", "none (flash-attn3 has no such argument)", sinks);
    forward_.need(sinks.scalar_type() == at::kBFloat16 && sinks.is_contiguous() &&
                      sinks.sizes() == at::IntArrayRef{query.size(-2)},
                  "sinks", "contiguous bfloat16, one for each query head", sinks);
    forward_.need(!needs_gradient({&sinks}), "sinks", "no gradient (the kernel has none)",
                  std::string("one that requires it"));
  }

  FlashResult run(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                  const FlashOptions& options) const override {
    return differentiable(query, key, value, {}, options);
  }

  FlashResult run_packed(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                         const PackedSequences& sequences,
                         const FlashOptions& options) const override {
    return differentiable(query, key, value, {.sequences = sequences, .has_lengths = true},
                          options);
  }

  FlashResult run_cache(const at::Tensor& query, const at::Tensor& key_cache,
                        const at::Tensor& value_cache, const FlashCache& cache,
                        const FlashOptions& options) const override {
    const Tensors results = call(query, key_cache, value_cache, {.cache = cache}, options);
    return {results[0], results[1]};
  }

 private:
  FlashResult differentiable(const at::Tensor& query, const at::Tensor& key,
                             const at::Tensor& value, const ForwardArguments& arguments,
                             const FlashOptions& options) const {
    const bool records = must_record(repository_, backward_.has_value(), {&query, &key, &value});
    ForwardArguments own = arguments;
    if (records) {
      own.cache.num_splits = 1;  // as the published wrapper: sums in one order
    }
    const Tensors results = call(query, key, value, own, options);
    if (records) {
      check_backward(query, options);
      record(repository_, {results[0]}, {query, key, value},
             {query, key, value, results[0].detach(), results[1]},
             [self = shared_from_this(), options, own](const Tensors& saved, const Tensors& grads) {
               return self->gradients(saved, grads[0], own, options);
             });
    }
    return {results[0], results[1]};
  }

  void check_backward(const at::Tensor& query, const FlashOptions& options) const {
    backward_->need(!options.deterministic || query.size(-1) <= 192, "deterministic",
                    "false for heads above 192", query.size(-1));
  }

  // Every argument is pushed: the schema's defaults (num_splits, interleaving, vllm's scale) are not
  // those of the published wrapper.
  Tensors call(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
               const ForwardArguments& arguments, const FlashOptions& options) const {
    const auto& [sequences, cache, has_lengths] = arguments;
    const c10::IValue max_query = has_lengths ? c10::IValue(sequences.max_query_length) : kNone;
    const c10::IValue max_key = has_lengths ? c10::IValue(sequences.max_key_length) : kNone;
    const auto front = [&](auto&&... rest) {
      return forward_(query, key, value, maybe(cache.new_keys), maybe(cache.new_values), kNone,
                      kNone, maybe(sequences.query_starts), maybe(sequences.key_starts), kNone,
                      kNone, maybe(cache.lengths), max_query, max_key, maybe(cache.block_table),
                      maybe(cache.rows), maybe(cache.left_padding), maybe(cache.rotary_cos),
                      maybe(cache.rotary_sin), kNone, kNone, kNone, kNone, options.scale,
                      options.causal, options.window_left, options.window_right, rest...);
    };
    const int64_t no_chunk = 0, no_margin = 0;
    return is_vllm_ ? front(options.softcap, cache.rotary_interleaved, kNone, cache.num_splits,
                            kNone, no_margin, maybe(options.sinks))
                    : front(no_chunk, options.softcap, cache.rotary_interleaved, kNone,
                            cache.num_splits, kNone, no_margin);
  }

  // flash-attn3 returns its scratch and writes the gradients where they are passed; vllm's returns
  // them too. Passing them serves both.
  Tensors gradients(const Tensors& saved, const at::Tensor& grad_out,
                    const ForwardArguments& arguments, const FlashOptions& options) const {
    const auto& sequences = arguments.sequences;
    const c10::IValue max_query =
        arguments.has_lengths ? c10::IValue(sequences.max_query_length) : kNone;
    const c10::IValue max_key =
        arguments.has_lengths ? c10::IValue(sequences.max_key_length) : kNone;
    const Tensors grads = {at::empty(saved[0].sizes(), saved[0].options()),
                           at::empty(saved[1].sizes(), saved[1].options()),
                           at::empty(saved[2].sizes(), saved[2].options())};
    (*backward_)(with_contiguous_rows(grad_out), saved[0], saved[1], saved[2], saved[3], saved[4],
                 grads[0], grads[1], grads[2], maybe(sequences.query_starts),
                 maybe(sequences.key_starts), kNone, kNone, max_query, max_key, options.scale,
                 options.causal, options.window_left, options.window_right, options.softcap,
                 options.deterministic, int64_t{0});
    return grads;
  }

  std::string repository_;
  bool is_vllm_;
  PublishedOp forward_;
  std::optional<PublishedOp> backward_;
};

}  // namespace

std::shared_ptr<const FlashAttention> bind_flash_attention3(const kernel::LoadedKernel& kernel) {
  return std::make_shared<FlashAttention3>(kernel);
}

}  // namespace graft::layers::published
