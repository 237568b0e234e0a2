// A layer of a Python-only kernel that `graft kernels aot` compiled ahead of time
// (python/graft_kernels/aot.py): AOTInductor's libraries, a description of them in aot.json, and one
// op in PyTorch's dispatcher in front, so that adapter, guard and trace are those of any package.
//
// The libraries lie in the variant folder as they are: no archive is unpacked when a layer is loaded,
// so what was hashed, looked at and run in the canary is what is opened.
#pragma once

#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include <ATen/core/ATenGeneral.h>
#include <c10/core/DeviceType.h>
#include <c10/core/ScalarType.h>

#include "graft/kernel/loader.h"
#include "graft/kernel/resolver.h"
#include "graft/kernel/sealed_library.h"

namespace graft::kernel {

// One compiled form of the layer.
struct CompiledForm {
  std::string file;  // of the variant folder
  at::ScalarType dtype = at::kFloat;
  int64_t columns = 0;        // width of rows that it serves; 0: any
  std::optional<double> eps;  // of a norm
};

// aot.json.
struct CompiledLayer {
  bool is_norm = false;
  at::DeviceType device = at::kCPU;
  std::vector<CompiledForm> forms;
};

// True where a variant folder is a compiled layer: there is an aot.json.
bool is_compiled_layer(const std::filesystem::path& folder);
// The same of copies that seal_compiled_layer() made.
bool is_compiled_layer(const SealedLibraries& libraries);

// Copies of aot.json and, after it, of the libraries that it names.
// Throws   as read_compiled_layer() and SealedLibrary.
SealedLibraries seal_compiled_layer(const std::filesystem::path& folder);

// Reads a sealed aot.json; nothing in it is ignored.
// Throws   FormatError `kernel.aot.<reason>`; IncompatibleError `kernel.aot.torch` for libraries of
//          another torch, `kernel.aot.processor` for a processor that this machine does not have.
CompiledLayer read_compiled_layer(const SealedLibrary& description);

// What aot.json says held against the package's metadata, and headers and symbols of every library
// against the process, as check_library() does for native packages.
// Throws   IncompatibleError `kernel.aot.device`; LoadError `kernel.elf.<reason>`; as above.
void check_compiled_layer(const std::string& repository, const Metadata& metadata,
                          const SealedLibraries& libraries);

// Opens the libraries for good and registers, for the device that they are made for,
//
//   RMSNorm      <id>::forward_out(Tensor! out, Tensor x, Tensor weight, float eps) -> ()
//   Activation   <id>::forward_out(Tensor! out, Tensor x) -> ()
//
// The op throws InvalidArgument `kernel.aot.{dtype,columns,tensors}` for what no library serves.
// Calls are serialised per library; safe inside CUDA-graph capture once a library has run.
// Throws   LoadError `kernel.aot.library` for a library that libtorch does not take,
//          `kernel.loader.id-taken`, `.foreign-ops`; FormatError for a broken layers.json.
// Devices  cpu, cuda (libtorch_cuda has to be open)
std::shared_ptr<LoadedKernel> open_compiled_layer(const std::string& repository,
                                                  const Resolution& resolution,
                                                  const SealedLibraries& libraries);

}  // namespace graft::kernel
