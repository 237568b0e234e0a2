#include "graft/tensor/device_graph.h"

#include <filesystem>

#include <dlfcn.h>
#include <fmt/format.h>

#include "graft/core/error.h"
#include "graft/tensor/device.h"

namespace graft::tensor {

namespace {

using MakeGraph = DeviceGraph* (*)(int device);

// The part of graft that is linked with libtorch_cuda, opened beside this library.
struct CudaPart {
  MakeGraph make_graph = nullptr;
  std::string failure;
};

const CudaPart& cuda_part() {
  static const CudaPart part = [] {
    Dl_info here{};
    dladdr(reinterpret_cast<const void*>(&graph_refusal), &here);
    const std::filesystem::path own = here.dli_fname == nullptr ? "" : here.dli_fname;
    const std::string path = own.parent_path() / "libgraft_cuda.so";
    CudaPart opened;
    void* library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (library != nullptr) {
      opened.make_graph = reinterpret_cast<MakeGraph>(dlsym(library, "graft_make_cuda_graph"));
    }
    if (opened.make_graph == nullptr) {
      const char* error = dlerror();
      opened.failure = fmt::format("graft's CUDA part does not open: {}",
                                   error == nullptr ? "unknown error" : error);
    }
    return opened;
  }();
  return part;
}

}  // namespace

std::string graph_refusal(const at::Device& device) {
  if (!device.is_cuda()) {
    return fmt::format("device {} has no graphs", device.str());
  }
  return cuda_available() ? cuda_part().failure : "no CUDA device";
}

std::unique_ptr<DeviceGraph> make_graph(const at::Device& device) {
  if (const std::string refusal = graph_refusal(device); !refusal.empty()) {
    throw DeviceError("tensor.graph", "unavailable",
                      fmt::format("{}: expected a device with graphs: {}", device.str(), refusal));
  }
  return std::unique_ptr<DeviceGraph>(cuda_part().make_graph(device.index()));
}

}  // namespace graft::tensor
