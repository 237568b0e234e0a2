#include "graft/kernel/variant.h"

#include <algorithm>
#include <tuple>

#include <fmt/format.h>
#include <sys/utsname.h>
#include <torch/version.h>

namespace graft::kernel {

namespace {

std::vector<std::string> split(std::string_view text, char separator) {
  std::vector<std::string> parts;
  for (size_t start = 0; start <= text.size();) {
    const size_t end = std::min(text.find(separator, start), text.size());
    parts.emplace_back(text.substr(start, end - start));
    start = end + 1;
  }
  return parts;
}

bool all_digits(std::string_view text) {
  return !text.empty() && text.size() < 8 &&
         text.find_first_not_of("0123456789") == std::string_view::npos;
}

// `211` -> 2.11: the first digit is the major.
std::optional<Version> framework_version(std::string_view digits) {
  if (digits.size() < 2 || !all_digits(digits)) {
    return std::nullopt;
  }
  return Version{digits[0] - '0', std::stoi(std::string(digits.substr(1)))};
}

// `130` -> 13.0: the last digit is the minor.
std::optional<Version> backend_version(std::string_view digits) {
  if (digits.size() < 2 || !all_digits(digits)) {
    return std::nullopt;
  }
  return Version{std::stoi(std::string(digits.substr(0, digits.size() - 1))), digits.back() - '0'};
}

bool parse_backend(std::string_view token, Variant& out) {
  for (const std::string_view plain : {"cpu", "metal", "neuron", "tpu"}) {
    if (token == plain) {
      out.backend = plain;
      return true;
    }
  }
  for (const auto& [prefix, backend] : {std::pair<std::string_view, std::string_view>{"cu", "cuda"},
                                        {"rocm", "rocm"},
                                        {"xpu", "xpu"},
                                        {"cann", "cann"}}) {
    if (token.starts_with(prefix)) {
      if (const auto version = backend_version(token.substr(prefix.size()))) {
        out.backend = backend;
        out.backend_version = *version;
        return true;
      }
    }
  }
  return false;
}

// `<backend>-<cpu>-<os>`
bool parse_platform(const std::vector<std::string>& parts, size_t first, Variant& out) {
  if (parts.size() != first + 3 || !parse_backend(parts[first], out)) {
    return false;
  }
  out.cpu = parts[first + 1];
  out.os = parts[first + 2];
  return !out.cpu.empty() && !out.os.empty();
}

using SortKey = std::tuple<int, int, int, int>;

SortKey sort_key(const Variant& variant) {
  switch (variant.framework) {
    case Framework::kTorchStable:
      return {0, -variant.framework_version.major, -variant.framework_version.minor,
              -variant.backend_version.minor};
    case Framework::kTorch:
      return {1, 0, variant.cxx_abi.empty() ? 0 : 1, -variant.backend_version.minor};
    case Framework::kTvmFfi:
      return {2, 0, 0, -variant.backend_version.minor};
    default:
      return {3, 0, 0, variant.backend == "universal" ? 1 : 0};
  }
}

std::string text(const Version& version) {
  return fmt::format("{}.{}", version.major, version.minor);
}

std::string framework_rejection(const Variant& variant, const System& system) {
  if (variant.framework == Framework::kTvmFfi) {
    return "tvm-ffi kernels are not supported";
  }
  if (variant.framework == Framework::kTorchStable) {
    return variant.framework_version <= system.torch
               ? ""
               : fmt::format("needs torch {} or later, this is {}", text(variant.framework_version),
                             text(system.torch));
  }
  if (variant.framework_version != system.torch) {
    return fmt::format("built for torch {}, this is {}", text(variant.framework_version),
                       text(system.torch));
  }
  if (!variant.cxx_abi.empty() && variant.cxx_abi != system.cxx_abi) {
    return fmt::format("built for C++ ABI {}, this is {}", variant.cxx_abi, system.cxx_abi);
  }
  return "";
}

std::string backend_rejection(const Variant& variant, const System& system) {
  if (variant.backend != system.backend) {
    return fmt::format("built for {}, the device is {}", variant.backend, system.backend);
  }
  if (variant.backend == "cuda" && (variant.backend_version.major != system.backend_version.major ||
                                    variant.backend_version.minor > system.backend_version.minor)) {
    return fmt::format("built for CUDA {}, libtorch has {}", text(variant.backend_version),
                       text(system.backend_version));
  }
  if (variant.backend != "cuda" && variant.backend_version != system.backend_version) {
    return fmt::format("built for {} {}, this is {}", variant.backend,
                       text(variant.backend_version), text(system.backend_version));
  }
  return "";
}

}  // namespace

std::optional<Variant> parse_variant(std::string_view name) {
  Variant out;
  out.name = name;
  constexpr std::string_view kStable = "torch-stable-abi";
  const auto parts = split(name, '-');
  if (name.starts_with(kStable)) {
    const auto version = framework_version(parts[2].substr(3));
    out.framework = Framework::kTorchStable;
    out.framework_version = version.value_or(Version{});
    return version && parse_platform(parts, 3, out) ? std::optional(out) : std::nullopt;
  }
  if (parts[0] == "torch") {
    out.backend = name.size() > 6 ? std::string(name.substr(6)) : "";
    return out.backend.empty() ? std::nullopt : std::optional(out);
  }
  if (parts[0].starts_with("torch")) {
    const auto version = framework_version(std::string_view(parts[0]).substr(5));
    const bool tagged = parts.size() > 1 && (parts[1] == "cxx11" || parts[1] == "cxx98");
    out.framework = Framework::kTorch;
    out.framework_version = version.value_or(Version{});
    out.cxx_abi = tagged ? parts[1] : "";
    return version && parse_platform(parts, tagged ? 2 : 1, out) ? std::optional(out)
                                                                 : std::nullopt;
  }
  if (parts[0] == "tvm" && parts.size() > 1 && parts[1].starts_with("ffi")) {
    const auto version = framework_version(std::string_view(parts[1]).substr(3));
    out.framework = Framework::kTvmFfi;
    out.framework_version = version.value_or(Version{});
    return version && parse_platform(parts, 2, out) ? std::optional(out) : std::nullopt;
  }
  return std::nullopt;
}

System this_system(std::string_view device_type, int cuda_version) {
  utsname machine{};
  uname(&machine);
  System system;
  system.torch = {TORCH_VERSION_MAJOR, TORCH_VERSION_MINOR};
  system.backend = device_type;
  system.backend_version =
      device_type == "cuda" ? Version{cuda_version / 10, cuda_version % 10} : Version{};
  system.cpu = machine.machine;
  system.os = "linux";
  return system;
}

std::string rejection(const Variant& variant, const System& system) {
  if (system.python_only && variant.framework != Framework::kNoarch) {
    return "a native library: nothing to compile";
  }
  if (system.python_only) {
    const bool fits = variant.backend == system.backend || variant.backend == "universal";
    return fits ? "" : fmt::format("made for {}, not {}", variant.backend, system.backend);
  }
  if (variant.framework == Framework::kNoarch) {
    return std::string(kPythonOnly);
  }
  if (variant.cpu != system.cpu || variant.os != system.os) {
    return fmt::format("built for {}-{}, this is {}-{}", variant.cpu, variant.os, system.cpu,
                       system.os);
  }
  const auto reason = framework_rejection(variant, system);
  return reason.empty() ? backend_rejection(variant, system) : reason;
}

VariantChoice choose_variants(const std::vector<std::string>& names, const System& system) {
  VariantChoice choice;
  for (const auto& name : names) {
    const auto variant = parse_variant(name);
    const std::string reason = variant ? rejection(*variant, system) : "not a variant's name";
    if (reason.empty()) {
      choice.accepted.push_back(*variant);
    } else {
      choice.refused.emplace_back(name, reason);
    }
  }
  std::sort(choice.accepted.begin(), choice.accepted.end(), [](const Variant& a, const Variant& b) {
    return std::pair(sort_key(a), a.name) < std::pair(sort_key(b), b.name);
  });
  return choice;
}

}  // namespace graft::kernel
