// Content hashes of a variant folder, as kernel-builder writes them into metadata.json.
#pragma once

#include <filesystem>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "graft/kernel/metadata.h"

namespace graft::kernel {

// Compares every file of a variant folder with its digest, both ways: missing, unknown and changed
// files, links that leave the repository, and what is no regular file. Left out: metadata.json,
// metadata.json.sigstore, folders `__pycache__`.
// Returns all violations; none means that the folder is what was published. Reads every file once.
//
// sealed  what to hash instead of a file of that relative path: the copy that will be loaded
std::vector<std::string> digest_violations(
    const std::filesystem::path& folder, const Digest& digest,
    const std::map<std::string, std::filesystem::path>& sealed = {});

// Lower-case hexadecimal SHA-256 of a text.
std::string text_hash(std::string_view text);

// Standard base64 of the hash of a file (`sha256` or `sha512`). Throws NotFound.
std::string file_hash(const std::filesystem::path& file, const std::string& algorithm);

}  // namespace graft::kernel
