#include "cli/doctor_checks.h"

#include <algorithm>
#include <fstream>
#include <limits>
#include <optional>
#include <system_error>

#include <dlfcn.h>
#include <fmt/format.h>
#include <sched.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "cli/output.h"

namespace graft::cli {

namespace {

namespace fs = std::filesystem;

constexpr uint64_t kMiB = uint64_t{1} << 20;
// The demo's model takes half a gigabyte; one of a billion weights in bfloat16 takes two.
constexpr uint64_t kLeastMemory = 512 * kMiB;
constexpr uint64_t kUsualMemory = 2048 * kMiB;
constexpr uint64_t kLeastDisk = 1024 * kMiB;
constexpr uint64_t kUsualDisk = 10 * 1024 * kMiB;

// The first number of a one-number file (`max` and what is missing count as none).
std::optional<uint64_t> number_in(const char* path) {
  std::ifstream file(path);
  uint64_t value = 0;
  return file >> value ? std::optional(value) : std::nullopt;
}

uint64_t system_memory() {
  std::ifstream meminfo("/proc/meminfo");
  for (std::string line; std::getline(meminfo, line);) {
    if (line.starts_with("MemAvailable:")) {
      return std::stoull(line.substr(line.find(':') + 1)) * 1024;
    }
  }
  return static_cast<uint64_t>(sysconf(_SC_AVPHYS_PAGES)) *
         static_cast<uint64_t>(sysconf(_SC_PAGESIZE));
}

// What is left of a container's limit, where there is one: control groups 2, then 1.
uint64_t group_memory() {
  constexpr const char* kFiles[][2] = {
      {"/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"},
      {"/sys/fs/cgroup/memory/memory.limit_in_bytes",
       "/sys/fs/cgroup/memory/memory.usage_in_bytes"}};
  for (const auto& [limit_file, usage_file] : kFiles) {
    const auto limit = number_in(limit_file);
    const auto usage = number_in(usage_file);
    if (limit && usage) {
      return *limit > *usage ? *limit - *usage : 0;
    }
  }
  return std::numeric_limits<uint64_t>::max();
}

// The folder, or the nearest above it that exists.
fs::path existing_part(fs::path folder) {
  std::error_code ignored;
  while (folder.has_relative_path() && !fs::exists(folder, ignored)) {
    folder = folder.parent_path();
  }
  return folder.empty() ? fs::path(".") : folder;
}

// What one of CUDA's version functions says, as major * 10 + minor; 0 where there is none.
int version_from(void* library, const char* function) {
  using GetVersion = int (*)(int*);
  const auto get_version = reinterpret_cast<GetVersion>(dlsym(library, function));
  int version = 0;
  return get_version != nullptr && get_version(&version) == 0
             ? version / 1000 * 10 + version % 1000 / 10
             : 0;
}

int driver_cuda_version() {
  void* library = dlopen("libcuda.so.1", RTLD_LAZY | RTLD_LOCAL);
  return library == nullptr ? 0 : version_from(library, "cuDriverGetVersion");
}

// Of the runtime that came with libtorch_cuda; it answers without a driver too.
int runtime_cuda_version() { return version_from(RTLD_DEFAULT, "cudaRuntimeGetVersion"); }

std::string dotted(int version) { return fmt::format("{}.{}", version / 10, version % 10); }

}  // namespace

std::string_view health_name(Health health) {
  switch (health) {
    case Health::kOk:
      return "ok";
    case Health::kWarn:
      return "warn";
    case Health::kFail:
      return "fail";
  }
  return "";
}

Check check_memory() {
  const uint64_t bytes = std::min(system_memory(), group_memory());
  const std::string found = format_bytes(bytes) + " free";
  const std::string hint =
      "close other programs, raise the container's limit, or choose a smaller "
      "model, a GGUF file or --dtype bfloat16";
  if (bytes < kLeastMemory) {
    return {"memory", Health::kFail, found,
            "the smallest models take " + format_bytes(kLeastMemory), hint};
  }
  if (bytes < kUsualMemory) {
    return {"memory", Health::kWarn, found,
            "a model of a billion weights takes " + format_bytes(kUsualMemory) + " in bfloat16",
            hint};
  }
  return {"memory", Health::kOk, found, "", ""};
}

Check check_processor(std::string_view capability) {
  std::string found(capability);
  if (__builtin_cpu_supports("avx512bf16")) {
    found += ", AVX512_BF16";
  }
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) {
    return {"processor", Health::kWarn, found,
            "kernels on the CPU run without vector instructions, several times slower",
            "use a processor (or a virtual machine's CPU model) with AVX2 and FMA"};
  }
  if (capability == "DEFAULT") {
    return {"processor", Health::kWarn, found, "libtorch was told to leave vector instructions out",
            "unset ATEN_CPU_CAPABILITY"};
  }
  return {"processor", Health::kOk, found, "", ""};
}

