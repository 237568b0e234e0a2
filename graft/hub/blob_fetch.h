// The bytes of one file from the Hub into one blob of the cache.
#pragma once

#include <atomic>
#include <filesystem>
#include <functional>

#include "graft/hub/download.h"

namespace graft::hub {

struct BlobFetch {
  const FileSource& source;
  const RepoFile& file;
  std::filesystem::path blob;
  int connections = 1;  // for ranges of this file
  const std::atomic<bool>& stop;
  std::function<void(uint64_t done_bytes)> report;  // from any thread
};

// Takes over what an earlier process left, transfers what is missing, checks the hash over the whole, and gives it its name; a wrong hash is
// tried once more from the beginning. What a broken transfer brought is left for the next one. No two
// callers ever write one file, whether locks work or not.
// Throws   as download_files; Cancelled when `stop` became true.
void fetch_blob(const BlobFetch& fetch);

}  // namespace graft::hub
