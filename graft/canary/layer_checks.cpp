#include "graft/canary/layer_checks.h"

#include <algorithm>

#include <fmt/format.h>

#include "graft/canary/op_checks.h"
#include "graft/canary/published_checks.h"
#include "graft/canary/report.h"
#include "graft/core/error.h"
#include "graft/io/gguf.h"
#include "graft/layers/adapter.h"
#include "graft/layers/guard.h"
#include "graft/tensor/device.h"

namespace graft::canary {

namespace {

using layers::ActivationKind;

constexpr ActivationKind kActivations[] = {ActivationKind::kSilu,     ActivationKind::kGelu,
                                           ActivationKind::kGeluTanh, ActivationKind::kGeluNew,
                                           ActivationKind::kGeluFast, ActivationKind::kQuickGelu};

constexpr layers::RmsNormVariant kNormVariants[] = {
    layers::RmsNormVariant::kCastBeforeWeight, layers::RmsNormVariant::kCastAfterWeight,
    layers::RmsNormVariant::kFloatWeight, layers::RmsNormVariant::kZeroCentered};

using io::GgmlType;
constexpr GgmlType kPacked[] = {GgmlType::kQ4_0, GgmlType::kQ4_1, GgmlType::kQ5_0, GgmlType::kQ5_1,
                                GgmlType::kQ8_0, GgmlType::kQ4_K, GgmlType::kQ5_K, GgmlType::kQ6_K};

class Checker {
 public:
  Checker(const kernel::LoadedKernel& kernel, at::Device device)
      : kernel_(kernel), device_(device) {}

  kernel::CanaryVerdict run() {
    for (const auto& [name, layer] : kernel_.layers) {
      run_layer(name, layer);
    }
    check_published(kernel_, device_, verdict_);
    return std::move(verdict_);
  }

 private:
  void run_layer(const std::string& name, const kernel::PackageLayer& layer) {
    if (layer.contract == "RMSNorm") {
      run_norms(name, layer);
    } else if (layer.contract == "Activation") {
      run_activations<layers::Activation>(name, layer);
    } else if (layer.contract == "GatedActivation") {
      run_activations<layers::GatedActivation>(name, layer);
    } else if (layer.contract == "Linear") {
      run_guard<layers::Linear>(name, layer, {}, true);
    } else if (layer.contract == "Rotary") {
      run_guard<layers::Rotary>(name, layer, {}, true);
    } else if (layer.contract == layers::QkNormRotary::kName) {
      for (const auto variant : kNormVariants) {
        run_guard<layers::QkNormRotary>(name, layer, {variant}, true);
      }
    } else if (layer.contract == "Attention") {
      run_guard<layers::Attention>(name, layer, {}, true);
    } else if (layer.contract == layers::CausalLoss::kName) {
      run_guard<layers::CausalLoss>(name, layer, {}, true);
    } else if (layer.contract == layers::Mlp::kName) {
      for (const auto kind : kActivations) {
        run_guard<layers::Mlp>(name, layer, {kind}, true);
      }
    } else if (layer.contract == "PackedLinear") {
      for (const auto type : kPacked) {
        run_guard<layers::PackedLinear>(name, layer, {type}, true);
      }
    } else {
      verdict_.unchecked.push_back(name);
    }
  }

  // A layer that serves certain rows, or an eps, is asked for each of them.
  void run_norms(const std::string& name, const kernel::PackageLayer& layer) {
    const auto all_rows = layer.rows.empty() ? std::vector<int64_t>{0} : layer.rows;
    const auto all_eps = layer.eps.empty() ? std::vector<double>{0.0} : layer.eps;
    for (const auto variant : kNormVariants) {
      for (const int64_t rows : all_rows) {
        for (const double eps : all_eps) {
          run_guard<layers::RmsNorm>(name, layer, {variant, rows, eps}, true);
        }
      }
    }
  }

  // The layer's name says which function it computes. Under a name that says nothing it is run all
  // the same, and what it computes is held against the slot's function later.
  template <typename Contract>
  void run_activations(const std::string& name, const kernel::PackageLayer& layer) {
    for (const auto kind : kActivations) {
      const typename Contract::Spec spec{kind};
      if (layers::layer_name(spec) == name) {
        run_guard<Contract>(name, layer, spec, true);
        return;
      }
    }
    run_guard<Contract>(name, layer, {}, false);
  }

  template <typename Contract>
  void run_guard(const std::string& name, const kernel::PackageLayer& layer,
                 const typename Contract::Spec& spec, bool is_known) {
    std::shared_ptr<const typename Contract::Kernel> candidate;
    try {
      candidate = layers::bind(spec, kernel_, layer);
    } catch (const Error&) {
      return;
    }
    const auto reference = Contract::reference(spec);
    const std::string variant = Contract::variant_name(spec);
    for (const auto& dtype : layer.dtypes) {
      report("step", fmt::format("running {} ({}) in {}", name, variant, dtype));
      const std::string refusal =
          layers::guard(spec, *candidate, *reference, tensor::parse_dtype(dtype).value(), device_);
      if (is_out_of_memory(refusal)) {
        report_and_end("out_of_memory", refusal);
      }
      ++verdict_.num_checks;
      if (!refusal.empty() && is_known) {
        verdict_.wrong.push_back({name, variant, dtype, refusal});
      }
    }
  }

  const kernel::LoadedKernel& kernel_;
  at::Device device_;
  kernel::CanaryVerdict verdict_;
};

}  // namespace

kernel::CanaryVerdict check_layers(const kernel::LoadedKernel& kernel, at::Device device) {
  return Checker(kernel, device).run();
}

}  // namespace graft::canary
