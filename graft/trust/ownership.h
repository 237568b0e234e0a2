// Whose files these are: what lies in a folder that others can write to may be of their making.
#pragma once

#include <filesystem>
#include <optional>
#include <string>

namespace graft::trust {

// Who may write to a place beside the user.
enum class Sharing {
  kHarmless,  // root, a group of the user's own, and anybody to a folder in which nobody replaces what is not theirs
  kNone,
};

// Why somebody else could have changed what is at this place (links followed), or an empty text: "belongs to another
// user". One disk access; may ask the user data base about a group.
std::string stranger_at(const std::filesystem::path& path, Sharing sharing);

// The first place from which another user, root aside, could have changed a file below `folder`,
// with the reason: "`/srv/cache/blobs` belongs to another user". Nothing where there is none.
//
// Looked at are all files, what links among them lead to, and every folder on the way there. A group
// counts as others, unless it is the user's own, of whom nobody else is a member.
// Disk; may ask the user data base about a group.
std::optional<std::string> foreign_writer(const std::filesystem::path& folder);

}  // namespace graft::trust
