#include "graft/canary/op_checks.h"

#include <algorithm>

#include <c10/core/InferenceMode.h>
#include <fmt/format.h>

#include "graft/canary/report.h"
#include "graft/core/error.h"
#include "graft/tensor/device.h"

namespace graft::canary {

namespace {

// Of the largest value: sums of a few dozen products in float32, in any order, and functions as GPUs approximate
// them; in fewer bits, values that are rounded on the way.
double slack_of(at::ScalarType dtype) {
  return dtype == at::kHalf || dtype == at::kBFloat16 ? 4e-3 : 1e-5;
}

// As the reference of a check of gradients: the formula itself, its results rounded to the dtype.
layers::GuardFunction rounded(const layers::GuardFunction& exact, at::ScalarType dtype,
                              at::Device device) {
  return [exact, dtype, device](const std::vector<at::Tensor>& inputs) {
    std::vector<at::Tensor> wide, results;
    for (const at::Tensor& input : inputs) {
      wide.push_back(layers::to_exact(input));
    }
    for (const at::Tensor& result : exact(wide)) {
      results.push_back(result.to(device).to(dtype));
    }
    return results;
  };
}

}  // namespace

bool is_out_of_memory(const std::string& refusal) {
  return refusal.find("can't allocate memory") != std::string::npos ||
         refusal.find("bad_alloc") != std::string::npos;
}

OpChecks::OpChecks(const kernel::LoadedKernel& kernel, at::Device device,
                   kernel::CanaryVerdict& verdict)
    : kernel_(kernel), device_(device), verdict_(verdict) {
  for (const std::string& name : kernel.op_names()) {
    ops_.insert(name);
  }
}

std::vector<std::string> OpChecks::not_run() const {
  std::vector<std::string> names;
  std::set_difference(ops_.begin(), ops_.end(), run_.begin(), run_.end(),
                      std::back_inserter(names));
  return names;
}

void OpChecks::run_group(const std::function<void()>& group) {
  try {
    group();
  } catch (const Error&) {
    return;
  }
}

at::Tensor OpChecks::normal(at::IntArrayRef sizes, double scale) {
  return inputs_->normal(sizes, scale);
}

void OpChecks::check(const std::string& op, const std::string& form, Dtypes dtypes,
                     const std::function<Answers()>& answers) {
  run(op, form, dtypes, [&](const std::string& what, at::ScalarType dtype) {
    const c10::InferenceMode inference;
    for (const auto& [got, exact, reference] : answers()) {
      std::string refusal = layers::compare(
          what, got, reference.defined() ? reference : exact.to(dtype), exact,
          got.is_floating_point() ? slack_of(dtype) * std::max(1.0, layers::largest(exact)) : 0.0);
      if (!refusal.empty()) {
        return refusal;
      }
    }
    return std::string();
  });
}

void OpChecks::check_gradients(const std::string& op, const std::string& form, Dtypes dtypes,
                               const std::function<Differentiable()>& make) {
  run(op, form, dtypes, [&](const std::string& what, at::ScalarType dtype) {
    const auto [inputs, call, exact] = make();
    std::string refusal;
    // compare_gradients() catches what a kernel throws: the adapter's own word has to pass.
    std::exception_ptr adapter;
    const auto guarded = [&](const std::vector<at::Tensor>& leaves) {
      try {
        return call(leaves);
      } catch (const Error&) {
        adapter = std::current_exception();
        throw;
      }
    };
    refusal = layers::compare_gradients(what, inputs, guarded, rounded(exact, dtype, device_),
                                        exact, slack_of(dtype));
    if (adapter) {
      std::rethrow_exception(adapter);
    }
    return refusal;
  });
}

void OpChecks::run(
    const std::string& op, const std::string& form, Dtypes dtypes,
    const std::function<std::string(const std::string& what, at::ScalarType dtype)>& refusal) {
  if (!has(op)) {
    return;
  }
  for (const auto dtype : dtypes) {
    const std::string name = tensor::dtype_name(dtype);
    const std::string what = form.empty() ? op : fmt::format("{}, {}", op, form);
    report("step", fmt::format("running {} in {}", what, name));
    inputs_.emplace(dtype, device_);
    bool is_refused = false;
    std::string reason;
    try {
      reason = refusal(what, dtype);
    } catch (const Error& error) {
      is_refused = error.code().starts_with("layers.published.") ||
                   error.code() == "layers.adapter.no-backward" ||
                   error.code() == "kernel.loader.missing-op";
      reason = error.what();
    } catch (const std::exception& error) {
      reason = fmt::format("{}: expected a result, got an error: {}", what,
                           std::string(error.what()).substr(0, 400));
    }
    if (is_refused) {
      continue;
    }
    if (is_out_of_memory(reason)) {
      report_and_end("out_of_memory", reason);
    }
    run_.insert(op);
    ++verdict_.num_checks;
    if (!reason.empty()) {
      verdict_.wrong.push_back({op, form.empty() ? "default" : form, name, reason});
    }
  }
}

}  // namespace graft::canary