Check check_threads(int num_threads) {
  cpu_set_t allowed;
  CPU_ZERO(&allowed);
  const int num_processors =
      sched_getaffinity(0, sizeof(allowed), &allowed) == 0 ? CPU_COUNT(&allowed) : num_threads;
  const std::string found = fmt::format("{} on {} processors", num_threads, num_processors);
  if (num_threads > num_processors) {
    return {"threads", Health::kWarn, found, "threads that share a processor wait for each other",
            fmt::format("set OMP_NUM_THREADS={}", num_processors)};
  }
  return {"threads", Health::kOk, found, "", ""};
}

Check check_cuda(bool is_available) {
  const int driver = driver_cuda_version();
  const int runtime = runtime_cuda_version();
  const std::string built =
      runtime == 0 ? "libtorch without CUDA" : "libtorch for CUDA " + dotted(runtime);
  if (driver == 0) {
    return {"cuda", Health::kOk, "no driver, " + built + ": models run on the CPU", "", ""};
  }
  const std::string found = fmt::format("driver for CUDA {}, {}", dotted(driver), built);
  if (runtime == 0) {
    return {"cuda", Health::kWarn, found, "models run on the CPU",
            "install a torch wheel with CUDA and build graft against it"};
  }
  if (driver / 10 < runtime / 10) {  // minor versions of one major run on each other
    return {"cuda", Health::kFail, found,
            fmt::format("the driver is older than CUDA {}", runtime / 10),
            fmt::format("install a driver for CUDA {} or later, or a torch wheel for CUDA {}",
                        runtime / 10, driver / 10)};
  }
  if (!is_available) {
    return {"cuda", Health::kWarn, found, "libtorch sees no device",
            "look at `nvidia-smi`, CUDA_VISIBLE_DEVICES and the container's options (--gpus all)"};
  }
  return {"cuda", Health::kOk, found, "", ""};
}

Check check_cache(const fs::path& folder) {
  const fs::path existing = existing_part(folder);
  std::error_code ignored;
  const bool writable =
      fs::is_directory(existing, ignored) && access(existing.c_str(), W_OK | X_OK) == 0;
  if (!writable) {
    return {"cache", Health::kWarn, folder.string(),
            fmt::format("`{}` cannot be written: nothing can be downloaded", existing.string()),
            "set HF_HOME to a folder of your own"};
  }
  return {"cache", Health::kOk, folder.string(), "", ""};
}

Check check_disk(const fs::path& folder) {
  struct statvfs status {};
  const fs::path existing = existing_part(folder);
  if (statvfs(existing.c_str(), &status) != 0) {
    return {"disk", Health::kWarn, "unknown",
            fmt::format("the free space of `{}` could not be asked for", existing.string()),
            "set HF_HOME to a folder of your own"};
  }
  const uint64_t bytes = uint64_t{status.f_bavail} * status.f_frsize;
  const std::string found = format_bytes(bytes) + " free";
  const std::string hint = "free space, or set HF_HOME to a folder on a larger disk";
  if (bytes < kLeastDisk) {
    return {"disk", Health::kFail, found, "no model can be downloaded", hint};
  }
  if (bytes < kUsualDisk) {
    return {"disk", Health::kWarn, found,
            "a model of five billion weights takes " + format_bytes(kUsualDisk), hint};
  }
  return {"disk", Health::kOk, found, "", ""};
}

}  // namespace graft::cli
