#include "graft/trust/journal.h"

#include <algorithm>
#include <cerrno>
#include <ctime>
#include <fstream>
#include <iterator>
#include <optional>
#include <set>
#include <tuple>

#include <fcntl.h>
#include <fmt/chrono.h>
#include <fmt/format.h>
#include <nlohmann/json.hpp>
#include <sys/stat.h>
#include <unistd.h>

#include "graft/core/env.h"
#include "graft/core/error.h"
#include "graft/core/file_lock.h"
#include "graft/hub/disk.h"

namespace graft::trust {

namespace {

namespace fs = std::filesystem;
using nlohmann::json;

constexpr size_t kMaxFileBytes = 1 << 20;
constexpr size_t kMaxLineBytes = 4096;
constexpr size_t kKeptEntries = 1024;
constexpr int64_t kRepeatAfterS = 24 * 60 * 60;
constexpr std::chrono::seconds kLockTimeout{5};

std::string line_of(const JournalEntry& entry) {
  const json object = {{"schema", 1},
                       {"time_s", entry.time_s},
                       {"time", format_time(entry.time_s)},
                       {"repository", entry.repository},
                       {"origin", entry.origin},
                       {"ref", entry.ref},
                       {"commit", entry.commit},
                       {"variant", entry.variant},
                       {"digest", entry.digest},
                       {"signer", entry.signer},
                       {"allowed", entry.allowed},
                       {"reason", entry.reason},
                       {"endpoint", entry.endpoint}};
  return object.dump(-1, ' ', true, json::error_handler_t::replace) + "\n";
}

std::optional<JournalEntry> entry_of(std::string_view line) {
  const json object =
      line.size() > kMaxLineBytes ? json() : json::parse(line, nullptr, /*allow_exceptions=*/false);
  JournalEntry entry;
  try {
    if (object.at("schema") != 1) {
      return std::nullopt;
    }
    object.at("time_s").get_to(entry.time_s);
    object.at("repository").get_to(entry.repository);
    object.at("origin").get_to(entry.origin);
    object.at("ref").get_to(entry.ref);
    object.at("commit").get_to(entry.commit);
    object.at("variant").get_to(entry.variant);
    object.at("digest").get_to(entry.digest);
    object.at("signer").get_to(entry.signer);
    object.at("allowed").get_to(entry.allowed);
    object.at("reason").get_to(entry.reason);
    entry.endpoint = object.value("endpoint", "");
  } catch (const json::exception&) {
    return std::nullopt;
  }
  return entry;
}

// Everything but the time.
auto key_of(const JournalEntry& entry) {
  return std::tie(entry.repository, entry.origin, entry.ref, entry.commit, entry.variant,
                  entry.digest, entry.signer, entry.allowed, entry.reason, entry.endpoint);
}

// Whether `old`, which is not `entry`, was said after it about the same thing: the branch stood
// elsewhere, or what was allowed was refused. Then `entry` is news, however often it was said before.
bool contradicts(const JournalEntry& old, const JournalEntry& entry) {
  return std::tie(old.repository, old.origin, old.ref, old.endpoint) ==
             std::tie(entry.repository, entry.origin, entry.ref, entry.endpoint) &&
         (old.commit != entry.commit ||
          (old.variant == entry.variant && old.allowed != entry.allowed));
}

// Whether the last word on what the entry is about is the same, and of the last day.
bool is_known(const std::vector<JournalEntry>& entries, const JournalEntry& entry) {
  for (auto old = entries.rbegin(); old != entries.rend(); ++old) {
    if (key_of(*old) == key_of(entry)) {
      return entry.time_s - old->time_s < kRepeatAfterS;
    }
    if (contradicts(*old, entry)) {
      return false;
    }
  }
  return false;
}

// The file may end in the middle of a line that a power failure cut off.
bool ends_inside_a_line(int descriptor) {
  struct stat status {};
  char last = '\n';
  return fstat(descriptor, &status) == 0 && status.st_size > 0 &&
         pread(descriptor, &last, 1, status.st_size - 1) == 1 && last != '\n';
}

bool append_line(const fs::path& file, std::string line) {
  const int descriptor = open(file.c_str(), O_RDWR | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
  if (descriptor < 0) {
    return false;
  }
  if (ends_inside_a_line(descriptor)) {
    line.insert(0, "\n");
  }
  ssize_t written = 0;
  do {
    written = write(descriptor, line.data(), line.size());
  } while (written < 0 && errno == EINTR);
  const bool whole = written == static_cast<ssize_t>(line.size()) && fdatasync(descriptor) == 0;
  close(descriptor);
  return whole;
}

}  // namespace

std::string format_time(int64_t time_s) {
  return fmt::format("{:%Y-%m-%dT%H:%M:%SZ}", fmt::gmtime(static_cast<std::time_t>(time_s)));
}

fs::path journal_file() {
  if (const auto named = env::folder("GRAFT_TRUST_JOURNAL")) {
    return *named;
  }
  return env::folder("XDG_STATE_HOME").value_or(env::user_home() / ".local/state") /
         "graft/trust.jsonl";
}

Journal::Journal(fs::path file) : file_(std::move(file)) { read(); }

void Journal::read() {
  entries_.clear();
  num_broken_ = 0;
  std::ifstream in(file_, std::ios::binary);
  for (std::string line; std::getline(in, line);) {
    if (line.empty()) {
      continue;
    }
    if (auto entry = entry_of(line)) {
      entries_.push_back(*std::move(entry));
    } else {
      ++num_broken_;
    }
  }
}

bool Journal::add(JournalEntry entry) {
  if (entry.time_s == 0) {
    entry.time_s = std::time(nullptr);
  }
  std::error_code status;
  fs::create_directories(file_.parent_path(), status);
  const FileLock lock(file_.string() + ".lock", kLockTimeout);
  read();  // others may have written since
  if (is_known(entries_, entry)) {
    return true;
  }
  entries_.push_back(entry);
  if (!append_line(file_, line_of(entry))) {
    return false;
  }
  // Without a lock somebody's line may be lost when the file is replaced: only to keep it bounded.
  const auto size_bytes = fs::file_size(file_, status);
  if (!status && size_bytes > (lock.held() ? kMaxFileBytes : 4 * kMaxFileBytes)) {
    shorten();
  }
  return true;
}

// Keeps the first and the last line of each decision, the newest of them.
void Journal::shorten() {
  std::vector<JournalEntry> kept;
  std::set<decltype(key_of(entries_.front()))> first, last;
  std::vector<bool> keep(entries_.size());
  for (size_t i = 0; i < entries_.size(); ++i) {
    keep[i] = first.insert(key_of(entries_[i])).second;
  }
  for (size_t i = entries_.size(); i-- > 0;) {
    keep[i] = last.insert(key_of(entries_[i])).second || keep[i];
  }
  for (size_t i = 0; i < entries_.size(); ++i) {
    if (keep[i]) {
      kept.push_back(entries_[i]);
    }
  }
  if (kept.size() > kKeptEntries) {
    kept.erase(kept.begin(), kept.end() - kKeptEntries);
  }
  std::string text;
  for (const JournalEntry& entry : kept) {
    text += line_of(entry);
  }
  try {
    hub::write_atomically(file_, text);
    entries_ = std::move(kept);
  } catch (const Error&) {  // a full disk: the longer file stays
  }
}

}  // namespace graft::trust
