#include <fmt/format.h>

#include "graft/layers/guard.h"
#include "graft/layers/guard_check.h"

namespace graft::layers {

namespace {

at::Tensor exact_loss(const at::Tensor& hidden, const at::Tensor& weight,
                      const at::Tensor& device_labels, double softcap, int64_t num_items) {
  const at::Tensor labels = device_labels.to(hidden.device());
  at::Tensor logits = at::matmul(hidden, weight.t());
  if (softcap > 0.0) {
    logits = at::tanh(logits / softcap) * softcap;
  }
  const at::Tensor counts = labels.ne(CausalLoss::kIgnoredLabel);
  const at::Tensor picked =
      at::log_softmax(logits, -1).gather(-1, labels.clamp_min(0).unsqueeze(-1)).squeeze(-1);
  const at::Tensor sum = -(picked * counts).sum();
  return num_items > 0 ? sum / static_cast<double>(num_items) : sum / counts.sum();
}

}  // namespace

std::string guard(const CausalLoss::Spec&, const CausalLoss::Kernel& candidate,
                  const CausalLoss::Kernel& reference, at::ScalarType dtype, at::Device device) {
  GuardInputs inputs(dtype, device);
  constexpr int64_t kColumns = 97;
  const auto labels = [&](int64_t rows) {
    at::Tensor chosen =
        at::arange(rows, at::TensorOptions(at::kLong).device(device)).mul(31).remainder(kColumns);
    return rows > 2 ? chosen.masked_fill(chosen.remainder(5).eq(1), CausalLoss::kIgnoredLabel)
                    : chosen;
  };
  const auto check = [&](int64_t rows, double softcap, int64_t num_items) {
    const std::string what =
        fmt::format("forward [{}, 64] x [{}, 64], softcap {}", rows, kColumns, softcap);
    return attempt(what, [&] {
      const at::Tensor hidden = inputs.normal({rows, 64}),
                       weight = inputs.normal({kColumns, 64}, 0.3);
      const at::Tensor exact =
          exact_loss(to_exact(hidden), to_exact(weight), labels(rows), softcap, num_items);
      // One number says little about an error's size: what rounding one logit costs is granted to it.
      const double slack =
          rounding_unit(dtype) * largest(at::matmul(to_exact(hidden), to_exact(weight).t()));
      const at::NoGradGuard no_grad;
      return compare(what, candidate.forward(hidden, weight, labels(rows), softcap, num_items),
                     reference.forward(hidden, weight, labels(rows), softcap, num_items), exact,
                     slack);
    });
  };
  const auto backward = [&](double softcap) {
    const int64_t rows = 9;
    const auto call = [&](const auto& kernel) {
      return [&, softcap](const std::vector<at::Tensor>& in) -> std::vector<at::Tensor> {
        return {kernel.forward(in[0], in[1], labels(rows), softcap, 0)};
      };
    };
    return compare_gradients(
        fmt::format("backward [{}, 64] x [{}, 64], softcap {}", rows, kColumns, softcap),
        {inputs.normal({rows, 64}), inputs.normal({kColumns, 64}, 0.3)}, call(candidate),
        call(reference), [&](const auto& in) -> std::vector<at::Tensor> {
          return {exact_loss(in[0], in[1], labels(rows), softcap, 0)};
        });
  };
  const std::string refusal =
      first_refusal({[&] { return check(1, 0.0, 0); }, [&] { return check(9, 0.0, 0); },
                     [&] { return check(9, 5.0, 0); }, [&] { return check(9, 0.0, 7); }});
  if (!refusal.empty() || !candidate.has_backward()) {
    return refusal;
  }
  return first_refusal({[&] { return backward(0.0); }, [&] { return backward(5.0); }});
}

}  // namespace graft::layers
