#include <dlfcn.h>

#include "graft/core/env.h"
#include "graft/trust/sigstore/trusted_root.h"

namespace graft::trust::sigstore {

namespace fs = std::filesystem;

fs::path trusted_root_file() {
  if (const auto named = env::get("GRAFT_TRUSTED_ROOT")) {
    return *named;
  }
  Dl_info info{};
  dladdr(reinterpret_cast<const void*>(&trusted_root_file), &info);
  const fs::path shipped = fs::weakly_canonical(fs::path(info.dli_fname)).parent_path() /
                           "../share/graft/sigstore/trusted_root.json";
  std::error_code status;
  return fs::exists(shipped, status) ? shipped.lexically_normal() : fs::path();
}

}  // namespace graft::trust::sigstore
