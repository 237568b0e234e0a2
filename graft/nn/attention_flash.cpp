#include <fmt/format.h>

#include "graft/core/error.h"
#include "graft/layers/gradient.h"
#include "graft/nn/attention_kernel.h"

namespace graft::nn {

namespace {

using layers::published::FlashAttention;
using layers::published::FlashOptions;

// [B, L, H, D] -> the real tokens [N, H, D].
at::Tensor packed(const at::Tensor& x, const at::Tensor& places) {
  return x.reshape({x.size(0) * x.size(1), x.size(2), x.size(3)}).index_select(0, places);
}

class FlashKernel final : public AttentionKernel {
 public:
  FlashKernel(std::string name, std::shared_ptr<const FlashAttention> flash)
      : name_(fmt::format("{} ({})", name, flash->family())), flash_(std::move(flash)) {}

  std::string name() const override { return name_; }
  std::string refusal(const AttentionNeeds& needs) const override { return flash_->refusal(needs); }

  at::Tensor forward(const AttentionCall& call) const override {
    const at::Tensor key = call.key.transpose(1, 2), value = call.value.transpose(1, 2);
    const int64_t queries = call.query.size(1), keys = key.size(1);
    FlashOptions options{.scale = call.scale, .causal = true, .softcap = call.softcap};
    if (call.window > 0 && keys > call.window) {
      options.window_left = call.window - 1;
    }
    if (call.unpadding != nullptr) {
      return forward_padded(call, key, value, options);
    }
    // Over a cache the ops for that split the keys among processors.
    const bool over_cache = keys > queries && flash_->has_cache_op() &&
                            call.query.size(-1) % 8 == 0 &&
                            !layers::needs_gradient({&call.query, &call.key, &call.value});
    return over_cache ? flash_->forward_cache(call.query, key, value, {}, options).out
                      : flash_->forward(call.query, key, value, options).out;
  }

 private:
  at::Tensor forward_padded(const AttentionCall& call, const at::Tensor& key,
                            const at::Tensor& value, const FlashOptions& options) const {
    const Unpadding& tokens = *call.unpadding;
    if (tokens.has_gaps && options.window_left >= 0) {
      // Packed, the tokens around a gap would come closer to each other than they are.
      throw IncompatibleError(
          "models.attn_implementation", "refused",
          fmt::format("attention_mask: expected padding at the ends alone for {} with a sliding "
                      "window, got padding between tokens",
                      name_));
    }
    const at::Tensor out =
        flash_
            ->forward_packed(packed(call.query, tokens.query_places),
                             packed(key, tokens.key_places), packed(value, tokens.key_places),
                             tokens.sequences, options)
            .out;
    const int64_t batch = call.query.size(0), queries = call.query.size(1);
    return at::zeros({batch * queries, out.size(1), out.size(2)}, out.options())
        .index_copy(0, tokens.query_places, out)
        .view(call.query.sizes());
  }

  std::string name_;
  std::shared_ptr<const FlashAttention> flash_;
};

}  // namespace

std::shared_ptr<const AttentionKernel> make_flash_kernel(const std::string& name,
                                                         const kernel::LoadedKernel& kernel) {
  return std::make_shared<FlashKernel>(name, layers::published::bind_flash_attention(kernel));
}

}  // namespace graft::nn
