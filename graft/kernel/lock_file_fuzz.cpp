// Any bytes as kernels.lock, of either form: what is taken names repositories and commits that can be, and
// survives being written and read again.
#include <string_view>

#include "graft/core/error.h"
#include "graft/hub/cache.h"
#include "graft/kernel/lock_file.h"

namespace {

using graft::kernel::LockFile;

void require(bool holds) {
  if (!holds) {
    __builtin_trap();
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  LockFile lock;
  try {
    lock = graft::kernel::parse_lock({reinterpret_cast<const char*>(data), size}, "kernels.lock");
  } catch (const graft::FormatError&) {
    return 0;
  }
  bool has_new_form = true;
  for (const auto& entry : lock.entries) {
    require(graft::hub::is_repo_id(entry.repo_id));
    require(entry.commit.size() == 40 || entry.commit.size() == 64);
    require(!entry.version || *entry.version >= 0);
    has_new_form = has_new_form && (entry.version.has_value() || !entry.revision.empty());
  }
  if (has_new_form) {
    const auto text = graft::kernel::lock_text(lock);
    require(graft::kernel::lock_text(graft::kernel::parse_lock(text, "kernels.lock")) == text);
  }
  const auto hashes = graft::kernel::hashes_text(lock);
  require(graft::kernel::hashes_text(graft::kernel::parse_lock(hashes, "kernels.lock")) == hashes);
  return 0;
}
