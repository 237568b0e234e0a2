#include "graft/trust/rollback.h"

#include <algorithm>

#include <fmt/format.h>

#include "graft/core/error.h"
#include "graft/core/warn.h"

namespace graft::trust {

namespace {

// From here on the name stands there.
void note_accepted(Journal& journal, const Standing& standing) {
  JournalEntry entry;
  entry.repository = standing.repository;
  entry.origin = "hub";
  entry.ref = standing.ref;
  entry.commit = standing.commit;
  entry.allowed = true;
  entry.reason = "rollback-accepted";
  entry.endpoint = standing.endpoint;
  journal.add(std::move(entry));
}

}  // namespace

std::optional<Rollback> find_rollback(const std::vector<JournalEntry>& entries,
                                      const Standing& standing) {
  if (standing.ref.empty() || standing.commit.empty()) {
    return std::nullopt;
  }
  const auto is_of_it = [&](const JournalEntry& entry) {
    return entry.allowed && entry.origin == "hub" && entry.ref == standing.ref &&
           entry.repository == standing.repository &&
           (entry.endpoint == standing.endpoint || entry.endpoint.empty() ||
            standing.endpoint.empty());
  };
  const auto last = std::find_if(entries.rbegin(), entries.rend(), is_of_it);
  if (last == entries.rend() || last->commit == standing.commit ||
      std::none_of(last, entries.rend(), [&](const JournalEntry& entry) {
        return is_of_it(entry) && entry.commit == standing.commit;
      })) {
    return std::nullopt;
  }
  // Since when it stands there: the first of the sightings that end in the last one.
  int64_t since_s = last->time_s;
  for (auto entry = last; entry != entries.rend(); ++entry) {
    if (is_of_it(*entry) && entry->commit != last->commit) {
      break;
    }
    since_s = is_of_it(*entry) ? entry->time_s : since_s;
  }
  return Rollback{
      last->commit, since_s,
      fmt::format("`{}` moved back: it is at commit {}, and was at {} from {} on", standing.ref,
                  standing.commit.substr(0, 12), last->commit.substr(0, 12), format_time(since_s))};
}

bool may_move_back(const Standing& standing, const Rollback& rollback, const Policy& policy) {
  if (policy.allows_commit(standing.repository, standing.commit)) {
    return true;
  }
  if (!policy.refuse_rollback) {
    warn(fmt::format("[trust] `{}`: {}", standing.repository, rollback.text));
  }
  return !policy.refuse_rollback;
}

void require_no_rollback(const Standing& standing, bool accept, bool record) {
  Journal journal(journal_file());
  const auto rollback = find_rollback(journal.entries(), standing);
  if (!rollback) {
    return;
  }
  if (!accept && !may_move_back(standing, *rollback, read_policy())) {
    throw IntegrityError("hub.revision", "rollback",
                         fmt::format("`{}`: {}", standing.repository, rollback->text),
                         fmt::format("to load it on purpose name the commit: `{}@{}`",
                                     standing.repository, standing.commit));
  }
  if (accept && record) {
    note_accepted(journal, standing);
  }
}

}  // namespace graft::trust
