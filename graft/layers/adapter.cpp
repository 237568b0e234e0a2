#include "graft/layers/adapter.h"

#include <array>
#include <optional>

#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/grad_mode.h>
#include <ATen/core/stack.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include "graft/core/error.h"

namespace graft::layers {

namespace {

// A value that a contract offers to ops, and its type in a schema.
struct ContractValue {
  std::string_view name;
  c10::TypeKind kind;
  bool optional = false;  // the schema may say `Tensor?`
};

// An op whose arguments are bound to a contract's values. CallTyped is the canonical signature,
// with the values in the contract's order; another order or type is called boxed.
template <typename CallTyped>
class BoundOp;

template <typename... Args>
class BoundOp<void(Args...)> {
 public:
  static constexpr size_t kNumValues = sizeof...(Args);

  BoundOp(const kernel::LoadedKernel& kernel, const kernel::LayerOp& op,
          const std::array<ContractValue, kNumValues>& values)
      : handle_(kernel.op(op.op)) {
    bind_arguments(kernel, op, values);
    if (canonical_) {
      typed_.emplace(handle_.typed<void(Args...)>());
    }
  }

  void operator()(Args... args) const {
    const at::AutoDispatchBelowADInplaceOrView no_autograd;
    if (typed_) {
      typed_->call(args...);
      return;
    }
    const std::array<c10::IValue, kNumValues> values = {c10::IValue(args)...};
    torch::jit::Stack stack;
    stack.reserve(order_.size());
    for (const size_t index : order_) {
      stack.push_back(values[index]);
    }
    handle_.callBoxed(&stack);
  }

 private:
  static bool type_matches(const c10::Argument& argument, const ContractValue& value) {
    const auto& type = argument.type();
    if (type->kind() == c10::TypeKind::OptionalType) {
      return value.optional &&
             type->castRaw<c10::OptionalType>()->getElementType()->kind() == value.kind;
    }
    return !value.optional && type->kind() == value.kind;
  }

  void bind_arguments(const kernel::LoadedKernel& kernel, const kernel::LayerOp& op,
                      const std::array<ContractValue, kNumValues>& values) {
    const auto& schema = handle_.schema();
    std::vector<std::string> problems;
    for (const auto& argument : schema.arguments()) {
      const auto source = op.arguments.find(argument.name());
      if (source == op.arguments.end()) {
        problems.push_back(fmt::format("argument `{}` of the op is not bound", argument.name()));
        continue;
      }
      const auto value = std::find_if(values.begin(), values.end(),
                                      [&](const auto& v) { return v.name == source->second; });
      if (value == values.end()) {
        problems.push_back(
            fmt::format("argument `{}` is bound to `{}`, which the contract does not have",
                        argument.name(), source->second));
      } else if (!type_matches(argument, *value)) {
        problems.push_back(fmt::format("argument `{}` has type {}, the contract's `{}` another",
                                       argument.name(), argument.type()->str(), value->name));
      } else {
        order_.push_back(static_cast<size_t>(value - values.begin()));
      }
    }
    for (const auto& [name, source] : op.arguments) {
      if (!schema.argumentIndexWithName(name)) {
        problems.push_back(fmt::format("the op has no argument `{}`", name));
      }
    }
    if (!schema.returns().empty()) {
      problems.push_back(fmt::format("the op returns {} values, expected none (it writes to `out`)",
                                     schema.returns().size()));
    }
    if (!problems.empty()) {
      throw LoadError(
          "layers.adapter", "signature",
          fmt::format("`{}` op `{}`: expected a schema that fits layers.json, got `{}`: {}",
                      kernel.repository, op.op, c10::toString(schema), fmt::join(problems, "; ")));
    }
    canonical_ = order_.size() == kNumValues;
    for (size_t i = 0; canonical_ && i < kNumValues; ++i) {
      canonical_ = order_[i] == i;
    }
  }

