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

bool is_e5m2(at::ScalarType eight_bits) { return eight_bits == at::kFloat8_e5m2; }
double largest_of(at::ScalarType eight_bits) { return is_e5m2(eight_bits) ? 57344.0 : 448.0; }

}  // namespace

at::Tensor wide_numbers(const at::Tensor& eight_bits) {
  return eight_bits.to(at::kCPU).to(at::kFloat).to(at::kDouble);
}

at::Tensor round_to(const at::Tensor& numbers, at::ScalarType eight_bits) {
  const double largest = largest_of(eight_bits);
  return numbers.to(at::kFloat).clamp(-largest, largest).to(eight_bits);
}

Answer nearest(const at::Tensor& eight_bits, const at::Tensor& exact) {
  const at::ScalarType type = eight_bits.scalar_type();
  const bool is_wide = is_e5m2(type);
  const at::Tensor right = wide_numbers(round_to(exact, type)),
                   reachable = exact.clamp(-largest_of(type), largest_of(type));
  // Half a step of three bits (or two), or of the smallest numbers: a tie may fall either way.
  const at::Tensor half_step =
      reachable.abs() * (is_wide ? 0x1p-3 : 0x1p-4) + (is_wide ? 0x1p-17 : 0x1p-10);
  const at::Tensor excess =
      ((wide_numbers(eight_bits) - reachable).abs() - (right - reachable).abs()) / half_step;
  const at::Tensor beyond_ties = at::where(excess.isnan(), excess, (excess - 1e-3).clamp_min(0.0));
  return {beyond_ties, at::zeros_like(excess), at::zeros_like(excess)};
}

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

OpChecks::Refusal OpChecks::comparing(const std::function<Answers()>& answers) {
  return [&answers](const std::string& what, at::ScalarType dtype) {
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
  };
}

void OpChecks::check(const std::string& op, const std::string& form, Dtypes dtypes,
                     const std::function<Answers()>& answers) {
  run(op, form, dtypes, /*is_optional=*/false, comparing(answers));
}

void OpChecks::check_optional(const std::string& op, const std::string& form, Dtypes dtypes,
                              const std::function<Answers()>& answers) {
  run(op, form, dtypes, /*is_optional=*/true, comparing(answers));
}

void OpChecks::check_gradients(const std::string& op, const std::string& form, Dtypes dtypes,
                               const std::function<Differentiable()>& make) {
  run(op, form, dtypes, /*is_optional=*/false, [&](const std::string& what, at::ScalarType dtype) {
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

void OpChecks::run(const std::string& op, const std::string& form, Dtypes dtypes, bool is_optional,
                   const Refusal& refusal) {
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
      is_refused = is_optional && !is_out_of_memory(error.what());
      reason = fmt::format("{}: expected a result, got an error: {}", what,
                           std::string(error.what()).substr(0, 400));
    }
    if (is_refused) {
      if (is_optional) {
        verdict_.unchecked.push_back(fmt::format("{} in {}", what, name));
      }
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
