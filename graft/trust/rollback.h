// A branch or tag that stands again at a commit that it had left: a Hub, or somebody between it and
// us, may offer an old build with a known flaw under a good name. What was seen is in the journal.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "graft/trust/journal.h"
#include "graft/trust/policy.h"

namespace graft::trust {

// Where a branch or tag is said to stand.
struct Standing {
  std::string repository;
  std::string endpoint;  // empty: that of any Hub
  std::string ref;       // empty: nothing moves
  std::string commit;
};

struct Rollback {
  std::string last_commit;  // at which it was seen last
  int64_t time_s = 0;
  std::string text;  // "`v1` moved back: …"
};

// Nothing where the commit is new, or the one at which the name was seen last. Another Hub (a mirror
// that lags behind) is another history.
std::optional<Rollback> find_rollback(const std::vector<JournalEntry>& entries,
                                      const Standing& standing);

// Whether the policy lets it pass: by an entry that names the commit, or with a warning.
bool may_move_back(const Standing& standing, const Rollback& rollback, const Policy& policy);

// Whether a branch or tag may be followed to where its Hub has it now, by journal_file() and
// read_policy(). `accept`: a person wants it there, which the journal notes if `record`.
// Throws   IntegrityError `hub.revision.rollback`; as read_policy().
void require_no_rollback(const Standing& standing, bool accept, bool record);

}  // namespace graft::trust
