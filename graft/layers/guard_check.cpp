#include "graft/layers/guard_check.h"

#include <algorithm>

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/core/grad_mode.h>
#include <c10/core/InferenceMode.h>
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <torch/csrc/autograd/autograd.h>

namespace graft::layers {

namespace {

constexpr double kAllowedRatio = 2.0;  // of the reference's own error
constexpr uint64_t kSeed = 20'261'123;

// A kernel that throws is refused with its words.
std::string run(const std::string& what, const std::function<std::string()>& check) {
  try {
    return check();
  } catch (const std::exception& error) {
    return fmt::format("{}: expected a result, got an error: {}", what,
                       std::string(error.what()).substr(0, 400));
  }
}

// Gradients of `inputs`; those of outputs are seeded, in each output's dtype.
std::vector<at::Tensor> gradients(const GuardFunction& function,
                                  const std::vector<at::Tensor>& inputs) {
  std::vector<at::Tensor> leaves;
  for (const at::Tensor& input : inputs) {
    leaves.push_back(input.detach().clone().requires_grad_());
  }
  const std::vector<at::Tensor> outputs = function(leaves);
  std::vector<at::Tensor> seeds;
  for (const at::Tensor& output : outputs) {
    // The same numbers for every dtype: rounded to bfloat16, which all of them hold.
    GuardInputs made(at::kBFloat16, output.device());
    seeds.push_back(made.normal(output.sizes()).to(output.scalar_type()));
  }
  return torch::autograd::grad(outputs, leaves, seeds);
}

// Where each element is NaN, infinite or finite as in the other tensor.
at::Tensor same_kind(const at::Tensor& x, const at::Tensor& other) {
  return x.isnan().eq(other.isnan()).logical_and(x.isinf().eq(other.isinf()));
}

}  // namespace

double rounding_unit(at::ScalarType dtype) {
  switch (dtype) {
    case at::kBFloat16:
      return 0x1p-8;
    case at::kHalf:
      return 0x1p-11;
    default:
      return 0x1p-24;
  }
}

GuardInputs::GuardInputs(at::ScalarType dtype, at::Device device)
    : dtype_(dtype), device_(device), generator_(at::detail::createCPUGenerator(kSeed)) {}

at::Tensor GuardInputs::normal(at::IntArrayRef sizes, double scale) {
  return at::randn(sizes, generator_, at::TensorOptions().dtype(at::kDouble))
      .mul_(scale)
      .to(dtype_)
      .to(device_);
}

at::Tensor to_exact(const at::Tensor& x) { return x.to(at::kCPU).to(at::kDouble); }

double largest(const at::Tensor& x) {
  if (x.numel() == 0) {
    return 0.0;
  }
  return at::nan_to_num(x.abs(), 0.0, 0.0, 0.0).max().item<double>();
}

std::string compare(const std::string& what, const at::Tensor& candidate,
                    const at::Tensor& reference, const at::Tensor& exact, double slack) {
  if (candidate.sizes() != reference.sizes() ||
      candidate.scalar_type() != reference.scalar_type()) {
    return fmt::format("{}: expected {} {}, got {} {}", what,
                       c10::toString(reference.scalar_type()), c10::str(reference.sizes()),
                       c10::toString(candidate.scalar_type()), c10::str(candidate.sizes()));
  }
  const at::Tensor ours = candidate.to(at::kCPU).to(at::kDouble),
                   theirs = reference.to(at::kCPU).to(at::kDouble);
  // Where the reference itself leaves float64 (libtorch's vectorized erf makes gelu(inf) NaN on some
  // processors), either will do.
  const at::Tensor wrong = same_kind(ours, theirs).logical_or(same_kind(ours, exact)).logical_not();
  if (wrong.any().item<bool>()) {
    const bool is_nan = ours.isnan().ne(theirs.isnan()).logical_and(wrong).any().item<bool>();
    return is_nan
               ? fmt::format("{}: expected NaN exactly where the reference has it", what)
               : fmt::format("{}: expected infinities exactly where the reference has them", what);
  }
  // Infinities are compared as such; their difference is no number.
  const at::Tensor finite = exact.isfinite();
  const at::Tensor zero = at::zeros({}, at::kDouble);
  const double error = largest(at::where(finite.logical_and(ours.isfinite()), ours - exact, zero)),
               own =
                   largest(at::where(finite.logical_and(theirs.isfinite()), theirs - exact, zero));
  const double floor =
      0.5 * rounding_unit(reference.scalar_type()) * largest(at::where(finite, exact, zero)) +
      slack;
  if (error > kAllowedRatio * own + floor) {
    return fmt::format(
        "{}: expected an error of at most twice the reference's {:.3g} against float64, got {:.3g}",
        what, own, error);
  }
  return "";
}

std::string attempt(const std::string& what, const std::function<std::string()>& check) {
  const c10::InferenceMode inference;
  return run(what, check);
}

std::string compare_gradients(const std::string& what, const std::vector<at::Tensor>& inputs,
                              const GuardFunction& candidate, const GuardFunction& reference,
                              const GuardFunction& exact, double slack) {
  const c10::InferenceMode no_inference(false);
  const at::AutoGradMode records(true);
  return run(what, [&] {
    std::vector<at::Tensor> wide;
    for (const at::Tensor& input : inputs) {
      wide.push_back(to_exact(input));
    }
    const auto ours = gradients(candidate, inputs), theirs = gradients(reference, inputs),
               right = gradients(exact, wide);
    for (size_t i = 0; i < inputs.size(); ++i) {
      if (std::string reason = compare(fmt::format("{}, input {}", what, i), ours[i], theirs[i],
                                       right[i], slack * std::max(1.0, largest(right[i])));
          !reason.empty()) {
        return reason;
      }
    }
    return std::string();
  });
}

std::string first_refusal(std::initializer_list<std::function<std::string()>> checks) {
  for (const auto& check : checks) {
    if (auto reason = check(); !reason.empty()) {
      return reason;
    }
  }
  return "";
}

}  // namespace graft::layers
