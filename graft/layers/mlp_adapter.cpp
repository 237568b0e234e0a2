#include <algorithm>
#include <array>

#include "graft/layers/adapter.h"
#include "graft/layers/bound_op.h"
#include "graft/layers/gradient.h"

namespace graft::layers {

namespace {

std::optional<at::Tensor> optional_tensor(const at::Tensor& tensor) {
  return tensor.defined() ? std::optional<at::Tensor>(tensor) : std::nullopt;
}

constexpr ContractValue optional(std::string_view name) {
  return {name, c10::TypeKind::TensorType, /*optional=*/true};
}

constexpr ContractValue kVariant = {"variant", c10::TypeKind::IntType};

// What a forward is given, in this order.
constexpr std::array<ContractValue, 8> kArguments = {{{"x"},
                                                      {"gate_weight"},
                                                      {"up_weight"},
                                                      {"down_weight"},
                                                      kVariant,
                                                      optional("gate_bias"),
                                                      optional("up_bias"),
                                                      optional("down_bias")}};

constexpr std::array<ContractValue, 9> out_and_arguments() {
  std::array<ContractValue, 9> values = {{{"out"}}};
  std::copy(kArguments.begin(), kArguments.end(), values.begin() + 1);
  return values;
}

// A layer that trains names two more ops: `train`, a forward that also gives the products of x with gate's
// and up's weight, and `backward`, which takes them back.
class MlpAdapter final : public Mlp::Kernel, public std::enable_shared_from_this<MlpAdapter> {
 public:
  MlpAdapter(const Mlp::Spec& spec, const kernel::LoadedKernel& kernel,
             const kernel::PackageLayer& layer)
      : repository_(kernel.repository),
        variant_(variant_number(kernel, layer, Mlp::variant_name(spec))),
        forward_(kernel, need_op(kernel, layer, "forward"), out_and_arguments()),
        backward_(backward_op<Backward>(kernel, layer,
                                        {{{"grad_out"},
                                          {"x"},
                                          {"gate"},
                                          {"up"},
                                          {"gate_weight"},
                                          {"up_weight"},
                                          {"down_weight"},
                                          kVariant,
                                          optional("gate_bias"),
                                          optional("up_bias"),
                                          optional("down_bias"),
                                          {"weights", c10::TypeKind::BoolType}}})) {
    if (backward_) {
      train_.emplace(kernel, need_op(kernel, layer, "train"), kArguments);
    }
  }

  bool has_backward() const override { return backward_.has_value(); }

  at::Tensor forward(const at::Tensor& x, const Mlp::Weights& weights) const override {
    const bool records = must_record(repository_, has_backward(),
                                     {&x, &weights.gate, &weights.up, &weights.down,
                                      &weights.gate_bias, &weights.up_bias, &weights.down_bias});
    const at::Tensor dense = x.contiguous();
    if (records) {
      return train(x, dense.detach(), weights);
    }
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
  using Train = BoundOp<std::tuple<at::Tensor, at::Tensor, at::Tensor>(
      const at::Tensor&, const at::Tensor&, const at::Tensor&, const at::Tensor&, int64_t,
      const OptionalTensor&, const OptionalTensor&, const OptionalTensor&)>;
  using Gradients = std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor,
                               at::Tensor, at::Tensor>;
  using Backward =
      BoundOp<Gradients(const at::Tensor&, const at::Tensor&, const at::Tensor&, const at::Tensor&,
                        const at::Tensor&, const at::Tensor&, const at::Tensor&, int64_t,
                        const OptionalTensor&, const OptionalTensor&, const OptionalTensor&, bool)>;

  // Order of the inputs: x, then gate's, up's and down's weight, then their biases.
  at::Tensor train(const at::Tensor& x, const at::Tensor& dense,
                   const Mlp::Weights& weights) const {
    auto [out, gate, up] = (*train_)(
        dense, weights.gate, weights.up, weights.down, variant_, optional_tensor(weights.gate_bias),
        optional_tensor(weights.up_bias), optional_tensor(weights.down_bias));
    const bool any_weight =
        needs_gradient({&weights.gate, &weights.up, &weights.down, &weights.gate_bias,
                        &weights.up_bias, &weights.down_bias});
    record(repository_, {out},
           {x, weights.gate, weights.up, weights.down, weights.gate_bias, weights.up_bias,
            weights.down_bias},
           {dense, gate, up, weights.gate, weights.up, weights.down, weights.gate_bias,
            weights.up_bias, weights.down_bias},
           [self = shared_from_this(), any_weight](const Tensors& saved, const Tensors& grads) {
             return self->gradients(saved, grads[0].contiguous(), any_weight);
           });
    return out;
  }

  Tensors gradients(const Tensors& saved, const at::Tensor& grad_out, bool any_weight) const {
    const auto [x, gate_weight, up_weight, down_weight, gate_bias, up_bias, down_bias] =
        (*backward_)(grad_out, saved[0], saved[1], saved[2], saved[3], saved[4], saved[5], variant_,
                     optional_tensor(saved[6]), optional_tensor(saved[7]),
                     optional_tensor(saved[8]), any_weight);
    if (!any_weight) {
      return {x, {}, {}, {}, {}, {}, {}};
    }
    const auto unless_absent = [](const at::Tensor& grad, const at::Tensor& bias) {
      return bias.defined() ? grad : at::Tensor();
    };
    return {x,
            gate_weight,
            up_weight,
            down_weight,
            unless_absent(gate_bias, saved[6]),
            unless_absent(up_bias, saved[7]),
            unless_absent(down_bias, saved[8])};
  }

  std::string repository_;
  int64_t variant_;
  Forward forward_;
  std::optional<Backward> backward_;
  std::optional<Train> train_;
};

}  // namespace

std::shared_ptr<const Mlp::Kernel> bind(const Mlp::Spec& spec, const kernel::LoadedKernel& kernel,
                                        const kernel::PackageLayer& layer) {
  check_contract(kernel, layer, Mlp::kName);
  return std::make_shared<MlpAdapter>(spec, kernel, layer);
}

}  // namespace graft::layers
