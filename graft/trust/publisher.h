// What the Hub said of publishers, kept in the journal: offline its last word counts.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "graft/trust/journal.h"

namespace graft::trust {

// The Hub's word on an organisation, and when it was given.
struct PublisherWord {
  bool trusted = false;
  int64_t time_s = 0;  // since 1970
};

// `org` of `org/name`.
std::string publisher_of(const std::string& repository);

// The last word of the Hub at `endpoint`; nothing where it was never asked, or longer ago than a
// word counts (90 days).
std::optional<PublisherWord> last_word(const std::vector<JournalEntry>& entries,
                                       const std::string& endpoint, const std::string& publisher);

// Notes a word in the journal. Returns false where nothing can be written.
bool remember_word(Journal& journal, const std::string& endpoint, const std::string& publisher,
                   bool trusted);

}  // namespace graft::trust
