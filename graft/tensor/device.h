// Devices by name, and opening CUDA only when it is asked for: libtorch_cuda costs half a second
// and 340 MB, so the library links the CPU part alone.
#pragma once

#include <filesystem>
#include <optional>
#include <string>
#include <string_view>

#include <ATen/ATen.h>

namespace graft::tensor {

// `cpu`, `cuda`, `cuda:1`.
// Throws   InvalidArgument for anything else.
c10::Device parse_device(std::string_view text);

// `auto` gives nothing; `float32`, `bfloat16`, `float16` (and `fp32`, `bf16`, `fp16`) their dtype.
// Throws   InvalidArgument for anything else.
std::optional<c10::ScalarType> parse_dtype(std::string_view text);

// `float32`, `bfloat16`, …
std::string dtype_name(c10::ScalarType dtype);

// Opens libtorch_cuda from libtorch's own folder and checks that the device exists. Does nothing
// for a CPU device. Thread-safe.
// Throws   DeviceError `tensor.device.*`: cuda-library (this
// libtorch has none), no-device (no driver or
//          GPU), too-late (libtorch was asked for CUDA before this opened it), index.
void ensure_device(const c10::Device& device);

// True when a CUDA device can be used; opens libtorch_cuda to find out. Never throws.
bool cuda_available();

// Compute capability as major * 10 + minor; 0 for the CPU.
int capability(const c10::Device& device);

// Version of CUDA that libtorch was built with, as major * 10 + minor (13.0 is 130); 0 without
// CUDA.
int torch_cuda_version();

// The folder that holds libtorch_cpu.so.
std::filesystem::path torch_library_folder();

}  // namespace graft::tensor
