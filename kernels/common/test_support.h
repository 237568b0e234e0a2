// What the tests and benchmarks of packages share: finding the built packages, loading them without
// Python, calling ops through the dispatcher, and asking for CUDA at run time. Header-only; each
// program has one file.
#pragma once

#include <climits>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <map>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <dlfcn.h>
#include <nlohmann/json.hpp>
#include <unistd.h>

#ifdef GRAFT_WITH_CUDA
#include <cuda_runtime_api.h>
#endif

namespace graft_kernels::testing {

inline constexpr char kCpuVariant[] = "torch-stable-abi211-cpu-x86_64-linux";
inline constexpr char kCudaVariant[] = "torch-stable-abi211-cu130-x86_64-linux";

// True when GRAFT_TEST_SMALL=1 asks for a reduced set (under compute-sanitizer).
inline bool is_small_run() {
  const char* value = std::getenv("GRAFT_TEST_SMALL");
  return value != nullptr && std::string(value) == "1";
}

// GRAFT_KERNELS_DIR, or the embedded hub beside this program:
// <build>/bin/../share/graft/hub/graft-kernels.
inline std::filesystem::path packages_dir() {
  if (const char* named = std::getenv("GRAFT_KERNELS_DIR")) {
    return named;
  }
  const std::filesystem::path program = std::filesystem::read_symlink("/proc/self/exe");
  return program.parent_path().parent_path() / "share/graft/hub/graft-kernels";
}

// Empty when ops can run on a CUDA device, else the reason why not. Opens libtorch's CUDA part
// once.
inline const std::string& why_no_cuda() {
  static const std::string reason = []() -> std::string {
#ifdef GRAFT_WITH_CUDA
    if (dlopen("libcuda.so.1", RTLD_LAZY | RTLD_LOCAL) == nullptr) {
      return "no CUDA device: no driver (libcuda.so.1)";
    }
    if (dlopen("libtorch.so", RTLD_LAZY | RTLD_GLOBAL) == nullptr ||
        dlopen("libtorch_cuda.so", RTLD_LAZY | RTLD_GLOBAL) == nullptr) {
      return std::string("no CUDA device: libtorch's CUDA part does not open: ") + dlerror();
    }
    return at::hasCUDA() ? "" : "no CUDA device";
#else
    return "no CUDA device: built without CUDA kernels";
#endif
  }();
  return reason;
}

// libtorch asks once which devices there are, whoever asks first: its CUDA part has to be there before any
// test or benchmark begins.
inline const bool has_asked_for_cuda = (why_no_cuda(), true);

// One loaded variant of a package; loaded once per process and never unloaded.
class Package {
 public:
  static const Package& get(const std::string& name, const std::string& variant) {
    static std::map<std::pair<std::string, std::string>, Package> loaded;
    const auto key = std::make_pair(name, variant);
    if (const auto found = loaded.find(key); found != loaded.end()) {
      return found->second;
    }
    return loaded.emplace(key, Package(name, variant)).first->second;
  }

  // The variant that graft would choose for a device.
  static const Package& for_device(const std::string& name, at::Device device) {
    return get(name, device.is_cuda() ? kCudaVariant : kCpuVariant);
  }

  const std::string& id() const { return id_; }

  // Calls `<id>::<op>`; returns what is left on the stack.
  template <typename... Arguments>
  std::vector<c10::IValue> operator()(const std::string& op, const Arguments&... arguments) const {
    const c10::OperatorHandle handle =
        c10::Dispatcher::singleton().findSchemaOrThrow((id_ + "::" + op).c_str(), "");
    std::vector<c10::IValue> stack{c10::IValue(arguments)...};
    handle.callBoxed(stack);
    return stack;
  }

 private:
  Package(const std::string& name, const std::string& variant) {
    const std::filesystem::path folder = packages_dir() / name / "build" / variant;
    std::ifstream metadata(folder / "metadata.json");
    id_ = nlohmann::json::parse(metadata).at("id").get<std::string>();
    const std::string library = folder / (id_ + ".abi3.so");
    if (dlopen(library.c_str(), RTLD_LAZY | RTLD_LOCAL) == nullptr) {
      throw std::runtime_error(dlerror());
    }
  }

