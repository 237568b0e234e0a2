// Ops of a package, each run on small seeded inputs and held against plain ATen in float64: what the
// checks of the families (expert_checks.cpp, …) share. Internal to the helper.
#pragma once

#include <functional>
#include <initializer_list>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include <ATen/ATen.h>

#include "graft/kernel/canary_verdict.h"
#include "graft/kernel/loader.h"
#include "graft/layers/guard_check.h"

namespace graft::canary {

// What an op computed and what it should have.
struct Answer {
  at::Tensor got;
  at::Tensor exact;  // float64 on the CPU
  at::Tensor
      reference;  // in the dtype that is expected; undefined: `exact`, rounded to the dtype under check
};
using Answers = std::vector<Answer>;

// A differentiable call and the tensors that it is differentiated in.
struct Differentiable {
  std::vector<at::Tensor> inputs;
  layers::GuardFunction call;
  layers::GuardFunction exact;  // of the inputs in float64 on the CPU
};

class OpChecks {
 public:
  using Dtypes = std::initializer_list<at::ScalarType>;

  OpChecks(const kernel::LoadedKernel& kernel, at::Device device, kernel::CanaryVerdict& verdict);

  const kernel::LoadedKernel& kernel() const { return kernel_; }
  at::Device device() const { return device_; }
  bool has(const std::string& op) const { return ops_.contains(op); }
  // Ops that no check has run, in the order of their names.
  std::vector<std::string> not_run() const;

  // Runs the checks of one family; those of ops that are not there, or have other schemas than graft knows, end it:
  // nobody here calls them.
  static void run_group(const std::function<void()>& group);

  // Seeded inputs of the check that runs, in the dtype under check or in float32.
  at::Tensor normal(at::IntArrayRef sizes, double scale = 1.0);
  at::Tensor wide(at::IntArrayRef sizes, double scale = 1.0) {
    return normal(sizes, scale).to(at::kFloat);
  }
  at::Tensor integers(const std::vector<int64_t>& values, at::ScalarType dtype = at::kInt) const {
    return at::tensor(values, at::kLong).to(dtype).to(device_);
  }

  // One check of `op` for each dtype: `form` names what is special about it. Its result is refused where the guards
  // of layers would refuse it; what the adapter refuses by name is no fault of the package and stays unchecked.
  void check(const std::string& op, const std::string& form, Dtypes dtypes,
             const std::function<Answers()>& answers);
  // A form that a build may leave out: where the op itself throws it is not run, and the verdict names it.
  void check_optional(const std::string& op, const std::string& form, Dtypes dtypes,
                      const std::function<Answers()>& answers);
  // The gradients of every input, that `op` computes.
  void check_gradients(const std::string& op, const std::string& form, Dtypes dtypes,
                       const std::function<Differentiable()>& make);

 private:
  using Refusal = std::function<std::string(const std::string& what, at::ScalarType dtype)>;

  // Holds what `answers` gives, which outlives the result, against what is right.
  static Refusal comparing(const std::function<Answers()>& answers);
  void run(const std::string& op, const std::string& form, Dtypes dtypes, bool is_optional,
           const Refusal& refusal);

  const kernel::LoadedKernel& kernel_;
  at::Device device_;
  kernel::CanaryVerdict& verdict_;
  std::set<std::string> ops_;
  std::set<std::string> run_;
  std::optional<layers::GuardInputs> inputs_;  // of one check
};

// The answer of an op that moves or counts: equal or not.
inline Answer same(const at::Tensor& got, const at::Tensor& expected) {
  const at::Tensor here = expected.to(at::kCPU);
  return {got, here.to(at::kDouble), here};
}

// Values of 8 bits, float8_e4m3fn or float8_e5m2, in float64 on the CPU.
at::Tensor wide_numbers(const at::Tensor& eight_bits);
// The nearest of such values; what is beyond the largest becomes the largest.
at::Tensor round_to(const at::Tensor& numbers, at::ScalarType eight_bits);
// The answer of an op that rounds `exact` to 8 bits: none farther from it than the nearest value is.
Answer nearest(const at::Tensor& eight_bits, const at::Tensor& exact);

// Whether a package out of memory said so in an exception that a check caught.
bool is_out_of_memory(const std::string& refusal);

// The families. Each runs what is there of its ops.
void check_flash_attention(OpChecks& checks);       // attention_checks.cpp
void check_paged_attention(OpChecks& checks);       // paged_checks.cpp
void check_state_space(OpChecks& checks);           // state_space_checks.cpp
void check_deformable_attention(OpChecks& checks);  // deformable_checks.cpp
void check_megablocks(OpChecks& checks);            // expert_checks.cpp
void check_moe_steps(OpChecks& checks);             // moe_checks.cpp
void check_mlp(OpChecks& checks);                   // mlp_checks.cpp

}  // namespace graft::canary
