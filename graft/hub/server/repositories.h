// The repositories in a served folder. Every answer is made from a listing of plain files, so a
// path in a request can only ever select one of them.
//
//   <type>s/<org>/<name>/   models, kernels, datasets, spaces
//   <org>/<name>/           a model; with a folder `build/` a kernel as well
//
// and in each of them either files (branch `main`; of a kernel also `v<version>` of its metadata),
// or `refs/<branch>/` and `tags/<tag>/` with files.
#pragma once

#include <filesystem>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <nlohmann/json.hpp>

#include "graft/hub/server/content.h"

namespace graft::hub::server {

struct RepoFile {
  ContentIds ids;
  FileState state;
  std::filesystem::path on_disk;
  bool large = false;  // kept in large storage on the Hub: named by SHA-256, answered by a redirect

  const std::string& etag() const { return large ? ids.sha256 : ids.git_id; }
};

// One commit. Its id is a hash of paths and contents: equal trees have equal ids.
struct Tree {
  std::string commit;
  std::map<std::string, RepoFile> files;  // by path from the repository's root
};

using TreePtr = std::shared_ptr<const Tree>;

struct Repository {
  std::string type;  // model, kernel, dataset or space
  std::string id;    // <org>/<name>
  std::map<std::string, TreePtr> branches;
  std::map<std::string, TreePtr> tags;

  // A branch, tag, full ref (`refs/heads/v1`) or commit; null when there is none.
  TreePtr tree(std::string_view revision) const;
};

// Who may see what: the file `.graft-hub.json` in the served folder.
//
//   {"users": {"<token>": "<name>"},
//    "trusted-publishers": ["<org>"],
//    "repositories": {"<org>/<name>": {"private": true, "gated": true, "readers": ["<name>"]}}}
struct AccessRules {
  struct Repo {
    bool is_private = false;
    bool gated = false;
    std::set<std::string> readers;
  };
  std::map<std::string, std::string> users;  // by token
  std::set<std::string> trusted_publishers;
  std::map<std::string, Repo> repositories;

  const Repo& of(const std::string& repo_id) const;

  // Throws   FormatError `hub.server.settings` for a file that is not of the form above.
  static AccessRules read(const std::filesystem::path& file);
};

class Repositories {
 public:
  // Lists the folder and hashes every file in it once.
  //
  // Throws   NotFound `hub.server.folder` when `root` is no folder; as AccessRules::read.
  // Blocking, reads the disk. Thread-safe, like all that follows.
  explicit Repositories(const std::filesystem::path& root);

  const std::filesystem::path& root() const { return root_; }
  const AccessRules& access() const { return access_; }

  // Ids of one type, sorted.
  std::vector<std::string> ids(const std::string& type) const;

  // The repository as its files are now; null when there is none. Commits that were seen before stay
  // addressable as long as their files are what they were.
  std::shared_ptr<const Repository> find(const std::string& type, const std::string& id);

  // A commit that find() has seen, without listing the folder again; null otherwise.
  TreePtr known_commit(const std::string& type, const std::string& id, const std::string& commit);

 private:
  std::filesystem::path folder_of(const std::string& type, const std::string& id) const;
  TreePtr list_tree(const std::filesystem::path& folder);
  void list_folder(const std::filesystem::path& folder, const std::string& prefix, int depth,
                   Tree& tree);
  // Nothing for what is no file below the root, or changes while it is read: the next listing will
  // have it.
  std::optional<std::pair<FileState, ContentIds>> hash_file(const std::filesystem::path& path);

  std::filesystem::path root_;
  AccessRules access_;
  std::mutex mutex_;
  std::map<FileState, ContentIds> hashed_;
  std::map<std::string, TreePtr> commits_;  // by `<type>/<id>/<commit>`
};

}  // namespace graft::hub::server
