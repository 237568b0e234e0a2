#include "graft/trust/publisher.h"

#include <algorithm>
#include <ctime>

#include "graft/trust/decide.h"

namespace graft::trust {

namespace {

constexpr char kOrigin[] = "publisher";
constexpr int64_t kCountsS = int64_t{90} * 24 * 60 * 60;

}  // namespace

std::string publisher_of(const std::string& repository) {
  return repository.substr(0, repository.find('/'));
}

// A word from the future (a clock that was set back) is as old as can be.
std::optional<PublisherWord> last_word(const std::vector<JournalEntry>& entries,
                                       const std::string& endpoint, const std::string& publisher) {
  const std::string all = publisher + "/*";
  const auto last = std::find_if(entries.rbegin(), entries.rend(), [&](const auto& entry) {
    return entry.origin == kOrigin && entry.endpoint == endpoint && entry.repository == all;
  });
  if (last == entries.rend()) {
    return std::nullopt;
  }
  const int64_t age_s = std::time(nullptr) - last->time_s;
  return age_s < 0 || age_s > kCountsS ? std::nullopt
                                       : std::optional(PublisherWord{last->allowed, last->time_s});
}

bool remember_word(Journal& journal, const std::string& endpoint, const std::string& publisher,
                   bool trusted) {
  JournalEntry entry;
  entry.repository = publisher + "/*";
  entry.origin = kOrigin;
  entry.allowed = trusted;
  entry.reason = to_text(trusted ? Reason::kTrustedPublisher : Reason::kUnknownPublisher);
  entry.endpoint = endpoint;
  return journal.add(std::move(entry));
}

}  // namespace graft::trust
