// An op of a loaded package, bound to the values that a contract offers. What the adapters of the
// contracts share. Internal to the room.
#pragma once

#include <array>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/stack.h>

#include "graft/kernel/loader.h"

namespace graft::layers {

// A value that a contract offers to ops, and its type in a schema.
struct ContractValue {
  std::string_view name;
  c10::TypeKind kind = c10::TypeKind::TensorType;
  bool optional = false;  // the schema may say `Tensor?`
};

// Per argument of the op's schema: the index of the value that layers.json binds to it.
//
// Throws   LoadError `layers.adapter.signature` listing every mismatch between layers.json and the
// schema.
std::vector<size_t> bind_arguments(const c10::FunctionSchema& schema,
                                   const kernel::LoadedKernel& kernel, const kernel::LayerOp& op,
                                   std::span<const ContractValue> values, size_t num_results);

template <typename Result>
inline constexpr size_t kNumResults = 1;
template <>
inline constexpr size_t kNumResults<void> = 0;
template <typename... Results>
inline constexpr size_t kNumResults<std::tuple<Results...>> = sizeof...(Results);

// Args is the canonical signature, with the values in the contract's order: an op that has it is
// called unboxed, another order boxed. Result is void where the op writes to `out`, a tuple where it has
// several.
template <typename>
class BoundOp;

template <typename Result, typename... Args>
class BoundOp<Result(Args...)> {
 public:
  using Values = std::array<ContractValue, sizeof...(Args)>;

  BoundOp(const kernel::LoadedKernel& kernel, const kernel::LayerOp& op, const Values& values)
      : handle_(kernel.op(op.op)),
        order_(bind_arguments(handle_.schema(), kernel, op, values, kNumResults<Result>)) {
    bool canonical = order_.size() == values.size();
    for (size_t i = 0; canonical && i < order_.size(); ++i) {
      canonical = order_[i] == i;
    }
    if (canonical) {
      typed_.emplace(handle_.template typed<Result(Args...)>());
    }
  }

  Result operator()(Args... args) const {
    const at::AutoDispatchBelowADInplaceOrView no_autograd;
    if (typed_) {
      return typed_->call(args...);
    }
    const std::array<c10::IValue, sizeof...(Args)> values = {c10::IValue(args)...};
    torch::jit::Stack stack;
    stack.reserve(order_.size());
    for (const size_t index : order_) {
      stack.push_back(values[index]);
    }
    handle_.callBoxed(&stack);
    return take<Result>(stack, std::make_index_sequence<kNumResults<Result>>());
  }

  const c10::OperatorHandle& handle() const { return handle_; }

 private:
  template <typename Taken, size_t... kPlaces>
  static Taken take(torch::jit::Stack& stack, std::index_sequence<kPlaces...>) {
    if constexpr (kNumResults<Taken> == 1) {
      return std::move(stack.back()).template to<Taken>();
    } else if constexpr (kNumResults<Taken> != 0) {
      return {std::move(stack[kPlaces]).template to<std::tuple_element_t<kPlaces, Taken>>()...};
    }
  }

  c10::OperatorHandle handle_;
  std::vector<size_t> order_;
  std::optional<c10::TypedOperatorHandle<Result(Args...)>> typed_;
};

// The op that a layer names for `role`. Throws   LoadError `layers.adapter.signature` where it does
// not.
const kernel::LayerOp& need_op(const kernel::LoadedKernel& kernel,
                               const kernel::PackageLayer& layer, const std::string& role);

// The op of a role that a layer may leave out.
template <typename Op>
std::optional<Op> optional_op(const kernel::LoadedKernel& kernel, const kernel::PackageLayer& layer,
                              const std::string& role, const typename Op::Values& values) {
  const auto found = layer.ops.find(role);
  return found == layer.ops.end() ? std::nullopt
                                  : std::optional<Op>({kernel, found->second, values});
}

// The op of role `backward`. Throws   LoadError `layers.adapter.signature` where the layer says that it
// has a backward and names none.
template <typename Op>
std::optional<Op> backward_op(const kernel::LoadedKernel& kernel, const kernel::PackageLayer& layer,
                              const typename Op::Values& values) {
  if (layer.has_backward) {
    need_op(kernel, layer, "backward");
  }
  return optional_op<Op>(kernel, layer, "backward", values);
}

// The number by which the package knows a numeric variant.
// Throws   IncompatibleError `layers.adapter.numeric-variant`.
int64_t variant_number(const kernel::LoadedKernel& kernel, const kernel::PackageLayer& layer,
                       const std::string& variant);

// Throws   IncompatibleError `layers.adapter.contract` where the layer is of another contract.
void check_contract(const kernel::LoadedKernel& kernel, const kernel::PackageLayer& layer,
                    std::string_view contract);

// Whether a call on these inputs has to be recorded for autograd.
// Throws   IncompatibleError `layers.adapter.no-backward` where it would have to be and cannot: an op
// without a gradient of its own would cut the graph silently.
bool must_record(const std::string& repository, bool has_backward,
                 std::initializer_list<const at::Tensor*> inputs);

// Kernels take rows whose elements are contiguous; anything else is copied.
at::Tensor with_contiguous_rows(const at::Tensor& x);

}  // namespace graft::layers
