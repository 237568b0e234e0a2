// The op in front of a compiled layer's libraries (compiled_layer.h).

#include <map>
#include <mutex>

#include <c10/core/DeviceGuard.h>
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <torch/csrc/inductor/aoti_runner/model_container_runner.h>
#include <torch/library.h>

#include "graft/core/error.h"
#include "graft/kernel/compiled_layer.h"
#include "graft/kernel/open_kernel.h"

namespace graft::kernel {

namespace {

using Runner = torch::inductor::AOTIModelContainerRunner;

// A library in use: one runner for each device, since a runner's GPU code is loaded into one.
class CompiledLibrary {
 public:
  // Opens it on the first device of its kind.
  CompiledLibrary(CompiledForm form, at::DeviceType device,
                  std::shared_ptr<const SealedLibrary> library)
      : form_(std::move(form)), library_(std::move(library)) {
    runner(at::Device(device, device == at::kCPU ? -1 : 0));
  }

  const CompiledForm& form() const { return form_; }

  at::Tensor run(const std::vector<at::Tensor>& inputs) {
    const std::lock_guard lock(mutex_);
    const c10::OptionalDeviceGuard guard(inputs[0].is_cpu() ? std::nullopt
                                                            : std::optional(inputs[0].device()));
    return runner(inputs[0].device()).run(inputs).at(0);
  }

 private:
  Runner& runner(at::Device device) {
    auto& runner = runners_[device.index()];
    if (!runner) {
      const std::string kind = device.is_cpu() ? "cpu" : "cuda";
      try {
        // Single-threaded: without it every run waits for the one before it, which no CUDA graph
        // can hold. No folder of GPU code: it is inside the library.
        runner = torch::inductor::getAOTIModelRunnerRegistry().at(kind)(
            library_->path().string(), 1, device.str(), "", /*run_single_threaded=*/true);
      } catch (const std::exception& error) {
        throw LoadError("kernel.aot", "library",
                        fmt::format("`{}`: expected a library of AOTInductor that libtorch takes, "
                                    "got: {}",
                                    library_->file().string(), first_line(error.what())));
      }
    }
    return *runner;
  }

  static std::string first_line(const std::string& text) {
    return text.substr(0, std::min(text.find('\n'), size_t{300}));
  }

  CompiledForm form_;
  std::shared_ptr<const SealedLibrary> library_;
  std::mutex mutex_;
  std::map<c10::DeviceIndex, std::unique_ptr<Runner>> runners_;
};

using CompiledLibraries = std::vector<std::unique_ptr<CompiledLibrary>>;

std::string describe(const CompiledForm& form) {
  return fmt::format("{} {}{}", c10::toString(form.dtype),
                     form.columns == 0 ? "any width" : fmt::to_string(form.columns),
                     form.eps ? fmt::format(" eps {}", *form.eps) : "");
}

// forward_out, boxed: the schema says how many arguments there are.
class Forward final : public c10::OperatorKernel {
 public:
  Forward(std::string id, bool is_norm, CompiledLibraries libraries)
      : id_(std::move(id)), is_norm_(is_norm), libraries_(std::move(libraries)) {}

  void operator()(const c10::OperatorHandle&, c10::DispatchKeySet, torch::jit::Stack* stack) {
    const size_t count = is_norm_ ? 4 : 2;
    const auto arguments = torch::jit::last(*stack, count);
    at::Tensor out = arguments[0].toTensor();
    const at::Tensor x = arguments[1].toTensor();
    const at::Tensor weight = is_norm_ ? arguments[2].toTensor() : at::Tensor();
    check_tensors(out, x, weight);
    if (x.numel() > 0) {
      const auto eps = is_norm_ ? std::optional(arguments[3].toDouble()) : std::nullopt;
      CompiledLibrary& library = choose(x, eps);
      const at::Tensor result =
          is_norm_ ? library.run({x.reshape({-1, x.size(-1)}).contiguous(), weight.contiguous()})
                   : library.run({x.contiguous().view(-1)});
      out.copy_(result.view(out.sizes()));
    }
    torch::jit::drop(*stack, count);
  }

 private:
  // The libraries look at nothing themselves: they would read past the end.
  void check_tensors(const at::Tensor& out, const at::Tensor& x, const at::Tensor& weight) const {
    const bool fits_weight =
        !is_norm_ || (x.dim() > 0 && weight.dim() == 1 && weight.size(0) == x.size(-1) &&
                      weight.scalar_type() == x.scalar_type() && weight.device() == x.device());
    if (!fits_weight || out.sizes() != x.sizes() || out.device() != x.device()) {
      throw InvalidArgument("kernel.aot", "tensors",
                            fmt::format("`{}`: expected tensors of one dtype on one device, out as "
                                        "x and a weight as long as its rows, got others",
                                        id_));
    }
  }

  CompiledLibrary& choose(const at::Tensor& x, std::optional<double> eps) const {
    const CompiledForm asked{"", x.scalar_type(), is_norm_ ? x.size(-1) : 0, eps};
    std::vector<std::string> served;
    bool has_dtype = false;
    for (const auto& library : libraries_) {
      const CompiledForm& form = library->form();
      if (form.dtype == asked.dtype && form.eps == eps &&
          (form.columns == 0 || form.columns == asked.columns)) {
        return *library;
      }
      has_dtype |= form.dtype == asked.dtype;
      served.push_back(describe(form));
    }
    throw InvalidArgument("kernel.aot", has_dtype ? "columns" : "dtype",
                          fmt::format("`{}`: expected what it was compiled for ({}), got {}", id_,
                                      fmt::join(served, "; "), describe(asked)),
                          "compile the layer with --dtype, --columns and --eps of the model");
  }

  std::string id_;
  bool is_norm_;
  CompiledLibraries libraries_;
};

void register_op(const std::string& id, const CompiledLayer& layer, CompiledLibraries libraries) {
  const char* schema = layer.is_norm
                           ? "forward_out(Tensor! out, Tensor x, Tensor weight, float eps) -> ()"
                           : "forward_out(Tensor! out, Tensor x) -> ()";
  const auto key = layer.device == at::kCPU ? c10::DispatchKey::CPU : c10::DispatchKey::CUDA;
  // Never taken back, as a library is never closed.
  auto* ops = new torch::Library(torch::Library::DEF, id, std::nullopt, __FILE__, __LINE__);
  ops->def(schema);
  ops->impl("forward_out",
            torch::dispatch(key, torch::CppFunction::makeFromBoxedFunctor(std::make_unique<Forward>(
                                     id, layer.is_norm, std::move(libraries)))));
}

}  // namespace

std::shared_ptr<LoadedKernel> open_compiled_layer(const std::string& repository,
                                                  const Resolution& resolution,
                                                  const SealedLibraries& libraries) {
  auto kernel = describe_kernel(repository, resolution);
  const CompiledLayer layer = read_compiled_layer(*libraries.at(0));
  if (!kernel->op_names().empty()) {
    throw LoadError("kernel.loader", "id-taken",
                    fmt::format("`{}`: expected an id of its own, but ops of `{}` are in the "
                                "process already",
                                repository, kernel->metadata.id));
  }
  check_no_foreign_ops(repository, resolution.metadata.id, [&] {
    CompiledLibraries opened;
    for (size_t i = 0; i < layer.forms.size(); ++i) {
      opened.push_back(
          std::make_unique<CompiledLibrary>(layer.forms[i], layer.device, libraries.at(i + 1)));
    }
    register_op(resolution.metadata.id, layer, std::move(opened));
  });
  return kernel;
}

}  // namespace graft::kernel
