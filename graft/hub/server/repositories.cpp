#include "graft/hub/server/repositories.h"

#include <algorithm>
#include <array>
#include <fstream>
#include <optional>

#include <fmt/format.h>

#include "graft/core/error.h"
#include "graft/io/excerpt.h"

namespace graft::hub::server {

namespace {

namespace fs = std::filesystem;

constexpr std::array<std::string_view, 4> kTypes = {"model", "kernel", "dataset", "space"};
constexpr std::string_view kSettingsName = ".graft-hub.json";
constexpr int kMaxDepth = 64;
constexpr uint64_t kLargeBytes = 10ULL << 20;
// What the Hub's own `.gitattributes` sends to large storage whatever its size, as far as models
// and kernels hold it.
constexpr std::array<std::string_view, 16> kLargeSuffixes = {
    ".safetensors", ".gguf", ".bin", ".pt",  ".pth", ".ckpt", ".onnx",    ".h5",
    ".msgpack",     ".npy",  ".npz", ".tar", ".gz",  ".zip",  ".parquet", ".so"};

bool is_large(const fs::path& path, uint64_t size_bytes) {
  const auto suffix = path.extension().string();
  return size_bytes >= kLargeBytes ||
         std::find(kLargeSuffixes.begin(), kLargeSuffixes.end(), suffix) != kLargeSuffixes.end();
}

// Names that no repository, organisation or branch has; hidden folders among them.
// Others cannot be named in the Hub's answers, which are JSON.
bool is_name(std::string_view name) {
  return !name.empty() && io::is_utf8(name) && name.front() != '.' &&
         name.find('/') == std::string_view::npos && name.find('\0') == std::string_view::npos;
}

bool is_folder(const fs::path& path) {
  std::error_code error;
  return fs::symlink_status(path, error).type() == fs::file_type::directory;
}

// Names of the folders in a folder, links to folders not among them.
std::vector<std::string> folders_in(const fs::path& folder) {
  std::vector<std::string> names;
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(folder, error)) {
    const auto name = entry.path().filename().string();
    if (is_name(name) && is_folder(entry.path())) {
      names.push_back(name);
    }
  }
  std::sort(names.begin(), names.end());
  return names;
}

bool holds_kernel(const fs::path& repository) {
  const auto refs = repository / "refs";
  const auto branches = is_folder(refs) ? folders_in(refs) : std::vector<std::string>();
  return is_folder(repository / "build") ||
         std::any_of(branches.begin(), branches.end(),
                     [&](const std::string& name) { return is_folder(refs / name / "build"); });
}

// `v<version>` of the kernel in this tree, from the first metadata that says it.
std::optional<std::string> version_branch(const Tree& tree) {
  for (const auto& [path, file] : tree.files) {
    if (!path.starts_with("build/") || !path.ends_with("/metadata.json")) {
      continue;
    }
    std::ifstream stream(file.on_disk);
    const auto metadata = nlohmann::json::parse(stream, nullptr, /*allow_exceptions=*/false);
    if (metadata.is_object() && metadata.contains("version") &&
        metadata["version"].is_number_unsigned()) {
      return fmt::format("v{}", metadata["version"].get<uint64_t>());
    }
  }
  return std::nullopt;
}

}  // namespace

TreePtr Repository::tree(std::string_view revision) const {
  const auto in = [](const std::map<std::string, TreePtr>& refs, std::string_view name) {
    const auto found = refs.find(std::string(name));
    return found == refs.end() ? TreePtr() : found->second;
  };
  for (const auto& [prefix, refs] :
       {std::pair("refs/heads/", &branches), std::pair("refs/tags/", &tags)}) {
    if (revision.starts_with(prefix)) {
      return in(*refs, revision.substr(std::string_view(prefix).size()));
    }
  }
  if (auto named = in(branches, revision); named != nullptr) {
    return named;
  }
  if (auto named = in(tags, revision); named != nullptr) {
    return named;
  }
  for (const auto* refs : {&branches, &tags}) {
    for (const auto& [name, tree] : *refs) {
      if (tree->commit == revision) {
        return tree;
      }
    }
  }
  return nullptr;
}

const AccessRules::Repo& AccessRules::of(const std::string& repo_id) const {
  static const Repo open;
  const auto found = repositories.find(repo_id);
  return found == repositories.end() ? open : found->second;
}

AccessRules AccessRules::read(const fs::path& file) {
  std::ifstream stream(file);
  AccessRules rules;
  if (!stream) {
    return rules;
  }
  try {
    const auto json = nlohmann::json::parse(stream);
    rules.users = json.value("users", decltype(rules.users)());
    rules.trusted_publishers =
        json.value("trusted-publishers", decltype(rules.trusted_publishers)());
    const auto listed = json.value("repositories", nlohmann::json::object());
    for (const auto& [id, entry] : listed.items()) {
      rules.repositories[id] = {entry.value("private", false), entry.value("gated", false),
                                entry.value("readers", std::set<std::string>())};
    }
  } catch (const nlohmann::json::exception& error) {
    throw FormatError("hub.server", "settings",
                      fmt::format("`{}`: expected {{\"users\": …, \"trusted-publishers\": …, "
                                  "\"repositories\": …}}, got: {}",
                                  file.string(), error.what()));
  }
  return rules;
}

