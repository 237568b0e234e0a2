// Build variants: the folder names under a kernel repository's `build/`, which of them run on this
// system, and which of those is best.
//
//   torch-stable-abi211-cu130-x86_64-linux   torch211-cxx11-cu130-x86_64-linux   torch-cuda
#pragma once

#include <compare>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace graft::kernel {

struct Version {
  int major = 0;
  int minor = 0;
  auto operator<=>(const Version&) const = default;
};

enum class Framework { kTorchStable, kTorch, kTvmFfi, kNoarch };

struct Variant {
  std::string name;  // the folder's name
  Framework framework = Framework::kNoarch;
  Version framework_version;  // stable ABI: the oldest torch that runs it
  std::string cxx_abi;        // `cxx11`, `cxx98` or empty
  std::string backend;        // `cpu`, `cuda`, `rocm`, `xpu`, `metal`, …; noarch: `universal` too
  Version backend_version;
  std::string cpu;  // `x86_64`
  std::string os;   // `linux`
};

// Nothing for a name that is no variant.
std::optional<Variant> parse_variant(std::string_view name);

// What a variant is held against.
struct System {
  Version torch;
  std::string backend = "cpu";  // of the device that the model is on: `cpu` or `cuda`
  Version backend_version;      // of CUDA as libtorch was built with it
  std::string cpu;
  std::string os;
  std::string cxx_abi = "cxx11";
  bool python_only = false;  // wanted: what is to be compiled ahead of time, and nothing else
};

// The running process: libtorch's version, this processor, and CUDA's version (major * 10 + minor)
// for a CUDA device.
System this_system(std::string_view device_type, int cuda_version);

// The reason of a variant that has Python files alone.
constexpr std::string_view kPythonOnly = "Python files only: there is no native library to load";

// Why the variant cannot run, or an empty text.
std::string rejection(const Variant& variant, const System& system);

struct VariantChoice {
  std::vector<Variant> accepted;                             // best first
  std::vector<std::pair<std::string, std::string>> refused;  // name, reason
};

// Sorts names into accepted and refused. Order of the accepted: newest stable ABI, then the highest
// CUDA minor, tagless torch, tagged torch, tvm-ffi, `torch-<backend>`, `torch-universal`; equal
// keys by name.
VariantChoice choose_variants(const std::vector<std::string>& names, const System& system);

}  // namespace graft::kernel
