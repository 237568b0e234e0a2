#include "graft/kernel/compiled_layer.h"

#include <charconv>
#include <fstream>
#include <iterator>
#include <set>

#include <fmt/format.h>
#include <torch/headeronly/version.h>

#include "graft/core/error.h"
#include "graft/core/file_status.h"
#include "graft/kernel/open_kernel.h"
#include "graft/trust/strict_object.h"

namespace graft::kernel {

namespace {

namespace fs = std::filesystem;

constexpr size_t kMaxDescriptionBytes = 1 << 16;
constexpr size_t kMaxLibraries = 64;  // each costs a descriptor here and in the canary
constexpr char kDescription[] = "aot.json";

std::string read_text(const SealedLibrary& description) {
  std::ifstream stream(description.path(), std::ios::binary);
  return {std::istreambuf_iterator<char>(stream), {}};
}

at::ScalarType parse_dtype(const trust::StrictObject& object) {
  const std::string name = object.text("dtype");
  if (name == "float32") {
    return at::kFloat;
  }
  if (name != "bfloat16" && name != "float16") {
    object.fail("dtype", "dtype", "expected float32, bfloat16 or float16, got " + name);
  }
  return name == "bfloat16" ? at::kBFloat16 : at::kHalf;
}

CompiledForm parse_form(const trust::StrictObject& object, bool is_norm) {
  CompiledForm form;
  form.file = object.text("file");
  if (fs::path(form.file).filename() != form.file || !form.file.ends_with(".so")) {
    object.fail("file", "file",
                fmt::format("expected a library of this folder, got `{}`", form.file));
  }
  form.dtype = parse_dtype(object);
  form.columns = object.whole_number("columns");
  const std::string eps = object.text("eps");
  double value = 0;
  const auto [end, status] = std::from_chars(eps.data(), eps.data() + eps.size(), value);
  const bool is_number =
      status == std::errc() && end == eps.data() + eps.size() && value > 0 && value < 1;
  if (is_norm != is_number || (!is_norm && !eps.empty())) {
    object.fail("value", "eps", "expected the eps of a norm, and of nothing else");
  }
  if (is_norm) {
    form.eps = value;
  }
  return form;
}

void check_processor(const std::string& processor, const std::string& file) {
  const bool is_wide = processor == "x86-64-v3";
  const bool has_wide = __builtin_cpu_supports("avx2") != 0 && __builtin_cpu_supports("fma") != 0 &&
                        __builtin_cpu_supports("bmi2") != 0;
  if ((!is_wide && processor != "x86-64") || (is_wide && !has_wide)) {
    throw IncompatibleError(
        "kernel.aot", "processor",
        fmt::format("`{}`: expected libraries for x86-64 or, on a processor with AVX2, x86-64-v3, "
                    "got those for {}",
                    file, processor),
        "compile the layer again on this machine: graft kernels aot");
  }
}

void check_torch(const std::string& version, const std::string& file) {
  if (version != TORCH_VERSION) {
    throw IncompatibleError("kernel.aot", "torch",
                            fmt::format("`{}`: expected libraries of torch {}, got those of {}",
                                        file, TORCH_VERSION, version),
                            "compile the layer again: graft kernels aot");
  }
}

std::vector<CompiledForm> parse_forms(const trust::StrictObject& root, bool is_norm) {
  std::vector<CompiledForm> forms;
  std::set<std::string> files;
  for (const auto& object : root.objects("libraries", {"file", "dtype", "columns", "eps"})) {
    forms.push_back(parse_form(object, is_norm));
    files.insert(forms.back().file);
  }
  if (forms.empty() || forms.size() > kMaxLibraries || files.size() != forms.size()) {
    root.fail(
        "libraries", "libraries",
        fmt::format("expected 1 to {} libraries, each once, got {}", kMaxLibraries, forms.size()));
  }
  return forms;
}

}  // namespace

bool is_compiled_layer(const fs::path& folder) { return is_file(folder / kDescription); }

bool is_compiled_layer(const SealedLibraries& libraries) {
  return !libraries.empty() && libraries.front()->file().filename() == kDescription;
}

SealedLibraries seal_compiled_layer(const fs::path& folder) {
  SealedLibraries sealed = {std::make_shared<const SealedLibrary>(folder / kDescription)};
  for (const auto& form : read_compiled_layer(*sealed.front()).forms) {
    sealed.push_back(std::make_shared<const SealedLibrary>(folder / form.file));
  }
  return sealed;
}

CompiledLayer read_compiled_layer(const SealedLibrary& description) {
  const std::string file = description.file().string();
  const trust::StrictDocument document(read_text(description), "kernel.aot", file,
                                       kMaxDescriptionBytes);
  const trust::StrictObject root(
      document, {"schema", "contract", "device", "torch", "processor", "libraries"});
  if (root.whole_number("schema") != 1) {
    root.fail("schema", "schema", "expected 1");
  }
  const std::string contract = root.text("contract"), device = root.text("device");
  if (contract != "RMSNorm" && contract != "Activation") {
    root.fail("contract", "contract", "expected RMSNorm or Activation, got " + contract);
  }
  if (device != "cpu" && device != "cuda") {
    root.fail("value", "device", "expected cpu or cuda, got " + device);
  }
  check_torch(root.text("torch"), file);
  check_processor(root.text("processor"), file);
  CompiledLayer layer;
  layer.is_norm = contract == "RMSNorm";
  layer.device = device == "cpu" ? at::kCPU : at::kCUDA;
  layer.forms = parse_forms(root, layer.is_norm);
  return layer;
}

void check_compiled_layer(const std::string& repository, const Metadata& metadata,
                          const SealedLibraries& libraries) {
  const CompiledLayer layer = read_compiled_layer(*libraries.at(0));
  const std::string device = layer.device == at::kCPU ? "cpu" : "cuda";
  if (metadata.backend != device) {
    throw IncompatibleError(
        "kernel.aot", "device",
        fmt::format("`{}`: expected libraries for {}, as metadata.json says, got those for {}",
                    repository, metadata.backend, device));
  }
  for (size_t i = 1; i < libraries.size(); ++i) {
    check_compiled_library(repository, metadata.id, *libraries[i]);
  }
}

}  // namespace graft::kernel