  c10::OperatorHandle handle_;
  std::optional<c10::TypedOperatorHandle<void(Args...)>> typed_;
  std::vector<size_t> order_;  // per schema argument: index of the contract's value
  bool canonical_ = false;
};

const kernel::LayerOp& need_op(const kernel::LoadedKernel& kernel,
                               const kernel::PackageLayer& layer, const std::string& name) {
  const auto found = layer.ops.find(name);
  if (found == layer.ops.end()) {
    throw LoadError("layers.adapter", "signature",
                    fmt::format("`{}`: expected layers.json to name an op `{}`, got none",
                                kernel.repository, name));
  }
  return found->second;
}

// The number by which the package knows a numeric variant.
int64_t variant_number(const kernel::LoadedKernel& kernel, const kernel::PackageLayer& layer,
                       const std::string& variant) {
  const auto found = layer.variants.find(variant);
  if (found == layer.variants.end()) {
    std::vector<std::string> known;
    for (const auto& [name, number] : layer.variants) {
      known.push_back(name);
    }
    throw IncompatibleError(
        "layers.adapter", "numeric-variant",
        fmt::format("`{}`: expected numeric variant `{}`, got only {}", kernel.repository, variant,
                    known.empty() ? "none" : fmt::format("{}", fmt::join(known, ", "))));
  }
  return found->second;
}

// A package that lists numeric variants must list `default` to serve a contract with just one.
void check_contract(const kernel::LoadedKernel& kernel, const kernel::PackageLayer& layer,
                    std::string_view contract, bool one_variant) {
  if (layer.contract != contract) {
    throw IncompatibleError("layers.adapter", "contract",
                            fmt::format("`{}`: expected a layer of contract {}, got {}",
                                        kernel.repository, contract, layer.contract));
  }
  if (one_variant && !layer.variants.empty()) {
    variant_number(kernel, layer, "default");
  }
}

// Ops without a gradient of their own would cut the graph silently.
void refuse_gradients(const std::string& repository,
                      std::initializer_list<const at::Tensor*> inputs) {
  if (!at::GradMode::is_enabled()) {
    return;
  }
  for (const at::Tensor* input : inputs) {
    if (input->defined() && input->requires_grad()) {
      throw IncompatibleError(
          "layers.adapter", "no-backward",
          fmt::format("`{}`: expected inputs that need no gradient (the kernel has no backward), "
                      "got one that does",
                      repository),
          "call model->train() before training, or run under torch::NoGradGuard");
    }
  }
}

// Kernels take rows whose elements are contiguous; anything else is copied.
at::Tensor with_contiguous_rows(const at::Tensor& x) {
  return x.dim() == 0 || x.stride(-1) == 1 || x.size(-1) <= 1 ? x : x.contiguous();
}

class RmsNormAdapter final : public RmsNorm::Kernel {
 public:
  RmsNormAdapter(const RmsNorm::Spec& spec, const kernel::LoadedKernel& kernel,
                 const kernel::PackageLayer& layer)
      : repository_(kernel.repository),
        variant_(variant_number(kernel, layer, RmsNorm::variant_name(spec))),
        promotes_(spec.variant == RmsNormVariant::kCastBeforeWeight),
        forward_(kernel, need_op(kernel, layer, "forward"),
                 {{{"out", c10::TypeKind::TensorType},
                   {"x", c10::TypeKind::TensorType},
                   {"weight", c10::TypeKind::TensorType},
                   {"eps", c10::TypeKind::FloatType},
                   {"variant", c10::TypeKind::IntType}}}) {
    if (layer.ops.contains("add_forward")) {
      add_forward_.emplace(kernel, layer.ops.at("add_forward"),
                           std::array<ContractValue, 7>{{{"out", c10::TypeKind::TensorType},
                                                         {"sum", c10::TypeKind::TensorType},
                                                         {"x", c10::TypeKind::TensorType},
                                                         {"residual", c10::TypeKind::TensorType},
                                                         {"weight", c10::TypeKind::TensorType},
                                                         {"eps", c10::TypeKind::FloatType},
                                                         {"variant", c10::TypeKind::IntType}}});
    }
  }

  at::Tensor forward(const at::Tensor& x, const at::Tensor& weight, double eps) const override {
    refuse_gradients(repository_, {&x, &weight});
    at::Tensor out = make_out(x, weight);
    forward_(out, with_contiguous_rows(x), weight, eps, variant_);
    return out;
  }

  std::pair<at::Tensor, at::Tensor> add_forward(const at::Tensor& x, const at::Tensor& residual,
                                                const at::Tensor& weight,
                                                double eps) const override {
    if (!add_forward_) {
      return RmsNorm::Kernel::add_forward(x, residual, weight, eps);
    }
    refuse_gradients(repository_, {&x, &residual, &weight});
    at::Tensor out = make_out(x, weight);
    at::Tensor sum = at::empty(x.sizes(), x.options());
    (*add_forward_)(out, sum, with_contiguous_rows(x), with_contiguous_rows(residual), weight, eps,
                    variant_);
    return {out, sum};
  }

 private:
  at::Tensor make_out(const at::Tensor& x, const at::Tensor& weight) const {
    return at::empty(x.sizes(), promotes_ ? x.options().dtype(weight.scalar_type()) : x.options());
  }

