#include <ATen/Parallel.h>
#include <ATen/Version.h>
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <torch/version.h>

#include "graft/core/env.h"
#include "graft/core/error.h"
#include "graft/core/version.h"
#include "graft/hub/environment.h"
#include "graft/kernel/package_source.h"
#include "graft/layers/mapping.h"
#include "graft/models/registry.h"
#include "graft/tensor/device.h"

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

ordered_json facts() {
  const bool cuda = tensor::cuda_available();
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
  const ordered_json report = facts();
  if (options.common.json) {
    print_json(report);
    return 0;
  }
  std::string text;
  for (const auto& [key, value] : report.items()) {
    if (key == "packages") {
      for (const auto& row : value) {
        text += fmt::format("{:<20} {}: {}\n", "package", row["package"].get<std::string>(),
                            fmt::join(row["variants"].get<std::vector<std::string>>(), ", "));
      }
    } else if (key != "supported") {
      text += fmt::format("{:<20} {}\n", key,
                          value.is_string() ? value.get<std::string>() : value.dump());
    }
  }
  write_stdout(text);
  return 0;
}

}  // namespace graft::cli
