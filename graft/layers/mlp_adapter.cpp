#include "graft/layers/adapter.h"
#include "graft/layers/bound_op.h"

namespace graft::layers {

namespace {

std::optional<at::Tensor> optional_tensor(const at::Tensor& tensor) {
  return tensor.defined() ? std::optional<at::Tensor>(tensor) : std::nullopt;
}

constexpr ContractValue optional(std::string_view name) {
  return {name, c10::TypeKind::TensorType, /*optional=*/true};
}

class MlpAdapter final : public Mlp::Kernel {
 public:
  MlpAdapter(const Mlp::Spec& spec, const kernel::LoadedKernel& kernel,
             const kernel::PackageLayer& layer)
      : repository_(kernel.repository),
        variant_(variant_number(kernel, layer, Mlp::variant_name(spec))),
        forward_(kernel, need_op(kernel, layer, "forward"),
                 {{{"out"},
                   {"x"},
                   {"gate_weight"},
                   {"up_weight"},
                   {"down_weight"},
                   {"variant", c10::TypeKind::IntType},
                   optional("gate_bias"),
                   optional("up_bias"),
                   optional("down_bias")}}) {}

  bool has_backward() const override { return false; }

  at::Tensor forward(const at::Tensor& x, const Mlp::Weights& weights) const override {
    must_record(repository_, has_backward(),
                {&x, &weights.gate, &weights.up, &weights.down, &weights.gate_bias,
                 &weights.up_bias, &weights.down_bias});
    const at::Tensor dense = x.contiguous();
    at::Tensor out = at::empty(x.sizes(), x.options());
    forward_(out, dense, weights.gate, weights.up, weights.down, variant_,
             optional_tensor(weights.gate_bias), optional_tensor(weights.up_bias),
             optional_tensor(weights.down_bias));
    return out;
  }

 private:
  using OptionalTensor = std::optional<at::Tensor>;
  using Forward = BoundOp<void(at::Tensor&, const at::Tensor&, const at::Tensor&, const at::Tensor&,
                               const at::Tensor&, int64_t, const OptionalTensor&,
                               const OptionalTensor&, const OptionalTensor&)>;

  std::string repository_;
  int64_t variant_;
  Forward forward_;
};

}  // namespace

std::shared_ptr<const Mlp::Kernel> bind(const Mlp::Spec& spec, const kernel::LoadedKernel& kernel,
                                        const kernel::PackageLayer& layer) {
  check_contract(kernel, layer, Mlp::kName);
  return std::make_shared<MlpAdapter>(spec, kernel, layer);
}

}  // namespace graft::layers
