// Whoever may write the cache may write its listings: what is read from them stays below the snapshot.
#include <string>

#include "graft/hub/cache.h"
#include "graft/hub/content_hash.h"
#include "graft/hub/listing.h"
#include "graft/hub/payload.h"
#include "graft/io/fuzz_file.h"

namespace {

void require(bool holds) {
  if (!holds) {
    __builtin_trap();
  }
}

void require_sane(const std::vector<graft::hub::RepoFile>& files) {
  for (const auto& file : files) {
    require(graft::hub::is_safe_path(file.path) && graft::hub::is_content_id(file.content_id()));
    require(file.size_bytes <= graft::hub::kMaxFileBytes);
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const graft::io::FuzzFolder kRepository;
  const std::string commit(40, 'a');
  for (const char* ending : {".json", ".graft.json"}) {
    kRepository.write("trees/" + commit + ending, data, size);
  }
  if (const auto files = graft::hub::read_tree(kRepository.path(), commit)) {
    require_sane(*files);
  }
  if (const auto listing = graft::hub::read_kernel_listing(kRepository.path(), commit)) {
    for (const auto& [variant, files] : listing->files) {
      require_sane(files);
    }
    for (const auto& variant : listing->variants) {
      require(graft::hub::is_safe_path(variant) && variant.find('/') == std::string::npos);
    }
  }
  return 0;
}
