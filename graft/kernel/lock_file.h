// `kernels.lock`: which commit each kernel is at. Both forms of Python's `kernels` are read and
// written byte for byte: that of 0.17 and later, and the older one with hashes of contents.
//
//   kernels.lock          commits             [{"dependency": {"repo-id", "version"},
//                                               "lock": {"commit"}}]
//   kernels.hashes.lock   graft's extension, in the older form: a hash of every variant
//
// Python refuses unknown keys, so the hashes lie in a file beside the lock; `kernels` 0.16 and
// earlier read that file as theirs.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "graft/hub/client.h"

namespace graft::kernel {

struct LockedEntry {
  std::string repo_id;
  std::optional<int64_t> version;  // exactly one of version and revision; of an older file neither
  std::string revision;
  std::string commit;                         // 40 or 64 hexadecimal digits
  std::map<std::string, std::string> hashes;  // variant -> 64 hexadecimal digits; may be empty
  size_t line = 0;                            // in the file that was read; 0: none

  std::string name() const;  // `org/repo@v1`
};

struct LockFile {
  std::filesystem::path path;
  std::vector<LockedEntry> entries;
};

// Parses either form.
// Throws   FormatError `kernel.lock.<reason>` with the line: json, duplicate-key, conflict (markers
//          of a merge), unknown-key, missing-key, type, repo-id, commit, hash, duplicate.
LockFile parse_lock(std::string_view text, const std::filesystem::path& path);

// Reads a lock and, where it lies beside it, the file with hashes; both have to name the same
// commits. Throws also   NotFound `io.file.open`; FormatError `kernel.lock.hashes`.
LockFile read_lock_file(const std::filesystem::path& path);

// The text of the newer form, as `kernels lock` writes it. Entries are sorted.
std::string lock_text(const LockFile& lock);

// The text of the older form. Entries without hashes are left out.
std::string hashes_text(const LockFile& lock);

// `kernels.lock` -> `kernels.hashes.lock`.
std::filesystem::path hashes_path(const std::filesystem::path& lock);

// The older form's hash over a variant: SHA-256 over the sorted (path inside the variant, git or
// large-storage id as raw bytes). Bytecode is left out.
std::string variant_hash(const std::vector<hub::RepoFile>& files, std::string_view variant);

}  // namespace graft::kernel
