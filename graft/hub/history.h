// Where branches and tags were seen, so that one that goes back to an older commit is noticed: a
// Hub, or somebody between it and us, may offer an old build with a known flaw under a good name.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "graft/hub/client.h"

namespace graft::hub {

struct MovingName {
  std::string endpoint;
  RepoType type;
  std::string repo_id;
  std::string ref;
};

// Commits in the order in which they were seen first, for this user only (private_folder()).
std::vector<std::string> seen_commits(const MovingName& name);

// Refuses a commit that was seen before the one that was seen last.
// Throws   IntegrityError `hub.revision.rollback` naming both.
void require_no_rollback(const MovingName& name, std::string_view commit);

// Notes that the name stands at this commit now. Where nothing can be written nothing is noted.
void remember_commit(const MovingName& name, std::string_view commit);

}  // namespace graft::hub
