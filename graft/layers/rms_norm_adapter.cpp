#include <algorithm>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "graft/core/error.h"
#include "graft/layers/adapter.h"
#include "graft/layers/bound_op.h"
#include "graft/layers/gradient.h"
#include "graft/layers/published/contracts.h"

namespace graft::layers {

namespace {

constexpr ContractValue kEps = {"eps", c10::TypeKind::FloatType};
constexpr ContractValue kVariant = {"variant", c10::TypeKind::IntType};

class RmsNormAdapter final : public RmsNorm::Kernel,
                             public std::enable_shared_from_this<RmsNormAdapter> {
 public:
  RmsNormAdapter(const RmsNorm::Spec& spec, const kernel::LoadedKernel& kernel,
                 const kernel::PackageLayer& layer)
      : repository_(kernel.repository),
        rows_(layer.rows),
        variant_(variant_number(kernel, layer, RmsNorm::variant_name(spec))),
        promotes_(spec.variant == RmsNormVariant::kCastBeforeWeight),
        forward_(kernel, need_op(kernel, layer, "forward"),
                 {{{"out"}, {"x"}, {"weight"}, kEps, kVariant}}),
        add_forward_(optional_op<AddForward>(
            kernel, layer, "add_forward",
            {{{"out"}, {"sum"}, {"x"}, {"residual"}, {"weight"}, kEps, kVariant}})),
        backward_(backward_op<Backward>(
            kernel, layer,
            {{{"grad_x"}, {"grad_weight"}, {"grad_out"}, {"x"}, {"weight"}, kEps, kVariant}})),
        add_backward_(optional_op<AddBackward>(kernel, layer, "add_backward",
                                               {{{"grad_x"},
                                                 {"grad_weight"},
                                                 {"grad_out"},
                                                 {"grad_sum"},
                                                 {"sum"},
                                                 {"weight"},
                                                 kEps,
                                                 kVariant}})) {}

  bool has_backward() const override { return backward_.has_value(); }

  std::string row_refusal(int64_t hidden) const override {
    const bool served =
        rows_.empty() || std::find(rows_.begin(), rows_.end(), hidden) != rows_.end();
    return served ? ""
                  : fmt::format("expected rows of {} elements, as the layer was made for, got {}",
                                fmt::join(rows_, ", "), hidden);
  }

  at::Tensor forward(const at::Tensor& x, const at::Tensor& weight, double eps) const override {
    const bool records = must_record(repository_, has_backward(), {&x, &weight});
    at::Tensor out = make_out(x, weight);
    const at::Tensor rows = with_contiguous_rows(x);
    forward_(out, rows, weight, eps, variant_);
    if (records) {
      record(repository_, {out}, {x, weight}, {rows, weight},
             [self = shared_from_this(), eps](const Tensors& saved, const Tensors& grads) {
               return self->gradients(grads[0], saved[0], saved[1], eps);
             });
    }
    return out;
  }

  std::pair<at::Tensor, at::Tensor> add_forward(const at::Tensor& x, const at::Tensor& residual,
                                                const at::Tensor& weight,
                                                double eps) const override {
    if (!add_forward_) {
      return RmsNorm::Kernel::add_forward(x, residual, weight, eps);
    }
    const bool records = must_record(repository_, has_backward(), {&x, &residual, &weight});
    at::Tensor out = make_out(x, weight);
    at::Tensor sum = at::empty(x.sizes(), x.options());
    (*add_forward_)(out, sum, with_contiguous_rows(x), with_contiguous_rows(residual), weight, eps,
                    variant_);
    if (records) {
      // The sum is saved through an alias: an output saved as such would keep itself alive.
      record(repository_, {out, sum}, {x, residual, weight}, {sum.detach(), weight},
             [self = shared_from_this(), eps](const Tensors& saved, const Tensors& grads) {
               return self->add_gradients(grads[0], grads[1], saved[0], saved[1], eps);
             });
    }
    return {out, sum};
  }

 private:
  using Forward = BoundOp<void(at::Tensor&, const at::Tensor&, const at::Tensor&, double, int64_t)>;
  using AddForward = BoundOp<void(at::Tensor&, at::Tensor&, const at::Tensor&, const at::Tensor&,
                                  const at::Tensor&, double, int64_t)>;
  using Backward = AddForward;
  using AddBackward = BoundOp<void(at::Tensor&, at::Tensor&, const at::Tensor&, const at::Tensor&,
                                   const at::Tensor&, const at::Tensor&, double, int64_t)>;

  at::Tensor make_out(const at::Tensor& x, const at::Tensor& weight) const {
    return at::empty(x.sizes(), promotes_ ? x.options().dtype(weight.scalar_type()) : x.options());
  }

  Tensors gradients(const at::Tensor& grad_out, const at::Tensor& x, const at::Tensor& weight,
                    double eps) const {
    at::Tensor grad_x = at::empty(x.sizes(), x.options());
    at::Tensor grad_weight = at::empty_like(weight);
    (*backward_)(grad_x, grad_weight, with_contiguous_rows(grad_out), x, weight, eps, variant_);
    return {grad_x, grad_weight};
  }

  // The gradient of the sum goes to both addends.
  Tensors add_gradients(const at::Tensor& grad_out, const at::Tensor& grad_sum,
                        const at::Tensor& sum, const at::Tensor& weight, double eps) const {
    if (!grad_out.defined()) {
      return {grad_sum, grad_sum, at::Tensor()};
    }
    if (grad_sum.defined() && add_backward_) {
      at::Tensor grad_x = at::empty(sum.sizes(), sum.options());
      at::Tensor grad_weight = at::empty_like(weight);
      (*add_backward_)(grad_x, grad_weight, with_contiguous_rows(grad_out),
                       with_contiguous_rows(grad_sum), sum, weight, eps, variant_);
      return {grad_x, grad_x, grad_weight};
    }
    Tensors own = gradients(grad_out, sum, weight, eps);
    if (grad_sum.defined()) {
      own[0].add_(grad_sum);
    }
    return {own[0], own[0], own[1]};
  }

  std::string repository_;
  std::vector<int64_t> rows_;  // lengths that are served; empty: all
  int64_t variant_;
  bool promotes_;
  Forward forward_;
  std::optional<AddForward> add_forward_;
  std::optional<Backward> backward_;
  std::optional<AddBackward> add_backward_;
};

void check_eps(const RmsNorm::Spec& spec, const kernel::LoadedKernel& kernel,
               const kernel::PackageLayer& layer) {
  const auto& served = layer.eps;
  if (spec.eps > 0.0 && !served.empty() &&
      std::find(served.begin(), served.end(), spec.eps) == served.end()) {
    throw IncompatibleError("layers.adapter", "eps",
                            fmt::format("`{}`: expected an eps of {}, as the layer was made for, "
                                        "got {}",
                                        kernel.repository, fmt::join(served, ", "), spec.eps));
  }
}

}  // namespace

std::shared_ptr<const RmsNorm::Kernel> bind(const RmsNorm::Spec& spec,
                                            const kernel::LoadedKernel& kernel,
                                            const kernel::PackageLayer& layer) {
  check_contract(kernel, layer, "RMSNorm");
  if (!layer.published.empty()) {
    return published::bind_rms_norm(spec, kernel, layer);
  }
  check_eps(spec, kernel, layer);
  auto bound = std::make_shared<RmsNormAdapter>(spec, kernel, layer);
  const std::string reason = spec.hidden_size > 0 ? bound->row_refusal(spec.hidden_size) : "";
  if (!reason.empty()) {
    throw IncompatibleError("layers.adapter", "rows",
                            fmt::format("`{}`: {}", kernel.repository, reason));
  }
  return bound;
}

}  // namespace graft::layers
