#include "graft/layers/adapter.h"
#include "graft/layers/bound_op.h"
#include "graft/layers/gradient.h"
#include "graft/layers/published/contracts.h"

namespace graft::layers {

namespace {

// A package that lists numeric variants must list `default` to serve a contract with just one.
void check_default_variant(const kernel::LoadedKernel& kernel, const kernel::PackageLayer& layer) {
  if (!layer.variants.empty()) {
    variant_number(kernel, layer, "default");
  }
}

class ActivationAdapter final : public Activation::Kernel,
                                public std::enable_shared_from_this<ActivationAdapter> {
 public:
  ActivationAdapter(const kernel::LoadedKernel& kernel, const kernel::PackageLayer& layer)
      : repository_(kernel.repository),
        forward_(kernel, need_op(kernel, layer, "forward"), {{{"out"}, {"x"}}}),
        backward_(backward_op<Backward>(kernel, layer, {{{"grad_x"}, {"grad_out"}, {"x"}}})) {}

  bool has_backward() const override { return backward_.has_value(); }

  at::Tensor forward(const at::Tensor& x) const override {
    const bool records = must_record(repository_, has_backward(), {&x});
    at::Tensor out = at::empty(x.sizes(), x.options());
    const at::Tensor dense = x.contiguous();
    forward_(out, dense);
    if (records) {
      record(repository_, {out}, {x}, {dense},
             [self = shared_from_this()](const Tensors& saved, const Tensors& grads) -> Tensors {
               at::Tensor grad_x = at::empty(saved[0].sizes(), saved[0].options());
               (*self->backward_)(grad_x, grads[0].contiguous(), saved[0]);
               return {grad_x};
             });
    }
    return out;
  }

 private:
  using Backward = BoundOp<void(at::Tensor&, const at::Tensor&, const at::Tensor&)>;

  std::string repository_;
  BoundOp<void(at::Tensor&, const at::Tensor&)> forward_;
  std::optional<Backward> backward_;
};

class GatedActivationAdapter final : public GatedActivation::Kernel,
                                     public std::enable_shared_from_this<GatedActivationAdapter> {
 public:
  GatedActivationAdapter(const kernel::LoadedKernel& kernel, const kernel::PackageLayer& layer)
      : repository_(kernel.repository),
        forward_(kernel, need_op(kernel, layer, "forward"), {{{"out"}, {"gate"}, {"up"}}}),
        backward_(backward_op<Backward>(
            kernel, layer, {{{"grad_gate"}, {"grad_up"}, {"grad_out"}, {"gate"}, {"up"}}})) {}

  bool has_backward() const override { return backward_.has_value(); }

  at::Tensor forward(const at::Tensor& gate, const at::Tensor& up) const override {
    const bool records = must_record(repository_, has_backward(), {&gate, &up});
    at::Tensor out = at::empty(gate.sizes(), gate.options());
    const at::Tensor gate_rows = with_contiguous_rows(gate), up_rows = with_contiguous_rows(up);
    forward_(out, gate_rows, up_rows);
    if (records) {
      record(repository_, {out}, {gate, up}, {gate_rows, up_rows},
             [self = shared_from_this()](const Tensors& saved, const Tensors& grads) -> Tensors {
               at::Tensor grad_gate = at::empty(saved[0].sizes(), saved[0].options());
               at::Tensor grad_up = at::empty(saved[1].sizes(), saved[1].options());
               (*self->backward_)(grad_gate, grad_up, with_contiguous_rows(grads[0]), saved[0],
                                  saved[1]);
               return {grad_gate, grad_up};
             });
    }
    return out;
  }

 private:
  using Backward = BoundOp<void(at::Tensor&, at::Tensor&, const at::Tensor&, const at::Tensor&,
                                const at::Tensor&)>;

  std::string repository_;
  BoundOp<void(at::Tensor&, const at::Tensor&, const at::Tensor&)> forward_;
  std::optional<Backward> backward_;
};

}  // namespace

std::shared_ptr<const Activation::Kernel> bind(const Activation::Spec&,
                                               const kernel::LoadedKernel& kernel,
                                               const kernel::PackageLayer& layer) {
  check_contract(kernel, layer, "Activation");
  if (!layer.published.empty()) {
    return published::bind_activation(kernel, layer);
  }
  check_default_variant(kernel, layer);
  return std::make_shared<ActivationAdapter>(kernel, layer);
}

std::shared_ptr<const GatedActivation::Kernel> bind(const GatedActivation::Spec&,
                                                    const kernel::LoadedKernel& kernel,
                                                    const kernel::PackageLayer& layer) {
  check_contract(kernel, layer, "GatedActivation");
  if (!layer.published.empty()) {
    return published::bind_gated_activation(kernel, layer);
  }
  check_default_variant(kernel, layer);
  return std::make_shared<GatedActivationAdapter>(kernel, layer);
}

}  // namespace graft::layers
