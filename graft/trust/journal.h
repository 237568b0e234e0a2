// What was decided about which package, kept beyond the cache: a file of one JSON object a line to
// which lines are only added. It shows what ran on this machine and when, and lets a later decision
// notice a branch that moved back, a commit whose content changed, and a signer that went away.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

namespace graft::trust {

struct JournalEntry {
  int64_t time_s = 0;  // since 1970
  std::string repository;
  std::string origin;  // `hub`, `local`, `embedded`; `publisher`: the Hub's word (publisher.h)
  std::string ref;     // the branch or version that led here; empty: a commit was named
  std::string commit;
  std::string variant;
  std::string digest;  // of the content (signature.h); empty: it was about to be fetched
  std::string signer;  // empty: not signed
  bool allowed = false;
  std::string reason;         // of the verdict
  std::string endpoint = {};  // of the Hub; empty: another origin, or not known
};

class Journal {
 public:
  // Reads the file. Lines that are torn or not ours are passed over; num_broken() counts them.
  explicit Journal(std::filesystem::path file);

  const std::filesystem::path& file() const { return file_; }
  const std::vector<JournalEntry>& entries() const { return entries_; }
  size_t num_broken() const { return num_broken_; }

  // Adds a line unless the same was written less than a day before and still is the last word on its
  // subject, and syncs it to disk. Safe among
  // processes, with and without working locks: a line goes out in one write. A file that has grown
  // beyond 1 MiB is written anew without what is repeated, the newest first sightings kept.
  // Returns false where nothing can be written. Blocks a few milliseconds.
  bool add(JournalEntry entry);

 private:
  void read();
  void shorten();

  std::filesystem::path file_;
  std::vector<JournalEntry> entries_;
  size_t num_broken_ = 0;
};

// GRAFT_TRUST_JOURNAL, else ${XDG_STATE_HOME:-~/.local/state}/graft/trust.jsonl.
std::filesystem::path journal_file();

// `2026-11-26T13:40:20Z`.
std::string format_time(int64_t time_s);

}  // namespace graft::trust
