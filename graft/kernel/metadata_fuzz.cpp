// Any bytes as a package's metadata.json and layers.json: read strictly or refused, and every path of the
// digest stays inside the package.
#include <filesystem>
#include <string>

#include "graft/core/error.h"
#include "graft/io/fuzz_file.h"
#include "graft/kernel/metadata.h"

namespace {

namespace fs = std::filesystem;

bool leaves(const std::string& path) {
  const fs::path normal = fs::path(path).lexically_normal();
  return path.empty() || normal.is_absolute() || normal.string().starts_with("..") ||
         path.find('\\') != std::string::npos || path.find('\0') != std::string::npos;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const graft::io::FuzzFolder kPackage;
  for (const char* name : {"metadata.json", "layers.json"}) {
    kPackage.write(name, data, size);
  }
  try {
    const auto metadata = graft::kernel::read_metadata(kPackage.path() / "metadata.json");
    graft::kernel::arch_fits(metadata.archs, 90);
    if (metadata.id.empty() || metadata.version < 0) {
      __builtin_trap();
    }
    if (metadata.digest) {
      for (const auto& [path, digest] : metadata.digest->files) {
        if (leaves(path)) {
          __builtin_trap();
        }
      }
    }
  } catch (const graft::FormatError&) {
  }
  try {
    graft::kernel::read_layers(kPackage.path());
  } catch (const graft::FormatError&) {
  }
  return 0;
}
