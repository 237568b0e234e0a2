// An op of a kernel that others publish, held against the schema that they document. What the
// adapters of this folder share.
#pragma once

#include <initializer_list>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <ATen/ATen.h>
#include <ATen/core/dispatch/Dispatcher.h>

#include "graft/kernel/loader.h"

namespace graft::layers::published {

using Tensors = std::vector<at::Tensor>;

// What lies between two schemas, in words; empty where they agree. Names of arguments, their types,
// defaults and marks of writing count, and the types of the results.
std::vector<std::string> schema_differences(const c10::FunctionSchema& expected,
                                            const c10::FunctionSchema& actual);

class PublishedOp {
 public:
  // schemas  the published text without a namespace, `silu(Tensor! out, Tensor input) -> ()`; more
  //          than one where builds of one kernel differ
  // Throws   LoadError `kernel.loader.missing-op`; LoadError `layers.published.schema` naming every
  //          difference from the nearest of the texts; IncompatibleError `kernel.canary.wrong-answer` where the op
  //          computed something else than the formula in the canary.
  PublishedOp(const kernel::LoadedKernel& kernel, std::initializer_list<std::string_view> schemas);

  // Calls below autograd, on the device of the first tensor, with every argument in the schema's
  // order. Returns the tensors of the result, whether published as a tuple or a list; one that the
  // op leaves out is undefined.
  template <typename... Args>
  Tensors operator()(Args&&... args) const {
    return call({c10::IValue(std::forward<Args>(args))...});
  }
  // The same for an op that returns a number.
  template <typename... Args>
  int64_t number(Args&&... args) const {
    return run({c10::IValue(std::forward<Args>(args))...}).at(0).toInt();
  }

  // Whether there is an implementation for the device, not the schema alone.
  bool serves(at::DeviceType device) const;
  const std::string& repository() const { return repository_; }
  // Arguments of the schema that is registered.
  size_t arity() const { return handle_.schema().arguments().size(); }

  // Throws   IncompatibleError `layers.published.unsupported`: `<repository> <op>: <what>: expected
  //          <expected>, got <got>` unless `holds`.
  template <typename Got>
  void need(bool holds, std::string_view what, std::string_view expected, const Got& got) const {
    if (!holds) {
      refuse(what, expected, describe(got));
    }
  }

 private:
  Tensors call(std::vector<c10::IValue> arguments) const;
  std::vector<c10::IValue> run(std::vector<c10::IValue> arguments) const;
  [[noreturn]] void refuse(std::string_view what, std::string_view expected,
                           const std::string& got) const;
  static std::string describe(const at::Tensor& tensor);
  static std::string describe(const std::string& text) { return text; }
  static std::string describe(int64_t number) { return std::to_string(number); }
  static std::string describe(double number);

  std::string repository_;
  std::string name_;
  c10::OperatorHandle handle_;
};

// An op that a build may leave out, e.g. on another backend.
std::optional<PublishedOp> optional_op(const kernel::LoadedKernel& kernel, const std::string& name,
                                       std::initializer_list<std::string_view> schemas);

// An undefined tensor as the absent value of a `Tensor?`.
inline std::optional<at::Tensor> maybe(const at::Tensor& tensor) {
  return tensor.defined() ? std::optional<at::Tensor>(tensor) : std::nullopt;
}

// Throws   IncompatibleError `layers.published.missing-op` where `op` is not there: `<repository>:
//          expected op <name>, got a build without it`.
const PublishedOp& need_op(const std::optional<PublishedOp>& op, const std::string& repository,
                           std::string_view name);

}  // namespace graft::layers::published
