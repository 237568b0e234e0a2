// What the ops of a copy of a test package do wrong: the canary's tests write it into the copy's library
// (graft/canary/misdeed_test.cpp). As built, the ops are right.
#pragma once

#include <algorithm>
#include <atomic>
#include <string>
#include <string_view>
#include <vector>

#include "classic_tensor.h"

namespace misdeed {

// `graft-misdeed:<wrong|crash|hang>[-8]:<op>,<op>`, and room for it. With -8 a call alone that has tensors of 8 bits.
inline volatile char text[512] = "graft-misdeed:none:";

inline std::vector<std::string> words(char separator, const std::string& line) {
  std::vector<std::string> parts;
  for (size_t start = 0; start <= line.size();) {
    const size_t end = std::min(line.find(separator, start), line.size());
    parts.push_back(line.substr(start, end - start));
    start = end + 1;
  }
  return parts;
}

// Marker, deed, ops.
inline std::vector<std::string> parts() {
  std::string line;
  for (const volatile char* c = text; *c != 0; ++c) {
    line.push_back(*c);
  }
  return words(':', line);
}

inline void append(const c10::IValue& value, std::vector<at::Tensor>& tensors) {
  if (value.isTensor() && value.toTensor().defined()) {
    tensors.push_back(value.toTensor());
  } else if (value.isTensorList()) {
    for (const at::Tensor& tensor : value.toTensorVector()) {
      tensors.push_back(tensor);
    }
  }
}

// A twentieth off, and a little more.
inline void spoil(at::Tensor tensor) {
  if (tensor.is_floating_point()) {
    tensor.copy_(tensor.to(at::kDouble) * 1.05 + 0.05);
  } else {
    tensor.add_(1);
  }
}

inline volatile int* volatile nowhere = nullptr;

// Spoils what the op returns and what it has written, whether its schema says so or not.
inline void run(const c10::OperatorHandle& op, c10::DispatchKeySet keys, torch::jit::Stack* stack) {
  std::string deed = parts()[1];
  std::vector<at::Tensor> arguments, before, results;
  for (const c10::IValue& value : *stack) {
    append(value, arguments);
  }
  if (deed.ends_with("-8")) {
    const bool has_eight = std::any_of(arguments.begin(), arguments.end(),
                                       [](const at::Tensor& x) { return x.element_size() == 1; });
    deed = has_eight ? deed.substr(0, deed.size() - 2) : "none";
  }
  if (deed == "crash") {
    *nowhere = 1;
  }
  std::atomic<uint64_t> count{0};
  while (deed == "hang") {
    ++count;
  }
  for (const at::Tensor& tensor : arguments) {
    before.push_back(tensor.clone());
  }
  op.redispatchBoxed(
      keys & c10::DispatchKeySet(c10::DispatchKeySet::FULL_AFTER, c10::DispatchKey::BackendSelect),
      stack);
  if (deed == "none") {
    return;
  }
  for (const c10::IValue& value : *stack) {
    append(value, results);
  }
  for (size_t i = 0; i < arguments.size(); ++i) {
    const bool is_returned =
        std::any_of(results.begin(), results.end(),
                    [&](const at::Tensor& result) { return result.is_same(arguments[i]); });
    if (!is_returned && !arguments[i].equal(before[i])) {
      spoil(arguments[i]);
    }
  }
  for (const at::Tensor& tensor : results) {
    spoil(tensor);
  }
}

inline void implement(torch::Library& ops) {
  const auto all = parts();
  if (all[1] == "none") {
    return;
  }
  for (const std::string& op : words(',', all[2])) {
    ops.impl(op.c_str(), torch::CppFunction::makeFromBoxedFunction<&run>());
  }
}

}  // namespace misdeed

// Before every implementation.
CLASSIC_OPS_IMPL(BackendSelect, ops) { misdeed::implement(ops); }
