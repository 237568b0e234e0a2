#include <fmt/format.h>
#include <fmt/ranges.h>

#include "graft/core/error.h"
#include "graft/models/decoder.h"

namespace graft::models {

namespace {

void check_loss(const ForwardInput& input, const at::Tensor& labels, int64_t num_items) {
  if (input.cache != nullptr || input.logits_to_keep != 0) {
    throw InvalidArgument("models.loss", "input",
                          "loss: expected no cache and logits_to_keep 0, got one of them");
  }
  if (!labels.defined() || labels.scalar_type() != at::kLong || !input.input_ids.defined() ||
      labels.sizes() != input.input_ids.sizes()) {
    throw InvalidArgument(
        "models.loss", "labels",
        fmt::format("labels: expected int64 of the shape of input_ids, got {}",
                    labels.defined()
                        ? fmt::format("{} {}", toString(labels.scalar_type()), labels.sizes())
                        : "nothing"));
  }
  if (num_items < 0) {
    throw InvalidArgument("models.loss", "num-items",
                          fmt::format("num_items: expected 0 or more, got {}", num_items));
  }
}

}  // namespace

at::Tensor CausalLM::loss(const ForwardInput&, const at::Tensor&, int64_t) {
  throw InvalidArgument("models.loss", "model", "loss: expected a model that has one, got another");
}

at::Tensor DecoderForCausalLM::loss(const ForwardInput& input, const at::Tensor& labels,
                                    int64_t num_items) {
  check_loss(input, labels, num_items);
  const at::Tensor hidden = hidden_states(input).flatten(0, 1);
  // The label of a place is the token after it; the last place has none, so no row has to move.
  const at::Tensor shifted =
      at::constant_pad_nd(labels, {0, 1}, layers::CausalLoss::kIgnoredLabel).slice(1, 1).flatten();
  if (loss_) {
    return (*loss_)->forward(hidden, lm_head_->weight, shifted, logit_softcap(), num_items);
  }
  if (lm_head_->packed_weight() != nullptr) {
    throw InvalidArgument("models.loss", "packed",
                          "loss: expected weights that are not packed, got packed ones",
                          "load the model with weights unpacked");
  }
  return layers::CausalLoss::reference({})->forward(hidden, lm_head_->weight, shifted,
                                                    logit_softcap(), num_items);
}

}  // namespace graft::models
