#include "graft/hub/revision.h"

#include <algorithm>
#include <charconv>
#include <iterator>
#include <map>
#include <vector>

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <nlohmann/json.hpp>

#include "graft/core/error.h"
#include "graft/core/file_status.h"
#include "graft/hub/version_spec.h"

namespace graft::hub {

namespace {

constexpr size_t kMaxMetadataBytes = 1 << 20;

namespace fs = std::filesystem;
using Refs = std::map<std::string, std::string>;

constexpr int64_t kDefaultVersion = 1;

std::vector<std::string> names_of(const Refs& refs) {
  std::vector<std::string> names;
  for (const auto& [name, unused] : refs) {
    names.push_back(name);
  }
  return names;
}

std::vector<int64_t> numbers_of(const std::map<int64_t, std::string>& versions) {
  std::vector<int64_t> numbers;
  for (const auto& [number, unused] : versions) {
    numbers.push_back(number);
  }
  return numbers;
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

// `wanted` absent: v1, or the highest where there is no v1.
Revision version_of(const Refs& branches, std::string_view repo_id, std::optional<int64_t> wanted) {
  std::map<int64_t, std::string> known;
  for (const auto& [name, target] : branches) {
    if (const auto number = version_branch(name)) {
      known.emplace(*number, target);
    }
  }
  const auto found = wanted                            ? known.find(*wanted)
                     : known.contains(kDefaultVersion) ? known.find(kDefaultVersion)
                     : known.empty()                   ? known.end()
                                                       : std::prev(known.end());
  if (found == known.end()) {
    throw NotFound(
        "hub.revision", "version",
        fmt::format("`{}`: expected {}, got the versions {}", repo_id,
                    wanted ? fmt::format("version {}", *wanted) : "a version",
                    known.empty() ? "(none)" : fmt::to_string(fmt::join(numbers_of(known), ", "))),
        known.empty()
            ? ""
            : fmt::format("name one of them as `{}@v{}`", repo_id, known.rbegin()->first));
  }
  const int64_t newest = known.rbegin()->first;
  return {found->second, fmt::format("v{}", found->first),
          newest > found->first ? std::optional(newest) : std::nullopt};
}

// The version that a snapshot's variants name, by any one of them.
std::optional<int64_t> version_in(const fs::path& snapshot) {
  std::error_code status;
  for (const auto& entry : fs::directory_iterator(snapshot / "build", status)) {
    const auto text = read_regular_file(entry.path() / "metadata.json", kMaxMetadataBytes);
    const auto metadata =
        text ? nlohmann::json::parse(*text, nullptr, /*allow_exceptions=*/false) : nlohmann::json();
    const auto found = metadata.is_object() ? metadata.find("version") : metadata.end();
    if (metadata.is_object() && found != metadata.end() && found->is_number_integer()) {
      return found->get<int64_t>();
    }
  }
  return std::nullopt;
}

// The newest snapshot of each version in the cache, by the number in its metadata.json: `kernels`
// fetches versions by their commits and writes no ref.
std::map<int64_t, Revision> cached_versions(const fs::path& repo) {
  std::map<int64_t, Revision> versions;
  std::map<int64_t, fs::file_time_type> times;
  std::error_code status;
  for (const auto& entry : fs::directory_iterator(repo / "snapshots", status)) {
    const std::string commit = entry.path().filename().string();
    const auto version = is_commit(commit) ? version_in(entry.path()) : std::nullopt;
    if (!version) {
      continue;
    }
    const auto time = fs::last_write_time(entry.path(), status);
    if (!versions.contains(*version) || time > times[*version]) {
      versions[*version] = {commit, fmt::format("v{}", *version), std::nullopt};
      times[*version] = time;
    }
  }
  return versions;
}

// Refs of the cache whose names are tags of versions.
Refs cached_tags(const fs::path& repo) {
  Refs tags;
  std::error_code status;
  for (const auto& entry : fs::directory_iterator(repo / "refs", status)) {
    const auto commit = read_regular_file(entry.path(), 40);
    if (commit && is_commit(*commit)) {
      tags.emplace(entry.path().filename().string(), *commit);
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
    if (const auto version = version_branch(ref); version || ref.empty()) {
      return version_of(client.list_refs(type, repo_id).branches, repo_id, version);
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
  const std::string default_name = is_kernel ? fmt::format("v{}", kDefaultVersion) : "main";
  const std::string name = ref.empty() ? default_name : std::string(ref);
  if (const auto snapshot = find_snapshot(cache, type, repo_id, name)) {
    return Revision{snapshot->commit, is_commit(name) ? "" : name, std::nullopt};
  }
  const auto version = is_kernel ? version_branch(name) : std::nullopt;
  if (!version) {
    return std::nullopt;
  }
  const auto versions = cached_versions(repo);
  if (const auto found = versions.find(*version); found != versions.end()) {
    return found->second;
  }
  // Nobody named a version: the highest that is here will do.
  return ref.empty() && !versions.empty() ? std::optional(versions.rbegin()->second) : std::nullopt;
}

}  // namespace graft::hub