  std::string id_;
};

#ifdef GRAFT_WITH_CUDA

inline void check_status(cudaError_t status, const char* call) {
  if (status != cudaSuccess) {
    throw std::runtime_error(std::string(call) + ": " + cudaGetErrorString(status));
  }
}

// A stream of its own that is torch's current stream while this lives. It waits for no other, so what was started
// before is done when it is made.
class CurrentStream {
 public:
  CurrentStream() {
    check_status(cudaDeviceSynchronize(), "cudaDeviceSynchronize");
    check_status(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "cudaStreamCreate");
    using Create = int (*)(void*, int32_t, void**);
    const auto create = reinterpret_cast<Create>(symbol("aoti_torch_create_cuda_stream_guard"));
    if (create(stream_, 0, &guard_) != 0) {
      throw std::runtime_error("aoti_torch_create_cuda_stream_guard failed");
    }
  }
  ~CurrentStream() {
    using Delete = int (*)(void*);
    reinterpret_cast<Delete>(symbol("aoti_torch_delete_cuda_stream_guard"))(guard_);
    cudaStreamDestroy(stream_);
  }
  CurrentStream(const CurrentStream&) = delete;
  CurrentStream& operator=(const CurrentStream&) = delete;

  cudaStream_t get() const { return stream_; }
  void synchronize() const {
    check_status(cudaStreamSynchronize(stream_), "cudaStreamSynchronize");
  }

 private:
  static void* symbol(const char* name) {
    void* found = dlsym(RTLD_DEFAULT, name);
    if (found == nullptr) {
      throw std::runtime_error(std::string("no symbol ") + name);
    }
    return found;
  }

  cudaStream_t stream_ = nullptr;
  void* guard_ = nullptr;
};

// What `work` launches on the current stream, as a graph.
class CapturedGraph {
 public:
  template <typename Work>
  CapturedGraph(const CurrentStream& stream, const Work& work) : stream_(stream) {
    check_status(cudaStreamBeginCapture(stream.get(), cudaStreamCaptureModeRelaxed),
                 "cudaStreamBeginCapture");
    work();
    cudaGraph_t graph = nullptr;
    check_status(cudaStreamEndCapture(stream.get(), &graph), "cudaStreamEndCapture");
    check_status(cudaGraphInstantiate(&executable_, graph, 0), "cudaGraphInstantiate");
    cudaGraphDestroy(graph);
  }
  ~CapturedGraph() { cudaGraphExecDestroy(executable_); }
  CapturedGraph(const CapturedGraph&) = delete;
  CapturedGraph& operator=(const CapturedGraph&) = delete;

  void launch() const {
    check_status(cudaGraphLaunch(executable_, stream_.get()), "cudaGraphLaunch");
  }

 private:
  const CurrentStream& stream_;
  cudaGraphExec_t executable_ = nullptr;
};

#endif  // GRAFT_WITH_CUDA

// The bits of a tensor as integers, so that NaN equals itself and -0 differs from 0.
inline at::Tensor bits_of(const at::Tensor& tensor) {
  return tensor.contiguous().view(tensor.element_size() == 4 ? at::kInt : at::kShort);
}

inline bool is_same_bits(const at::Tensor& a, const at::Tensor& b) {
  return at::equal(bits_of(a), bits_of(b));
}

// Number of elements that differ; NaN equals NaN, -0 equals 0.
inline int64_t count_different(const at::Tensor& a, const at::Tensor& b) {
  return at::logical_and(a.ne(b), at::logical_or(a.isnan(), b.isnan()).logical_not())
             .sum()
             .item<int64_t>() +
         a.isnan().ne(b.isnan()).sum().item<int64_t>();
}

inline double largest_error(const at::Tensor& value, const at::Tensor& exact) {
  if (value.numel() == 0) {
    return 0;
  }
  return (value.to(at::kDouble).cpu() - exact.cpu()).abs().max().item<double>();
}

}  // namespace graft_kernels::testing
