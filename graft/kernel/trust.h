// Whether a stranger's kernel may be fetched and loaded: every road to a kernel of the Hub leads
// through require_trusted(), which asks graft/trust/decide.h and, where that needs it, the Hub.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "graft/hub/client.h"
#include "graft/kernel/metadata.h"
#include "graft/trust/decide.h"

namespace graft::kernel {

// The caller's own word, as `trust_remote_code` of Python's `kernels`. What the policy denies, and
// the commits and signers that its entries name, stay what they are.
struct TrustPolicy {
  bool trust_all = false;
  std::vector<std::string> repositories;  // `org/name` that are trusted beside the Hub's word
};

enum class TrustStage {
  kFetch,  // something of the repository is missing here and about to be requested
  kLoad,   // the variant is complete; its library is about to be opened
};

struct TrustQuestion {
  std::string repository;               // `org/name`, or a path
  std::string source;                   // as Resolution::source says it
  std::string commit;                   // empty where the source knows none
  std::string ref;                      // branch, tag or version that was asked for
  std::filesystem::path folder;         // at kLoad: build/<variant>
  const Metadata* metadata = nullptr;   // at kLoad
  const hub::Client* client = nullptr;  // at kFetch: who may be asked
  bool record = true;                   // note the verdict in the journal; not for a dry run
};

// Lets a kernel pass or throws. The Hub is asked about the publisher only where neither policy nor
// signature nor journal settle the question: at kLoad that is once for each content that Python or
// another machine brought here. Where it cannot be asked, its last word counts (decide.h).
// Throws   IntegrityError `trust.decision.<reason>`; as trust::decide(); at kFetch what Client
//          throws.
trust::Verdict require_trusted(const TrustQuestion& question, TrustStage stage,
                               const TrustPolicy& policy);

// Whether the branch or tag of the question may be followed to where its Hub has it now. `accept`:
// a person says so. Throws as trust::require_no_rollback().
void require_no_rollback(const TrustQuestion& question, bool accept);

}  // namespace graft::kernel
