// The helper process in which a package runs first: started, watched, ended, and judged by how it
// ended. Internal to the room.
#pragma once

#include <chrono>
#include <cstdint>
#include <filesystem>

#include "graft/kernel/canary_verdict.h"
#include "graft/kernel/resolver.h"
#include "graft/kernel/sealed_library.h"

namespace graft::kernel {

struct CanaryLimits {
  std::chrono::duration<double> start{60.0};  // until the helper is ready to open the package
  std::chrono::duration<double> run{30.0};    // from then on
  uint64_t memory_bytes = uint64_t{4} << 30;  // beyond what the helper has by itself
  uint64_t output_bytes = 64 << 10;           // of text on stdout and stderr
  uint64_t scratch_bytes = 64 << 20;          // of files
};

// `graft_helpers/graft-canary` beside the library that holds this function: there for the program,
// for applications that link graft, and for Python alike.
std::filesystem::path canary_program();

// Runs the package in the helper: isolated, opened, each layer's guard, on the CPU or (for a CUDA
// variant) on the first CUDA device. Only the sealed copies are opened.
//
// require_isolation  whether the package is left alone (verdict not-isolated) where the system does
//                    not offer all of it; else what is missing is listed in the verdict's gaps
// Returns a verdict in every case; throws nothing but std::bad_alloc. Blocks up to the limits.
CanaryVerdict run_canary(const std::string& repository, const Resolution& resolution,
                         const SealedLibraries& libraries, bool require_isolation,
                         const CanaryLimits& limits);

}  // namespace graft::kernel
