#include "graft/canary/published_checks.h"

#include <functional>
#include <limits>
#include <optional>

#include <fmt/format.h>

#include "graft/canary/report.h"
#include "graft/core/error.h"
#include "graft/layers/guard_check.h"
#include "graft/layers/published/causal_conv1d.h"
#include "graft/layers/published/deformable_attention.h"
#include "graft/layers/published/flash_attention.h"
#include "graft/layers/published/selective_scan.h"
#include "graft/tensor/device.h"

namespace graft::canary {

namespace {

namespace published = layers::published;
using layers::to_exact;

// What one op computed and what it should have.
struct Answer {
  at::Tensor got;
  at::Tensor exact;  // float64
};
using Check = std::function<Answer()>;

class PublishedChecker {
 public:
  PublishedChecker(const kernel::LoadedKernel& kernel, at::Device device,
                   kernel::CanaryVerdict& verdict)
      : kernel_(kernel), device_(device), verdict_(verdict) {}

  void run() {
    const std::string& name = kernel_.metadata.name;
    const int64_t before = verdict_.num_checks;
    run_ops(name);
    if (verdict_.num_checks == before && verdict_.unchecked.empty()) {
      verdict_.unchecked.push_back(name);
    }
  }

 private:
  void run_ops(const std::string& name) {
    if (published::is_flash_attention(kernel_)) {
      run_group([&] { run_flash_attention(); });
    } else if (name == "causal-conv1d" || name == "mamba-ssm") {
      run_group([&] { run_convolution(); });
      run_group([&] { run_scan(); });
    } else if (name == "deformable-detr") {
      run_group([&] { run_deformable(); });
    }
  }

  // Ops that are not there, or have other schemas than the published ones: nobody here calls them.
  static void run_group(const std::function<void()>& group) {
    try {
      group();
    } catch (const Error&) {
      return;
    }
  }

  at::Tensor normal(at::IntArrayRef sizes, double scale = 1.0) {
    return inputs_->normal(sizes, scale);
  }
  // Float32 whatever the dtype under check.
  at::Tensor wide(at::IntArrayRef sizes, double scale = 1.0) {
    return normal(sizes, scale).to(at::kFloat);
  }

  // What the adapter refuses by name is no fault of the package; what throws otherwise is.
  void check(const std::string& op, std::initializer_list<at::ScalarType> dtypes,
             const Check& answer) {
    for (const auto dtype : dtypes) {
      const std::string name(tensor::dtype_name(dtype));
      report("step", fmt::format("running {} in {}", op, name));
      inputs_.emplace(dtype, device_);
      bool is_refused = false;
      const std::string refusal = layers::attempt(op, [&]() -> std::string {
        try {
          const auto [got, exact] = answer();
          return layers::compare(op, got, exact.to(dtype), exact, kSumSlack);
        } catch (const Error& error) {
          is_refused = error.code().starts_with("layers.published.") ||
                       error.code() == "kernel.loader.missing-op";
          return error.what();
        }
      });
      if (is_refused) {
        verdict_.unchecked.push_back(fmt::format("{} in {}", op, name));
        continue;
      }
      ++verdict_.num_checks;
      if (!refusal.empty()) {
        verdict_.wrong.push_back({op, "default", name, refusal});
      }
    }
  }

  void run_flash_attention() {
    const auto flash = published::bind_flash_attention(kernel_);
    for (const bool causal : {false, true}) {
      check(causal ? "causal attention" : "attention", {at::kHalf, at::kBFloat16}, [&]() -> Answer {
        const at::Tensor query = normal({2, 5, 4, 64}), key = normal({2, 7, 2, 64}, 0.7),
                         value = normal({2, 7, 2, 64}, 0.9);
        constexpr double kScale = 0.125;
        const auto result = flash->forward(query, key, value, {.scale = kScale, .causal = causal});
        return {result.out, exact_attention(query, key, value, kScale, causal)};
      });
    }
  }

  // Query s of S sees keys up to T - S + s of T.
  static at::Tensor exact_attention(const at::Tensor& query, const at::Tensor& key,
                                    const at::Tensor& value, double scale, bool causal) {
    const int64_t shared = query.size(2) / key.size(2);
    const auto heads = [&](const at::Tensor& x, int64_t repeats) {
      return to_exact(x).repeat_interleave(repeats, 2).transpose(1, 2);
    };
    at::Tensor scores =
        at::matmul(heads(query, 1), heads(key, shared).transpose(-1, -2)).mul(scale);
    if (causal) {
      const at::Tensor hidden = at::ones({query.size(1), key.size(1)}, at::TensorOptions(at::kBool))
                                    .triu(key.size(1) - query.size(1) + 1);
      scores = scores.masked_fill(hidden, -std::numeric_limits<double>::infinity());
    }
    return at::matmul(scores.softmax(-1), heads(value, shared)).transpose(1, 2);
  }

