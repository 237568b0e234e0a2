#include "graft/layers/published/published_op.h"

#include <algorithm>

#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/stack.h>
#include <c10/core/DeviceGuard.h>
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <torch/csrc/jit/frontend/function_schema_parser.h>

#include "graft/core/error.h"

namespace graft::layers::published {

namespace {

bool is_written(const c10::Argument& argument) {
  return argument.alias_info() != nullptr && argument.alias_info()->isWrite();
}

std::string default_text(const c10::Argument& argument) {
  return argument.default_value()
             ? fmt::format("the default {}", c10::str(*argument.default_value()))
             : std::string("no default");
}

std::string result_text(const c10::FunctionSchema& schema) {
  std::vector<std::string> types;
  for (const auto& result : schema.returns()) {
    types.push_back(result.type()->str());
  }
  return types.size() == 1 ? types[0] : fmt::format("({})", fmt::join(types, ", "));
}

void compare_argument(size_t place, const c10::Argument& expected, const c10::Argument& actual,
                      std::vector<std::string>& differences) {
  const auto add = [&](const std::string& wanted, const std::string& got) {
    differences.push_back(
        fmt::format("argument {} `{}`: expected {}, got {}", place, expected.name(), wanted, got));
  };
  if (expected.name() != actual.name()) {
    add("that name", fmt::format("`{}`", actual.name()));
  }
  if (*expected.type() != *actual.type()) {
    add(expected.type()->str(), actual.type()->str());
  }
  if (default_text(expected) != default_text(actual)) {
    add(default_text(expected), default_text(actual));
  }
  if (is_written(expected) != is_written(actual)) {
    const auto mark = [](bool written) { return written ? "a mark of writing" : "none"; };
    add(mark(is_written(expected)), mark(is_written(actual)));
  }
}

c10::FunctionSchema parse(const std::string& id, std::string_view text) {
  return torch::jit::parseSchema(fmt::format("{}::{}", id, text));
}

std::string op_name(std::string_view schema) {
  return std::string(schema.substr(0, schema.find('(')));
}

// A tuple comes as its elements, a list as one value.
void append_tensors(const c10::IValue& value, Tensors& out) {
  if (value.isTensor()) {
    out.push_back(value.toTensor());
  } else if (value.isTensorList()) {
    for (const at::Tensor& tensor : value.toTensorVector()) {
      out.push_back(tensor);
    }
  } else {
    out.emplace_back();  // a `Tensor?` that is absent
  }
}

}  // namespace

std::vector<std::string> schema_differences(const c10::FunctionSchema& expected,
                                            const c10::FunctionSchema& actual) {
  std::vector<std::string> differences;
  const auto& wanted = expected.arguments();
  const auto& got = actual.arguments();
  for (size_t i = 0; i < std::min(wanted.size(), got.size()); ++i) {
    compare_argument(i, wanted[i], got[i], differences);
  }
  for (size_t i = got.size(); i < wanted.size(); ++i) {
    differences.push_back(fmt::format("argument {} `{}` is missing", i, wanted[i].name()));
  }
  for (size_t i = wanted.size(); i < got.size(); ++i) {
    differences.push_back(fmt::format("argument {} `{}` is not expected", i, got[i].name()));
  }
  if (result_text(expected) != result_text(actual)) {
    differences.push_back(
        fmt::format("result: expected {}, got {}", result_text(expected), result_text(actual)));
  }
  return differences;
}

PublishedOp::PublishedOp(const kernel::LoadedKernel& kernel,
                         std::initializer_list<std::string_view> schemas)
    : repository_(kernel.repository), name_(op_name(*schemas.begin())), handle_(kernel.op(name_)) {
  for (const auto& wrong : kernel.wrong_answers) {
    if (wrong.layer == name_) {
      throw IncompatibleError(
          "kernel.canary", "wrong-answer",
          fmt::format("`{}` op `{}` in {}: {}", repository_, name_, wrong.dtype, wrong.reason));
    }
  }
  std::optional<std::vector<std::string>> nearest;
  for (const std::string_view text : schemas) {
    auto differences = schema_differences(parse(kernel.metadata.id, text), handle_.schema());
    if (differences.empty()) {
      return;
    }
    if (!nearest || differences.size() < nearest->size()) {
      nearest = std::move(differences);
    }
  }
  throw LoadError(
      "layers.published", "schema",
      fmt::format("`{}` op `{}`: expected the published schema, got `{}`: {}", repository_, name_,
                  c10::toString(handle_.schema()), fmt::join(*nearest, "; ")),
      "another version of the kernel; lock the version that this graft knows");
}

Tensors PublishedOp::call(std::vector<c10::IValue> arguments) const {
  Tensors out;
  for (const c10::IValue& value : run(std::move(arguments))) {
    append_tensors(value, out);
  }
  return out;
}

std::vector<c10::IValue> PublishedOp::run(std::vector<c10::IValue> arguments) const {
  const at::AutoDispatchBelowADInplaceOrView no_autograd;
  const auto first = std::find_if(arguments.begin(), arguments.end(), [](const c10::IValue& value) {
    return value.isTensor() && value.toTensor().defined();
  });
  const c10::OptionalDeviceGuard device(
      first == arguments.end() ? std::nullopt : std::optional(first->toTensor().device()));
  torch::jit::Stack stack = std::move(arguments);
  handle_.callBoxed(&stack);
  return stack;
}

bool PublishedOp::serves(at::DeviceType device) const {
  return handle_.hasComputedKernelForDispatchKey(
      c10::computeDispatchKey(at::kFloat, at::kStrided, device));
}

void PublishedOp::refuse(std::string_view what, std::string_view expected,
                         const std::string& got) const {
  throw IncompatibleError(
      "layers.published", "unsupported",
      fmt::format("`{}` {}: {}: expected {}, got {}", repository_, name_, what, expected, got));
}

std::string PublishedOp::describe(const at::Tensor& tensor) {
  return tensor.defined() ? fmt::format("{} {} on {}", c10::toString(tensor.scalar_type()),
                                        tensor.sizes(), tensor.device().str())
                          : std::string("none");
}

std::string PublishedOp::describe(double number) { return fmt::format("{}", number); }

std::optional<PublishedOp> optional_op(const kernel::LoadedKernel& kernel, const std::string& name,
                                       std::initializer_list<std::string_view> schemas) {
  const auto names = kernel.op_names();
  return std::find(names.begin(), names.end(), name) == names.end()
             ? std::nullopt
             : std::optional<PublishedOp>(std::in_place, kernel, schemas);
}

const PublishedOp& need_op(const std::optional<PublishedOp>& op, const std::string& repository,
                           std::string_view name) {
  if (!op) {
    throw IncompatibleError(
        "layers.published", "missing-op",
        fmt::format("`{}`: expected op `{}`, got a build without it", repository, name));
  }
  return *op;
}

}  // namespace graft::layers::published
