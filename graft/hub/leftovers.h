// Names of files that are not finished, and what becomes of them when their process was killed. No lock
// is needed to tell: the name says who writes the file, and a rename takes it over.
#pragma once

#include <filesystem>
#include <optional>

namespace graft::hub {

// Ends of names: of what goes away with its process, of bytes that a later process continues, and of
// the notes beside those (partial_file.h).
inline constexpr char kTemporary[] = ".graft-tmp";
inline constexpr char kIncomplete[] = ".graft-incomplete";
inline constexpr char kBlocks[] = ".graft-blocks";

// A name in the folder of `path` that no other process or thread uses, whatever file system they share.
std::filesystem::path temporary_beside(const std::filesystem::path& path);

// Whether whoever wrote an unfinished file is gone: its process on this machine ended, or for an hour
// nothing came (no transfer stands still so long). False for other names.
bool is_abandoned(const std::filesystem::path& file);

// Whether a file was last written more than an hour ago: nobody is about to use it.
bool is_old(const std::filesystem::path& file);

// The incomplete file of a blob, for this caller alone: one that was abandoned, taken over with its
// notes, else a new name.
std::filesystem::path take_incomplete(const std::filesystem::path& blob);

// Gives an incomplete file back for the next who wants that blob. Throws nothing.
void release_incomplete(const std::filesystem::path& file);

// Removes temporary files that were abandoned, and notes whose bytes are gone, from `folder` and those
// below. Throws nothing.
void sweep_leftovers(const std::filesystem::path& folder);

}  // namespace graft::hub