  void run_convolution() {
    const published::CausalConv1d convolution(kernel_);
    check("causal convolution", {at::kFloat, at::kHalf, at::kBFloat16}, [&]() -> Answer {
      const at::Tensor x = normal({2, 8, 21}), weight = normal({8, 4}, 0.5),
                       bias = normal({8}, 0.3);
      const at::Tensor padded = at::constant_pad_nd(to_exact(x), {3, 0});
      const at::Tensor sum =
          at::convolution(padded, to_exact(weight).unsqueeze(1), to_exact(bias), {1}, {0}, {1},
                          /*transposed=*/false, {0}, /*groups=*/8);
      return {convolution.forward(x, weight, bias, {.silu = true}).out, at::silu(sum)};
    });
  }

  void run_scan() {
    const published::SelectiveScan scan(kernel_);
    check("selective scan", {at::kFloat, at::kBFloat16}, [&]() -> Answer {
      const at::Tensor u = normal({2, 8, 19}), delta = normal({2, 8, 19}, 0.2).abs();
      published::ScanInputs inputs;
      inputs.a = -wide({8, 4}).abs();
      inputs.b = normal({2, 4, 19}, 0.6);
      inputs.c = normal({2, 4, 19}, 0.8);
      inputs.d = wide({8}, 0.4);
      return {scan.forward(u, delta, inputs).out, exact_scan(u, delta, inputs)};
    });
  }

  static at::Tensor exact_scan(const at::Tensor& u, const at::Tensor& delta,
                               const published::ScanInputs& inputs) {
    const at::Tensor x = to_exact(u), step = to_exact(delta), a = to_exact(inputs.a),
                     b = to_exact(inputs.b), c = to_exact(inputs.c);
    at::Tensor state = at::zeros({x.size(0), x.size(1), a.size(1)}, x.options());
    std::vector<at::Tensor> out;
    for (int64_t t = 0; t < x.size(2); ++t) {
      const at::Tensor now = step.select(2, t).unsqueeze(-1);
      state = state * (now * a).exp() +
              now * b.select(2, t).unsqueeze(1) * x.select(2, t).unsqueeze(-1);
      out.push_back((state * c.select(2, t).unsqueeze(1)).sum(-1));
    }
    return at::stack(out, 2) + to_exact(inputs.d).unsqueeze(-1) * x;
  }

  void run_deformable() {
    const published::DeformableAttention attention(kernel_);
    check("deformable attention", {at::kFloat}, [&]() -> Answer {
      const auto whole = at::TensorOptions(device_).dtype(at::kLong);
      const at::Tensor value = normal({1, 20, 2, 8});
      const at::Tensor shapes = at::tensor({4, 5}, whole).view({1, 2}),
                       starts = at::zeros({1}, whole);
      const at::Tensor places = normal({1, 3, 2, 1, 4, 2}, 0.3).sigmoid(),
                       weights = normal({1, 3, 2, 1, 4}).softmax(-1);
      // One map: per head, a bilinear look-up in [D, H, W], weighted.
      const at::Tensor map = to_exact(value).permute({0, 2, 3, 1}).reshape({2, 8, 4, 5});
      const at::Tensor grid = to_exact(places).mul(2).sub(1).select(3, 0).permute({0, 2, 1, 3, 4});
      const at::Tensor samples =
          at::grid_sampler(map, grid.reshape({2, 3, 4, 2}), 0, 0, /*align_corners=*/false);
      const at::Tensor factors = to_exact(weights).select(3, 0).permute({0, 2, 1, 3});
      const at::Tensor sums = (samples * factors.reshape({2, 1, 3, 4})).sum(-1);  // [M, D, Lq]
      return {attention.forward(value, shapes, starts, places, weights),
              sums.permute({2, 0, 1}).reshape({1, 3, 16})};
    });
  }

  // Sums of a few dozen products in float32, in any order; probabilities that are rounded before the
  // second product.
  static constexpr double kSumSlack = 4e-3;

  const kernel::LoadedKernel& kernel_;
  at::Device device_;
  kernel::CanaryVerdict& verdict_;
  std::optional<layers::GuardInputs> inputs_;  // of one check
};

}  // namespace

void check_published(const kernel::LoadedKernel& kernel, at::Device device,
                     kernel::CanaryVerdict& verdict) {
  PublishedChecker(kernel, device, verdict).run();
}

}  // namespace graft::canary
