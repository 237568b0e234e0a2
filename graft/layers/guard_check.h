// What the guards of the contracts share: seeded inputs, and the comparison of a candidate's results
// and gradients with the reference's, both held against float64. Internal to the room.
#pragma once

#include <functional>
#include <initializer_list>
#include <string>
#include <vector>

#include <ATen/ATen.h>

namespace graft::layers {

// Half the distance of two neighbouring values near one.
double rounding_unit(at::ScalarType dtype);

// Seeded inputs, made on the CPU so that every device sees the same numbers.
class GuardInputs {
 public:
  GuardInputs(at::ScalarType dtype, at::Device device);
  at::Tensor normal(at::IntArrayRef sizes, double scale = 1.0);

 private:
  at::ScalarType dtype_;
  at::Device device_;
  at::Generator generator_;
};

at::Tensor to_exact(const at::Tensor& x);

// Largest finite magnitude, 0 for no elements.
double largest(const at::Tensor& x);

// Why `candidate` may not stand for `reference`, or an empty text. `slack` is what float32 sums may
// lose by their order alone.
std::string compare(const std::string& what, const at::Tensor& candidate,
                    const at::Tensor& reference, const at::Tensor& exact, double slack = 0.0);

// Runs one check; a kernel that throws is refused with its words.
std::string attempt(const std::string& what, const std::function<std::string()>& check);

// The outputs of a call on the given inputs, all of them differentiable.
using GuardFunction = std::function<std::vector<at::Tensor>(const std::vector<at::Tensor>&)>;

// Compares the gradients of every input, for seeded gradients of every output. `exact` is
// differentiated in float64. `slack` is granted as in compare(), for each unit of a gradient's largest value.
std::string compare_gradients(const std::string& what, const std::vector<at::Tensor>& inputs,
                              const GuardFunction& candidate, const GuardFunction& reference,
                              const GuardFunction& exact, double slack = 0.0);

// First refusal of a list of checks.
std::string first_refusal(std::initializer_list<std::function<std::string()>> checks);

}  // namespace graft::layers
