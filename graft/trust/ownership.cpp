#include "graft/trust/ownership.h"

#include <algorithm>
#include <array>
#include <set>
#include <string_view>

#include <fmt/format.h>
#include <grp.h>
#include <pwd.h>
#include <sys/stat.h>
#include <unistd.h>

namespace graft::trust {

namespace {

namespace fs = std::filesystem;

constexpr size_t kDataBytes = 1 << 16;  // of an entry in the user data base

// Many systems give each user a group of the same name and files that it can write to.
bool is_own_group(gid_t group) {
  std::array<char, kDataBytes> user_data, group_data;
  passwd user{}, *found_user = nullptr;
  struct group entry {};
  struct group* found_group = nullptr;
  if (getpwuid_r(geteuid(), &user, user_data.data(), user_data.size(), &found_user) != 0 ||
      found_user == nullptr || user.pw_gid != group ||
      getgrgid_r(group, &entry, group_data.data(), group_data.size(), &found_group) != 0 ||
      found_group == nullptr || std::string_view(entry.gr_name) != user.pw_name) {
    return false;
  }
  for (char** member = entry.gr_mem; *member != nullptr; ++member) {
    if (std::string_view(*member) != user.pw_name) {
      return false;
    }
  }
  return true;
}

// Every file and folder below, each as it is named and as it is reached through links, with what
// lies above them.
std::set<fs::path> places_of(const fs::path& folder) {
  std::set<fs::path> places;
  const auto add = [&](const fs::path& path) {
    for (fs::path place = path; places.insert(place).second && place.has_relative_path();) {
      place = place.parent_path();
    }
  };
  const auto add_both = [&](const fs::path& path) {
    add(fs::absolute(path).lexically_normal());
    add(fs::canonical(path));
  };
  add_both(folder);
  for (const auto& entry : fs::recursive_directory_iterator(folder)) {
    // A link may lead to further links: the folder of each counts.
    fs::path path = entry.path();
    for (int hops = 0; fs::is_symlink(path) && hops < 40; ++hops) {
      add_both(path.parent_path());
      path = path.parent_path() / fs::read_symlink(path);
    }
    add_both(entry.path());
  }
  return places;
}

}  // namespace

std::string stranger_at(const fs::path& path, Sharing sharing) {
  struct stat status {};
  if (stat(path.c_str(), &status) != 0) {
    return "cannot be looked at";
  }
  const bool is_harmless = sharing == Sharing::kHarmless;
  if (status.st_uid != geteuid() && !(is_harmless && status.st_uid == 0)) {
    return "belongs to another user";
  }
  // In a folder like /tmp others can add names, but not replace those of the user.
  const bool is_guarded = is_harmless && S_ISDIR(status.st_mode) && (status.st_mode & S_ISVTX) != 0;
  if ((status.st_mode & S_IWOTH) != 0 && !is_guarded) {
    return "can be written to by every user";
  }
  const bool is_grouped = (status.st_mode & S_IWGRP) != 0 && !is_guarded;
  const bool is_ours = is_harmless && (status.st_gid == 0 || is_own_group(status.st_gid));
  return is_grouped && !is_ours ? "can be written to by a group" : "";
}

std::optional<std::string> foreign_writer(const fs::path& folder) {
  try {
    for (const fs::path& place : places_of(folder)) {
      if (const auto why = stranger_at(place, Sharing::kHarmless); !why.empty()) {
        return fmt::format("`{}` {}", place.string(), why);
      }
    }
  } catch (const fs::filesystem_error& error) {
    return fmt::format("`{}` cannot be looked at: {}", error.path1().string(),
                       error.code().message());
  }
  return std::nullopt;
}

}  // namespace graft::trust
