#include "graft/layers/bound_op.h"

#include <algorithm>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "graft/core/error.h"
#include "graft/layers/gradient.h"

namespace graft::layers {

namespace {

bool type_matches(const c10::Argument& argument, const ContractValue& value) {
  const auto& type = argument.type();
  if (type->kind() == c10::TypeKind::OptionalType) {
    return value.optional &&
           type->castRaw<c10::OptionalType>()->getElementType()->kind() == value.kind;
  }
  return !value.optional && type->kind() == value.kind;
}

}  // namespace

std::vector<size_t> bind_arguments(const c10::FunctionSchema& schema,
                                   const kernel::LoadedKernel& kernel, const kernel::LayerOp& op,
                                   std::span<const ContractValue> values, size_t num_results) {
  std::vector<size_t> order;
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
      order.push_back(static_cast<size_t>(value - values.begin()));
    }
  }
  for (const auto& [name, source] : op.arguments) {
    if (!schema.argumentIndexWithName(name)) {
      problems.push_back(fmt::format("the op has no argument `{}`", name));
    }
  }
  if (schema.returns().size() != num_results) {
    problems.push_back(fmt::format("the op returns {} values, expected {}", schema.returns().size(),
                                   num_results == 0 ? "none (it writes to `out`)" : "one"));
  }
  if (!problems.empty()) {
    throw LoadError(
        "layers.adapter", "signature",
        fmt::format("`{}` op `{}`: expected a schema that fits layers.json, got `{}`: {}",
                    kernel.repository, op.op, c10::toString(schema), fmt::join(problems, "; ")));
  }
  return order;
}

const kernel::LayerOp& need_op(const kernel::LoadedKernel& kernel,
                               const kernel::PackageLayer& layer, const std::string& role) {
  const auto found = layer.ops.find(role);
  if (found == layer.ops.end()) {
    throw LoadError("layers.adapter", "signature",
                    fmt::format("`{}`: expected layers.json to name an op `{}`, got none",
                                kernel.repository, role));
  }
  return found->second;
}

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

void check_contract(const kernel::LoadedKernel& kernel, const kernel::PackageLayer& layer,
                    std::string_view contract) {
  if (layer.contract != contract) {
    throw IncompatibleError("layers.adapter", "contract",
                            fmt::format("`{}`: expected a layer of contract {}, got {}",
                                        kernel.repository, contract, layer.contract));
  }
}

bool must_record(const std::string& repository, bool has_backward,
                 std::initializer_list<const at::Tensor*> inputs) {
  const bool needed = needs_gradient(inputs);
  if (needed && !has_backward) {
    throw IncompatibleError(
        "layers.adapter", "no-backward",
        fmt::format("`{}`: expected inputs that need no gradient (the kernel has no backward), "
                    "got one that does",
                    repository),
        "call model->train() before training, or run under torch::NoGradGuard");
  }
  return needed;
}

at::Tensor with_contiguous_rows(const at::Tensor& x) {
  return x.dim() == 0 || x.stride(-1) == 1 || x.size(-1) <= 1 ? x : x.contiguous();
}

}  // namespace graft::layers
