// Any bytes as model.safetensors.index.json beside three shards: what opens holds every tensor it lists.
#include <filesystem>

#include "graft/core/error.h"
#include "graft/io/checkpoint.h"
#include "graft/io/fuzz_file.h"

namespace {

namespace fs = std::filesystem;

constexpr char kShards[] = "tests/data/models/llama_sharded";  // from the repository's root

// A folder with the shards and no index yet.
const graft::io::FuzzFolder& model() {
  static const graft::io::FuzzFolder kFolder;
  static const bool kCopied = [] {
    for (const auto& entry : fs::directory_iterator(kShards)) {
      if (entry.path().filename().string().starts_with("model-")) {
        fs::copy(entry.path(), kFolder.path() / entry.path().filename());
      }
    }
    return true;
  }();
  (void)kCopied;
  return kFolder;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  model().write("model.safetensors.index.json", data, size);
  try {
    const auto checkpoint = graft::io::Checkpoint::open(model().path());
    for (const auto& name : checkpoint.names()) {
      if (checkpoint.find(name) == nullptr || checkpoint.shard_of(name).find(name) == nullptr) {
        __builtin_trap();
      }
    }
  } catch (const graft::Error&) {
  }
  return 0;
}
