// A package around the hostile test kernel (tests/kernels/hostile.cpp) whose layers.json says what it
// does, and a model with one place for it.
#pragma once

#include <filesystem>
#include <fstream>
#include <string>

#include <gtest/gtest.h>
#include <torch/nn/module.h>
#include <unistd.h>

#include "graft/kernel/canary.h"
#include "graft/kernel/get_kernel.h"
#include "graft/kernel/open_kernel.h"
#include "graft/kernel/resolver.h"
#include "graft/kernel/test_library.h"
#include "graft/layers/kernelize.h"
#include "graft/layers/slot.h"

namespace graft::canary {

class NormModule : public torch::nn::Module {
 public:
  NormModule() : kernel_{*this, {}} {
    weight_ = register_parameter("weight", at::rand({64}) + 0.5, /*requires_grad=*/false);
    eval();
  }
  at::Tensor forward(const at::Tensor& x) const { return kernel_->forward(x, weight_, 1e-5); }
  bool swapped() const { return kernel_.module().swapped(); }

 private:
  at::Tensor weight_;
  layers::Slot<layers::RmsNorm> kernel_;
};

// Variables and folders that end with the test.
class CanaryFixture : public testing::Test {
 protected:
  void SetUp() override {
    root_ =
        std::filesystem::path(testing::TempDir()) / ("graft-canary-" + std::to_string(getpid()));
    std::filesystem::create_directories(root_);
    set("XDG_CACHE_HOME", (root_ / "xdg").string());
    set("XDG_STATE_HOME", (root_ / "state").string());
    set("GRAFT_CANARY", "on");
  }
  void TearDown() override {
    for (const auto& name : variables_) {
      unsetenv(name.c_str());
    }
    std::filesystem::remove_all(root_);
  }

  void set(const std::string& name, const std::string& value) {
    setenv(name.c_str(), value.c_str(), 1);
    variables_.push_back(name);
  }

  // The package that does `what` in its op.
  std::filesystem::path hostile_package(int what, const std::string& op = "norm") {
    namespace fs = std::filesystem;
    const fs::path folder = root_ / ("hostile-" + std::to_string(what) + op);
    const fs::path variant = folder / "build" / kernel::kTestVariant;
    const fs::path built =
        fs::path(GRAFT_BINARY_DIR) / "tests/hub/graft-tests/hostile/build" / kernel::kTestVariant;
    fs::create_directories(variant);
    fs::copy_file(built / "_test_hostile_cpu_0.abi3.so", variant / "_test_hostile_cpu_0.abi3.so");
    std::ofstream(variant / "metadata.json")
        << R"({"name": "hostile", "id": "_test_hostile_cpu_0", "version": 1, "license": "mit",)"
        << R"( "python-depends": [], "backend": {"type": "cpu"}})";
    std::ofstream(variant / "layers.json")
        << R"({"schema": 1, "layers": {"Norm": {"contract": "RMSNorm", "has_backward": false,)"
        << R"( "can_torch_compile": true, "devices": ["cpu"], "dtypes": ["float32"],)"
        << R"( "variants": {"cast_before_weight": )" << what << R"(}, "ops": {"forward": {"op": ")"
        << op << R"(", "arguments": {"out": "out", "x": "x", "weight": "weight", "eps": "eps",)"
        << R"( "variant": "variant"}}}}}})";
    return folder;
  }

  static kernel::Resolution resolve_path(const std::filesystem::path& package,
                                         at::Device device = at::kCPU) {
    return kernel::resolve(
        kernel::kernel_request(package.string(), {.device = device.str()}, /*is_locked=*/false));
  }

  kernel::SealedLibraries library_of(const kernel::Resolution& resolution) {
    return {std::make_shared<const kernel::SealedLibrary>(
        kernel::find_library(resolution.folder, resolution.metadata.id, "org/demo"))};
  }

  kernel::CanaryVerdict run(const std::filesystem::path& package, bool require_isolation = true,
                            at::Device device = at::kCPU) {
    const auto resolution = resolve_path(package, device);
    return kernel::run_canary("org/demo", resolution, library_of(resolution), require_isolation,
                              {});
  }

  std::vector<kernel::CanaryWrongAnswer> pass(const std::filesystem::path& package) {
    const auto resolution = resolve_path(package);
    return kernel::pass_canary("org/demo", resolution, library_of(resolution));
  }

  // Kernelizes a model with the package; `swapped` says whether its kernel is in.
  layers::Consideration kernelize(const std::filesystem::path& package, bool& swapped) {
    NormModule model;
    layers::KernelConfig config;
    config.inherit_mapping = false;
    config.kernel_mapping.set(
        "RMSNorm", {"cpu"},
        {{layers::Mode::kFallback, kernel::parse_layer_reference(package.string() + ":Norm")}});
    const auto report = layers::kernelize(model, {.config = config});
    swapped = model.swapped();
    return report.slots.at(0).considered.at(0);
  }

  std::filesystem::path root_;

 private:
  std::vector<std::string> variables_;
};

}  // namespace graft::canary
