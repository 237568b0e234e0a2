// What the MODEL argument of a command means.
#pragma once

#include <filesystem>
#include <string>

namespace graft::cli {

// Returns the model to load: the argument itself, or for an empty one the demo model:
// GRAFT_DEMO_MODEL, else the .gguf file under share/graft/models beside the program. Throws
// NotFound when there is no demo model.
std::string resolve_model(const std::string& argument);

// Returns the folder, or the .gguf or tokenizer.json file, that MODEL names: a path, or the
// snapshot of a Hub id in the local cache (revision: branch, tag or commit; empty: `main`).
// gguf_file: a file inside that folder. Throws NotFound; nothing is asked of the network.
std::filesystem::path locate_model(const std::string& argument, const std::string& gguf_file = {},
                                   const std::string& revision = {});

// True for a path that names a .gguf file.
bool is_gguf_file(const std::filesystem::path& path);

}  // namespace graft::cli
