#include "graft/hub/revision.h"

#include <algorithm>
#include <charconv>
#include <fstream>
#include <map>
#include <vector>

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <nlohmann/json.hpp>

#include "graft/core/error.h"
#include "graft/hub/version_spec.h"

namespace graft::hub {

namespace {

namespace fs = std::filesystem;
using Refs = std::map<std::string, std::string>;

constexpr std::string_view kDefaultVersion = "v1";

std::vector<std::string> names_of(const Refs& refs) {
  std::vector<std::string> names;
  for (const auto& [name, unused] : refs) {
    names.push_back(name);
  }
  return names;
}

// The tag that a specifier chooses.
std::optional<Refs::value_type> best_tag(const Refs& tags, std::string_view specifier) {
  const auto wanted = VersionSpecifier::parse(specifier);
  std::vector<TagVersion> versions;
  std::vector<Refs::value_type> of_versions;
  for (const auto& tag : tags) {
    const auto version =
        tag.first.starts_with('v') ? parse_tag_version(tag.first.substr(1)) : std::nullopt;
    if (version) {
      versions.push_back(*version);
      of_versions.push_back(tag);
    }
  }
  const auto best = wanted.best(versions);
  return best ? std::optional(of_versions[*best]) : std::nullopt;
}

Revision version_of(const Refs& branches, std::string_view repo_id, int64_t version) {
  std::optional<int64_t> newest;
  const std::string* commit = nullptr;
  std::vector<int64_t> known;
  for (const auto& [name, target] : branches) {
    if (const auto number = version_branch(name)) {
      known.push_back(*number);
      newest = std::max(newest.value_or(0), *number);
      commit = *number == version ? &target : commit;
    }
  }
  if (commit == nullptr) {
    std::sort(known.begin(), known.end());
    throw NotFound("hub.revision", "version",
                   fmt::format("`{}`: expected version {}, got the versions {}", repo_id, version,
                               known.empty() ? "(none)" : fmt::to_string(fmt::join(known, ", "))));
  }
  return {*commit, fmt::format("v{}", version), *newest > version ? newest : std::nullopt};
}

// The version that a snapshot's variants name, by any one of them.
std::optional<int64_t> version_in(const fs::path& snapshot) {
  std::error_code status;
  for (const auto& entry : fs::directory_iterator(snapshot / "build", status)) {
    std::ifstream in(entry.path() / "metadata.json");
    const auto metadata =
        in ? nlohmann::json::parse(in, nullptr, /*allow_exceptions=*/false) : nlohmann::json();
    const auto found = metadata.is_object() ? metadata.find("version") : metadata.end();
    if (metadata.is_object() && found != metadata.end() && found->is_number_integer()) {
      return found->get<int64_t>();
    }
  }
  return std::nullopt;
}

std::optional<Revision> newest_snapshot_of(const fs::path& repo, int64_t version) {
  std::optional<Revision> newest;
  fs::file_time_type newest_time;
  std::error_code status;
  for (const auto& entry : fs::directory_iterator(repo / "snapshots", status)) {
    const std::string commit = entry.path().filename().string();
    if (!is_commit(commit) || version_in(entry.path()) != version) {
      continue;
    }
    const auto time = fs::last_write_time(entry.path(), status);
    if (!newest || time > newest_time) {
      newest = Revision{commit, fmt::format("v{}", version), std::nullopt};
      newest_time = time;
    }
  }
  return newest;
}

// Refs of the cache whose names are tags of versions.
Refs cached_tags(const fs::path& repo) {
  Refs tags;
  std::error_code status;
  for (const auto& entry : fs::directory_iterator(repo / "refs", status)) {
    std::ifstream in(entry.path());
    std::string commit;
    if (std::getline(in, commit) && is_commit(commit)) {
      tags.emplace(entry.path().filename().string(), commit);
    }
  }
  return tags;
}

}  // namespace

std::optional<int64_t> version_branch(std::string_view ref) {
  int64_t version = 0;
  if (ref.size() < 2 || ref[0] != 'v' || ref[1] < '0' || ref[1] > '9') {
    return std::nullopt;
  }
  const auto [end, status] = std::from_chars(ref.data() + 1, ref.data() + ref.size(), version);
  return status == std::errc() && end == ref.data() + ref.size() ? std::optional(version)
                                                                 : std::nullopt;
}

Revision resolve_revision(const Client& client, RepoType type, std::string_view repo_id,
                          std::string_view ref) {
  if (is_commit(ref)) {
    return {std::string(ref), "", std::nullopt};
  }
  if (is_version_specifier(ref)) {
    const Refs tags = client.list_refs(type, repo_id).tags;
    const auto best = best_tag(tags, ref);
    if (!best) {
      throw NotFound("hub.revision", "tag",
                     fmt::format("`{}`: expected a tag `v…` that fits `{}`, got the tags {}",
                                 repo_id, ref, fmt::join(names_of(tags), ", ")),
                     "repositories of type kernel have versions instead: name one as `v1`");
    }
    return {best->second, best->first, std::nullopt};
  }
  if (type == RepoType::kKernel) {
    if (const auto version = version_branch(ref.empty() ? kDefaultVersion : ref)) {
      return version_of(client.list_refs(type, repo_id).branches, repo_id, *version);
    }
  }
  const std::string name(ref.empty() ? std::string_view("main") : ref);
  return {client.resolve_commit(type, repo_id, name), name, std::nullopt};
}

std::optional<Revision> find_revision(const fs::path& cache, RepoType type,
                                      std::string_view repo_id, std::string_view ref) {
  const fs::path repo = cache / repo_folder_name(type, repo_id);
  if (is_version_specifier(ref)) {
    const auto best = best_tag(cached_tags(repo), ref);
    const bool there = best && fs::is_directory(repo / "snapshots" / best->second);
    return there ? std::optional(Revision{best->second, best->first, std::nullopt}) : std::nullopt;
  }
  const bool is_kernel = type == RepoType::kKernel;
  const std::string name(!ref.empty() ? ref : is_kernel ? kDefaultVersion : "main");
  if (const auto snapshot = find_snapshot(cache, type, repo_id, name)) {
    return Revision{snapshot->commit, is_commit(name) ? "" : name, std::nullopt};
  }
  const auto version = is_kernel ? version_branch(name) : std::nullopt;
  return version ? newest_snapshot_of(repo, *version) : std::nullopt;
}

}  // namespace graft::hub
