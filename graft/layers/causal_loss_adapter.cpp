#include "graft/core/error.h"
#include "graft/layers/adapter.h"
#include "graft/layers/bound_op.h"
#include "graft/layers/gradient.h"

namespace graft::layers {

namespace {

constexpr ContractValue optional(std::string_view name) {
  return {name, c10::TypeKind::TensorType, /*optional=*/true};
}

constexpr ContractValue kIgnoreIndex = {"ignore_index", c10::TypeKind::IntType};
constexpr ContractValue kSoftcap = {"softcap", c10::TypeKind::FloatType};
constexpr ContractValue kSmoothing = {"smoothing", c10::TypeKind::FloatType};
constexpr ContractValue kChunkRows = {"chunk_rows", c10::TypeKind::IntType};

class CausalLossAdapter final : public CausalLoss::Kernel,
                                public std::enable_shared_from_this<CausalLossAdapter> {
 public:
  CausalLossAdapter(const kernel::LoadedKernel& kernel, const kernel::PackageLayer& layer)
      : repository_(kernel.repository),
        has_backward_(layer.has_backward),
        forward_(kernel, need_op(kernel, layer, "linear_forward"),
                 {{{"loss"},
                   {"lse"},
                   {"hidden"},
                   {"weight"},
                   optional("bias"),
                   {"labels"},
                   kIgnoreIndex,
                   kSoftcap,
                   kSmoothing,
                   kChunkRows}}),
        backward_(optional_op<Backward>(kernel, layer, "linear_backward",
                                        {{{"grad_hidden"},
                                          optional("grad_weight"),
                                          optional("grad_bias"),
                                          {"grad_loss"},
                                          {"hidden"},
                                          {"weight"},
                                          optional("bias"),
                                          {"labels"},
                                          {"lse"},
                                          kIgnoreIndex,
                                          kSoftcap,
                                          kSmoothing,
                                          kChunkRows}})),
        train_(optional_op<Train>(kernel, layer, "linear_train",
                                  {{{"loss"},
                                    {"lse"},
                                    {"grad_hidden"},
                                    optional("grad_weight"),
                                    optional("grad_bias"),
                                    {"grad_loss"},
                                    {"hidden"},
                                    {"weight"},
                                    optional("bias"),
                                    {"labels"},
                                    kIgnoreIndex,
                                    kSoftcap,
                                    kSmoothing,
                                    kChunkRows}})) {
    if (has_backward_) {
      need_op(kernel, layer, "linear_backward");
    }
  }

  bool has_backward() const override { return has_backward_; }

  at::Tensor forward(const at::Tensor& hidden, const at::Tensor& weight, const at::Tensor& labels,
                     double softcap, int64_t num_items) const override {
    const bool records = must_record(repository_, has_backward_, {&hidden, &weight});
    const Rows rows{with_contiguous_rows(hidden.detach()), with_contiguous_rows(weight.detach()),
                    labels, softcap};
    const at::Tensor scale = scale_of(labels, num_items);
    if (!records) {
      return losses(rows).first.sum() * scale;
    }
    // Gradients are made while the logits are there. Not in float16: the factor of a loss scaler has to be
    // in them before they are rounded.
    const bool at_once = train_ && hidden.scalar_type() != at::kHalf;
    return at_once ? train(rows, scale, hidden, weight)
                   : record_losses(rows, scale, hidden, weight);
  }

 private:
  using OptionalTensor = std::optional<at::Tensor>;
  using Forward =
      BoundOp<void(at::Tensor&, at::Tensor&, const at::Tensor&, const at::Tensor&,
                   const OptionalTensor&, const at::Tensor&, int64_t, double, double, int64_t)>;
  using Backward =
      BoundOp<void(at::Tensor&, const OptionalTensor&, const OptionalTensor&, const at::Tensor&,
                   const at::Tensor&, const at::Tensor&, const OptionalTensor&, const at::Tensor&,
                   const at::Tensor&, int64_t, double, double, int64_t)>;
  using Train =
      BoundOp<void(at::Tensor&, at::Tensor&, at::Tensor&, const OptionalTensor&,
                   const OptionalTensor&, const at::Tensor&, const at::Tensor&, const at::Tensor&,
                   const OptionalTensor&, const at::Tensor&, int64_t, double, double, int64_t)>;

  struct Rows {
    at::Tensor hidden, weight, labels;
    double softcap;
  };

  // One over what the sum is divided by, on the labels' device: nothing waits for it.
  static at::Tensor scale_of(const at::Tensor& labels, int64_t num_items) {
    const auto options = labels.options().dtype(at::kFloat);
    return num_items > 0 ? at::full({}, 1.0 / static_cast<double>(num_items), options)
                         : labels.ne(CausalLoss::kIgnoredLabel).sum().to(at::kFloat).reciprocal();
  }

  static at::Tensor row_values(const Rows& rows) {
    return at::empty({rows.hidden.size(0)}, rows.hidden.options().dtype(at::kFloat));
  }

  std::pair<at::Tensor, at::Tensor> losses(const Rows& rows) const {
    at::Tensor loss = row_values(rows), lse = row_values(rows);
    forward_(loss, lse, rows.hidden, rows.weight, std::nullopt, rows.labels,
             CausalLoss::kIgnoredLabel, rows.softcap, 0.0, 0);
    return {loss, lse};
  }

  at::Tensor train(const Rows& rows, const at::Tensor& scale, const at::Tensor& hidden,
                   const at::Tensor& weight) const {
    at::Tensor loss = row_values(rows), lse = row_values(rows);
    at::Tensor grad_hidden = at::empty_like(rows.hidden);
    const OptionalTensor grad_weight =
        weight.requires_grad() ? OptionalTensor(at::empty_like(rows.weight)) : std::nullopt;
    (*train_)(loss, lse, grad_hidden, grad_weight, std::nullopt, scale.expand({loss.size(0)}),
              rows.hidden, rows.weight, std::nullopt, rows.labels, CausalLoss::kIgnoredLabel,
              rows.softcap, 0.0, 0);
    const at::Tensor mean = loss.sum() * scale;
    record(repository_, {mean}, {hidden, weight}, {grad_hidden, grad_weight.value_or(at::Tensor())},
           [](const Tensors& saved, const Tensors& grads) -> Tensors {
             const auto scaled = [&](const at::Tensor& grad) {
               return grad.defined() ? grad * grads[0].to(grad.scalar_type()) : grad;
             };
             return {scaled(saved[0]), scaled(saved[1])};
           });
    return mean;
  }

  at::Tensor record_losses(const Rows& rows, const at::Tensor& scale, const at::Tensor& hidden,
                           const at::Tensor& weight) const {
    const auto [loss, lse] = losses(rows);
    const at::Tensor mean = loss.sum() * scale;
    record(repository_, {mean}, {hidden, weight},
           {rows.hidden, rows.weight, rows.labels, lse, scale},
           [self = shared_from_this(), softcap = rows.softcap,
            with_weight = weight.requires_grad()](const Tensors& saved, const Tensors& grads) {
             return self->gradients({saved[0], saved[1], saved[2], softcap}, saved[3],
                                    grads[0] * saved[4], with_weight);
           });
    return mean;
  }

  Tensors gradients(const Rows& rows, const at::Tensor& lse, const at::Tensor& grad,
                    bool with_weight) const {
    at::Tensor grad_hidden = at::empty_like(rows.hidden);
    const OptionalTensor grad_weight =
        with_weight ? OptionalTensor(at::empty_like(rows.weight)) : std::nullopt;
    (*backward_)(grad_hidden, grad_weight, std::nullopt, grad.expand({rows.hidden.size(0)}),
                 rows.hidden, rows.weight, std::nullopt, rows.labels, lse,
                 CausalLoss::kIgnoredLabel, rows.softcap, 0.0, 0);
    return {grad_hidden, grad_weight.value_or(at::Tensor())};
  }

  std::string repository_;
  bool has_backward_;
  Forward forward_;
  std::optional<Backward> backward_;
  std::optional<Train> train_;
};

}  // namespace

std::shared_ptr<const CausalLoss::Kernel> bind(const CausalLoss::Spec&,
                                               const kernel::LoadedKernel& kernel,
                                               const kernel::PackageLayer& layer) {
  check_contract(kernel, layer, CausalLoss::kName);
  return std::make_shared<CausalLossAdapter>(kernel, layer);
}

}  // namespace graft::layers
