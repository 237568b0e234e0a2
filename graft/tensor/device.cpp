#include "graft/tensor/device.h"

#include <array>
#include <charconv>
#include <mutex>
#include <utility>

#include <ATen/detail/CUDAHooksInterface.h>
#include <dlfcn.h>
#include <fmt/format.h>

#include "graft/core/error.h"

namespace graft::tensor {

namespace {

namespace fs = std::filesystem;

constexpr std::array<std::pair<std::string_view, c10::ScalarType>, 9> kDtypes = {
    {{"float32", at::kFloat},
     {"bfloat16", at::kBFloat16},
     {"float16", at::kHalf},
     {"float64", at::kDouble},
     {"fp32", at::kFloat},
     {"bf16", at::kBFloat16},
     {"fp16", at::kHalf},
     {"float", at::kFloat},
     {"half", at::kHalf}}};

// Empty when libtorch_cuda is in the process, else why it is not.
const std::string& open_cuda() {
  static const std::string failure = [] {
    const auto library = torch_library_folder() / "libtorch_cuda.so";
    if (!fs::exists(library)) {
      return fmt::format("`{}` does not exist: this libtorch was built without CUDA",
                         library.string());
    }
    if (dlopen(library.c_str(), RTLD_NOW | RTLD_GLOBAL) == nullptr) {
      return std::string(dlerror());
    }
    return std::string();
  }();
  return failure;
}

// Devices that CUDA's own runtime sees, once libtorch_cuda has brought it. libtorch decides on its
// first question whether it has CUDA, and never asks again.
int runtime_device_count() {
  using GetDeviceCount = int (*)(int*);
  const auto get_count =
      reinterpret_cast<GetDeviceCount>(dlsym(RTLD_DEFAULT, "cudaGetDeviceCount"));
  int count = 0;
  return get_count != nullptr && get_count(&count) == 0 ? count : 0;
}

}  // namespace

c10::Device parse_device(std::string_view text) {
  if (text == "cpu") {
    return c10::Device(at::kCPU);
  }
  if (text == "cuda") {
    return c10::Device(at::kCUDA, 0);
  }
  if (text.starts_with("cuda:")) {
    int index = -1;
    const auto digits = text.substr(5);
    const auto [end, status] = std::from_chars(digits.data(), digits.data() + digits.size(), index);
    if (status == std::errc() && end == digits.data() + digits.size() && index >= 0 && index < 64) {
      return c10::Device(at::kCUDA, static_cast<c10::DeviceIndex>(index));
    }
  }
  throw InvalidArgument("tensor.device", "name",
                        fmt::format("device: expected cpu, cuda or cuda:N, got `{}`", text));
}

std::optional<c10::ScalarType> parse_dtype(std::string_view text) {
  if (text == "auto") {
    return std::nullopt;
  }
  for (const auto& [name, dtype] : kDtypes) {
    if (name == text) {
      return dtype;
    }
  }
  throw InvalidArgument(
      "tensor.dtype", "name",
      fmt::format("dtype: expected auto, float32, bfloat16 or float16, got `{}`", text));
}

std::string dtype_name(c10::ScalarType dtype) {
  for (const auto& [name, value] : kDtypes) {
    if (value == dtype) {
      return std::string(name);
    }
  }
  return c10::toString(dtype);
}

void ensure_device(const c10::Device& device) {
  if (device.is_cpu()) {
    return;
  }
  if (const auto& failure = open_cuda(); !failure.empty()) {
    throw DeviceError("tensor.device", "cuda-library",
                      fmt::format("{}: expected libtorch_cuda, got: {}", device.str(), failure),
                      "install a torch wheel with CUDA, or use --device cpu");
  }
  const int count = cuda_available() ? at::detail::getCUDAHooks().deviceCount() : 0;
  if (count == 0 && runtime_device_count() > 0) {
    throw DeviceError(
        "tensor.device", "too-late",
        fmt::format(
            "{}: expected CUDA to be opened before libtorch was asked for it, got a libtorch "
            "that has settled on having none",
            device.str()),
        "call graft::tensor::cuda_available() first thing in main(), before at::manual_seed and "
        "its "
        "like, or link libtorch_cuda");
  }
  if (count == 0) {
    throw DeviceError(
        "tensor.device", "no-device",
        fmt::format("{}: expected a CUDA device, got none (no driver or no GPU)", device.str()),
        "check `nvidia-smi`, or use --device cpu");
  }
  if (device.index() >= count) {
    throw DeviceError(
        "tensor.device", "index",
        fmt::format("{}: expected an index below {}, got {}", device.str(), count, device.index()));
  }
}

bool cuda_available() {
  if (!open_cuda().empty()) {
    return false;
  }
  try {
    return at::detail::getCUDAHooks().hasCUDA() && at::detail::getCUDAHooks().deviceCount() > 0;
  } catch (const c10::Error&) {
    return false;
  }
}

int capability(const c10::Device& device) {
  if (device.is_cpu()) {
    return 0;
  }
  ensure_device(device);
  // libtorch_cuda is not linked: its properties call is found by name.
  using GetAttribute = int (*)(int*, int, int);
  const auto get_attribute =
      reinterpret_cast<GetAttribute>(dlsym(RTLD_DEFAULT, "cudaDeviceGetAttribute"));
  int major = 0, minor = 0;
  constexpr int kComputeCapabilityMajor = 75, kComputeCapabilityMinor = 76;  // cudaDevAttr*
  if (get_attribute == nullptr ||
      get_attribute(&major, kComputeCapabilityMajor, device.index()) != 0 ||
      get_attribute(&minor, kComputeCapabilityMinor, device.index()) != 0) {
    throw DeviceError(
        "tensor.device", "capability",
        fmt::format("{}: expected a compute capability, got an error of the CUDA runtime",
                    device.str()));
  }
  return major * 10 + minor;
}

int torch_cuda_version() {
  if (!open_cuda().empty()) {
    return 0;
  }
  const long version =
      at::detail::getCUDAHooks().hasCUDA() ? at::detail::getCUDAHooks().versionCUDART() : 0;
  return static_cast<int>(version / 1000 * 10 + version % 1000 / 10);
}

fs::path torch_library_folder() {
  Dl_info info{};
  auto* handle = dlopen("libtorch_cpu.so", RTLD_LAZY | RTLD_NOLOAD);
  if (handle != nullptr) {
    if (void* symbol = dlsym(handle, "aoti_torch_device_type_cpu"); symbol != nullptr) {
      dladdr(symbol, &info);
    }
    dlclose(handle);
  }
  return info.dli_fname == nullptr ? fs::path() : fs::path(info.dli_fname).parent_path();
}

}  // namespace graft::tensor
