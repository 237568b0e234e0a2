// What `graft doctor` looks at beside libtorch: each look is one line that says ok, warn or fail,
// and, where it is not ok, why it matters and what to do.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

namespace graft::cli {

enum class Health { kOk, kWarn, kFail };

std::string_view health_name(Health health);  // `ok`, `warn`, `fail`

struct Check {
  std::string name;
  Health health = Health::kOk;
  std::string found;   // the fact
  std::string reason;  // why it is not ok; empty for ok
  std::string hint;    // the way on; empty for ok
};

// Memory that a model may take now: what the system has to give, or what is left of the limit of
// this process's control group.
Check check_memory();

// Vector instructions of the processor. capability  as libtorch names it.
Check check_processor(std::string_view capability);

// Threads of libtorch beside the processors that this process may run on.
Check check_threads(int num_threads);

// The driver beside the CUDA that libtorch brought into the process.
// is_available  whether libtorch can use a device; asking for that is what opens CUDA.
Check check_cuda(bool is_available);

// What Sigstore signatures are held against: where it comes from, and until when it helps.
Check check_trusted_root();

// Whose kernels may run, or why that cannot be read.
Check check_policy();

// What the system offers to keep a package in while it runs here for the first time.
Check check_isolation();

// Whether downloads can be kept: a folder that can be written, and room in it. Creates nothing.
Check check_cache(const std::filesystem::path& folder);
Check check_disk(const std::filesystem::path& folder);

}  // namespace graft::cli