  std::string repository_;
  int64_t variant_;
  bool promotes_;
  BoundOp<void(at::Tensor&, const at::Tensor&, const at::Tensor&, double, int64_t)> forward_;
  std::optional<BoundOp<void(at::Tensor&, at::Tensor&, const at::Tensor&, const at::Tensor&,
                             const at::Tensor&, double, int64_t)>>
      add_forward_;
};

class ActivationAdapter final : public Activation::Kernel {
 public:
  ActivationAdapter(const kernel::LoadedKernel& kernel, const kernel::PackageLayer& layer)
      : repository_(kernel.repository),
        forward_(kernel, need_op(kernel, layer, "forward"),
                 {{{"out", c10::TypeKind::TensorType}, {"x", c10::TypeKind::TensorType}}}) {}

  at::Tensor forward(const at::Tensor& x) const override {
    refuse_gradients(repository_, {&x});
    at::Tensor out = at::empty(x.sizes(), x.options());
    forward_(out, x.contiguous());
    return out;
  }

 private:
  std::string repository_;
  BoundOp<void(at::Tensor&, const at::Tensor&)> forward_;
};

class GatedActivationAdapter final : public GatedActivation::Kernel {
 public:
  GatedActivationAdapter(const kernel::LoadedKernel& kernel, const kernel::PackageLayer& layer)
      : repository_(kernel.repository),
        forward_(kernel, need_op(kernel, layer, "forward"),
                 {{{"out", c10::TypeKind::TensorType},
                   {"gate", c10::TypeKind::TensorType},
                   {"up", c10::TypeKind::TensorType}}}) {}

  at::Tensor forward(const at::Tensor& gate, const at::Tensor& up) const override {
    refuse_gradients(repository_, {&gate, &up});
    at::Tensor out = at::empty(gate.sizes(), gate.options());
    forward_(out, with_contiguous_rows(gate), with_contiguous_rows(up));
    return out;
  }

 private:
  std::string repository_;
  BoundOp<void(at::Tensor&, const at::Tensor&, const at::Tensor&)> forward_;
};

class LinearAdapter final : public Linear::Kernel {
 public:
  LinearAdapter(const kernel::LoadedKernel& kernel, const kernel::PackageLayer& layer)
      : repository_(kernel.repository),
        forward_(kernel, need_op(kernel, layer, "forward"),
                 {{{"out", c10::TypeKind::TensorType},
                   {"x", c10::TypeKind::TensorType},
                   {"weight", c10::TypeKind::TensorType},
                   {"bias", c10::TypeKind::TensorType, /*optional=*/true}}}) {}

  at::Tensor forward(const at::Tensor& x, const at::Tensor& weight,
                     const at::Tensor& bias) const override {
    refuse_gradients(repository_, {&x, &weight, &bias});
    c10::SmallVector<int64_t, 4> sizes(x.sizes().begin(), x.sizes().end());
    sizes.back() = weight.size(0);
    at::Tensor out = at::empty(sizes, x.options());
    forward_(out, with_contiguous_rows(x), weight,
             bias.defined() ? std::optional<at::Tensor>(bias) : std::nullopt);
    return out;
  }

 private:
  std::string repository_;
  BoundOp<void(at::Tensor&, const at::Tensor&, const at::Tensor&, const std::optional<at::Tensor>&)>
      forward_;
};

}  // namespace

std::shared_ptr<const RmsNorm::Kernel> bind(const RmsNorm::Spec& spec,
                                            const kernel::LoadedKernel& kernel,
                                            const kernel::PackageLayer& layer) {
  check_contract(kernel, layer, "RMSNorm", /*one_variant=*/false);
  return std::make_shared<RmsNormAdapter>(spec, kernel, layer);
}

std::shared_ptr<const Activation::Kernel> bind(const Activation::Spec&,
                                               const kernel::LoadedKernel& kernel,
                                               const kernel::PackageLayer& layer) {
  check_contract(kernel, layer, "Activation", /*one_variant=*/true);
  return std::make_shared<ActivationAdapter>(kernel, layer);
}

std::shared_ptr<const GatedActivation::Kernel> bind(const GatedActivation::Spec&,
                                                    const kernel::LoadedKernel& kernel,
                                                    const kernel::PackageLayer& layer) {
  check_contract(kernel, layer, "GatedActivation", /*one_variant=*/true);
  return std::make_shared<GatedActivationAdapter>(kernel, layer);
}

std::shared_ptr<const Linear::Kernel> bind(const Linear::Spec&, const kernel::LoadedKernel& kernel,
                                           const kernel::PackageLayer& layer) {
  check_contract(kernel, layer, "Linear", /*one_variant=*/true);
  return std::make_shared<LinearAdapter>(kernel, layer);
}

}  // namespace graft::layers
