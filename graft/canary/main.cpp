// graft-canary: opens one kernel package under isolation and runs its layers, started by
// graft/kernel/canary_process.cpp with a request on descriptor 0 and answered on descriptor 3.

#include <csignal>
#include <iterator>
#include <string>

#include <dlfcn.h>
#include <fmt/format.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "graft/canary/isolation.h"
#include "graft/canary/layer_checks.h"
#include "graft/canary/report.h"
#include "graft/core/error.h"
#include "graft/kernel/compiled_layer.h"
#include "graft/kernel/open_kernel.h"
#include "graft/tensor/device.h"

namespace graft::canary {

namespace {

std::string read_request() {
  std::string text;
  char buffer[4096];
  for (ssize_t size = 0; (size = read(kernel::kCanaryRequest, buffer, sizeof(buffer))) > 0;) {
    text.append(buffer, static_cast<size_t>(size));
  }
  return text;
}

// The libraries that libtorch_cuda needs lie in folders that only it knows: they are opened while files are
// within reach, which asks nothing of the device yet. Failure is seen in start_cuda().
void open_cuda_libraries() {
  const auto library = tensor::torch_library_folder() / "libtorch_cuda.so";
  dlopen(library.c_str(), RTLD_NOW | RTLD_GLOBAL);
}

// Empty, or why CUDA does not work in here. What kernels and their references use is tried, copies, sums,
// products, so that walls that are too narrow are not taken for a package's fault.
std::string start_cuda(at::Device device) {
  try {
    tensor::ensure_device(device);
    for (const auto dtype : {at::kFloat, at::kHalf, at::kBFloat16}) {
      const at::Tensor ones = at::ones({64, 64}).to(device).to(dtype);
      const at::Tensor product = at::matmul(ones, ones);
      const bool is_right = (product == 64).all().item<bool>() &&
                            at::equal(product.softmax(-1).to(at::kCPU),
                                      at::full({64, 64}, 1.0 / 64, at::TensorOptions(dtype)));
      if (!is_right) {
        return "CUDA: products of ones gave other numbers";
      }
    }
    return "";
  } catch (const std::exception& error) {
    return fmt::format("CUDA does not start under isolation: {}", error.what());
  }
}

kernel::CanaryVerdict open_and_check(const kernel::CanaryRequest& request, at::Device device) {
  kernel::SealedLibraries libraries;
  for (const auto& file : request.libraries) {
    const int descriptor = kernel::kCanaryLibrary + static_cast<int>(libraries.size());
    libraries.push_back(std::make_shared<const kernel::SealedLibrary>(descriptor, file));
  }
  report_line(kernel::kReportOpening);
  if (kernel::is_compiled_layer(libraries)) {
    kernel::check_compiled_layer(request.repository, request.resolution.metadata, libraries);
    return check_layers(
        *kernel::open_compiled_layer(request.repository, request.resolution, libraries), device);
  }
  const auto& library = libraries.at(0);
  kernel::check_library(request.repository, request.resolution.metadata.id, *library);
  const auto opened =
      kernel::open_kernel(request.repository, request.resolution, library, /*is_open=*/false);
  return check_layers(*opened, device);
}

int run() {
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  const kernel::CanaryRequest request = kernel::parse_canary_request(read_request());
  syscall(SYS_close_range, kernel::kCanaryLibrary + request.libraries.size(), ~0U,
          0);  // whatever we inherited
  const bool cuda = request.resolution.metadata.backend == "cuda";
  const at::Device device = cuda ? at::Device(at::kCUDA, 0) : at::Device(at::kCPU);
  if (chdir((request.folder / "scratch").c_str()) != 0) {
    report_and_end("not_isolated", "the scratch folder cannot be entered");
  }
  if (cuda) {
    open_cuda_libraries();
  }
  const auto gaps = isolate(request);
  for (const auto& gap : gaps) {
    report("gap", gap);
  }
  if (!gaps.empty() && request.require_isolation) {
    report_and_end("not_isolated", "not all of the isolation holds");
  }
  if (const std::string failure = cuda ? start_cuda(device) : ""; !failure.empty()) {
    report_and_end("not_isolated", failure);
  }
  be_strict(request);
  try {
    const auto verdict = open_and_check(request, device);
    auto line = kernel::to_json(verdict);
    line["done"] = true;
    report_line(line.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace));
  } catch (const Error& error) {
    report_and_end("load", error.what());
  }
  _exit(0);  // what the package would do at the end is not asked
}

}  // namespace

}  // namespace graft::canary

int main() {
  try {
    return graft::canary::run();
  } catch (const std::exception& error) {
    graft::canary::report_and_end("load", error.what());
  }
}