Repositories::Repositories(const fs::path& root) {
  std::error_code error;
  root_ = fs::canonical(root, error);
  if (error || !is_folder(root_)) {
    throw NotFound("hub.server", "folder",
                   fmt::format("`{}`: expected a folder of repositories", root.string()));
  }
  access_ = AccessRules::read(root_ / kSettingsName);
  for (const auto type : kTypes) {
    for (const auto& id : ids(std::string(type))) {
      find(std::string(type), id);
    }
  }
}

std::vector<std::string> Repositories::ids(const std::string& type) const {
  std::set<std::string> found;
  const auto add = [&](const fs::path& base, bool typed) {
    for (const auto& org : folders_in(base)) {
      const bool is_type = std::any_of(kTypes.begin(), kTypes.end(), [&](std::string_view known) {
        return org == fmt::format("{}s", known);
      });
      for (const auto& name :
           !typed && is_type ? std::vector<std::string>() : folders_in(base / org)) {
        if (!folder_of(type, org + "/" + name).empty()) {
          found.insert(org + "/" + name);
        }
      }
    }
  };
  add(root_ / (type + "s"), /*typed=*/true);
  add(root_, /*typed=*/false);
  return {found.begin(), found.end()};
}

fs::path Repositories::folder_of(const std::string& type, const std::string& id) const {
  const auto slash = id.find('/');
  if (slash == std::string::npos || !is_name(id.substr(0, slash)) ||
      !is_name(id.substr(slash + 1))) {
    return {};
  }
  // Each step a folder of its own: a link on the way would lead out of the root.
  const auto org = id.substr(0, slash);
  const auto typed = root_ / (type + "s");
  if (is_folder(typed) && is_folder(typed / org) && is_folder(typed / id)) {
    return typed / id;
  }
  const auto plain = root_ / id;
  if (!is_folder(root_ / org) || !is_folder(plain)) {
    return {};
  }
  return type == "model" || (type == "kernel" && holds_kernel(plain)) ? plain : fs::path();
}

std::shared_ptr<const Repository> Repositories::find(const std::string& type,
                                                     const std::string& id) {
  const auto folder = folder_of(type, id);
  if (folder.empty()) {
    return nullptr;
  }
  const std::lock_guard lock(mutex_);
  auto repository = std::make_shared<Repository>();
  repository->type = type;
  repository->id = id;
  if (is_folder(folder / "refs")) {
    for (const auto& branch : folders_in(folder / "refs")) {
      repository->branches[branch] = list_tree(folder / "refs" / branch);
    }
    for (const auto& tag :
         is_folder(folder / "tags") ? folders_in(folder / "tags") : std::vector<std::string>()) {
      repository->tags[tag] = list_tree(folder / "tags" / tag);
    }
  } else {
    const auto tree = list_tree(folder);
    repository->branches["main"] = tree;
    if (const auto version = version_branch(*tree); version && type == "kernel") {
      repository->branches[*version] = tree;
    }
  }
  for (const auto* refs : {&repository->branches, &repository->tags}) {
    for (const auto& [name, tree] : *refs) {
      commits_[type + "/" + id + "/" + tree->commit] = tree;
    }
  }
  return repository;
}

TreePtr Repositories::known_commit(const std::string& type, const std::string& id,
                                   const std::string& commit) {
  const std::lock_guard lock(mutex_);
  const auto found = commits_.find(type + "/" + id + "/" + commit);
  return found == commits_.end() ? nullptr : found->second;
}

TreePtr Repositories::list_tree(const fs::path& folder) {
  auto tree = std::make_shared<Tree>();
  list_folder(folder, "", 0, *tree);
  std::string text;
  for (const auto& [path, file] : tree->files) {
    text += fmt::format("{} {}\n", file.ids.sha256, path);
  }
  tree->commit = sha1_hex(text);
  return tree;
}

void Repositories::list_folder(const fs::path& folder, const std::string& prefix, int depth,
                               Tree& tree) {
  if (depth > kMaxDepth) {
    return;
  }
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(folder, error)) {
    const auto name = entry.path().filename().string();
    if (!io::is_utf8(name)) {
      continue;
    }
    if (is_folder(entry.path())) {
      if (name != ".git" && name != ".cache" && name != "__pycache__") {
        list_folder(entry.path(), prefix + name + "/", depth + 1, tree);
      }
      continue;
    }
    // What was hashed once is not opened again: opening is what costs.
    const auto state = state_of(entry.path());
    const auto known = state ? hashed_.find(*state) : hashed_.end();
    const auto content = known == hashed_.end()
                             ? hash_file(entry.path())
                             : std::optional<std::pair<FileState, ContentIds>>(*known);
    if (content) {
      tree.files[prefix + name] = {content->second, content->first, entry.path(),
                                   is_large(entry.path(), content->first.size_bytes)};
    }
  }
}

std::optional<std::pair<FileState, ContentIds>> Repositories::hash_file(const fs::path& path) {
  const auto file = OpenFile::open_below(root_, path);
  if (file == nullptr) {
    return std::nullopt;
  }
  const auto known = hashed_.find(file->state());
  if (known != hashed_.end()) {
    return *known;
  }
  const auto ids = file->hash();
  return ids ? std::optional<std::pair<FileState, ContentIds>>(
                   *hashed_.emplace(file->state(), *ids).first)
             : std::nullopt;
}

}  // namespace graft::hub::server
