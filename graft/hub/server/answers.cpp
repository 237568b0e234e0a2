#include "graft/hub/server/answers.h"

#include <fmt/format.h>

namespace graft::hub::server {

namespace {

using nlohmann::ordered_json;

constexpr int kPointerBytes = 134;  // of the text that git keeps for a large file

ordered_json file_entry(const std::string& path, const RepoFile& file) {
  ordered_json entry = {
      {"type", "file"}, {"oid", file.ids.git_id}, {"size", file.state.size_bytes}, {"path", path}};
  if (file.large) {
    entry["lfs"] = {
        {"oid", file.ids.sha256}, {"size", file.state.size_bytes}, {"pointerSize", kPointerBytes}};
  }
  return entry;
}

// The id of a folder: a hash of what is below it.
ordered_json folder_entry(const Tree& tree, const std::string& path) {
  std::string text;
  const auto prefix = path + "/";
  for (auto it = tree.files.lower_bound(prefix);
       it != tree.files.end() && it->first.starts_with(prefix); ++it) {
    text += fmt::format("{} {}\n", it->second.ids.sha256, it->first);
  }
  return {{"type", "directory"}, {"oid", sha1_hex(text)}, {"size", 0}, {"path", path}};
}

bool has_folder(const Tree& tree, const std::string& path) {
  const auto first = tree.files.lower_bound(path + "/");
  return first != tree.files.end() && first->first.starts_with(path + "/");
}

}  // namespace

Answer json_answer(const ordered_json& json) {
  Answer answer;
  answer.headers["Content-Type"] = "application/json; charset=utf-8";
  answer.body = json.dump(-1, ' ', /*ensure_ascii=*/false, ordered_json::error_handler_t::replace);
  return answer;
}

Answer refusal(int status, std::string_view code, const std::string& message) {
  auto answer = json_answer({{"error", message}});
  answer.status = status;
  std::string line;  // a header holds printable ASCII only
  for (const char c : message) {
    line += c >= ' ' && c <= '~' ? c : '?';
  }
  answer.headers["X-Error-Message"] = line;
  if (!code.empty()) {
    answer.headers["X-Error-Code"] = code;
  }
  return answer;
}

std::vector<ordered_json> tree_entries(const Tree& tree, const std::string& folder,
                                       bool recursive) {
  const auto prefix = folder.empty() ? std::string() : folder + "/";
  std::map<std::string, ordered_json> entries;
  for (auto it = tree.files.lower_bound(prefix);
       it != tree.files.end() && it->first.starts_with(prefix); ++it) {
    const auto& [path, file] = *it;
    size_t slash = path.find('/', prefix.size());
    if (slash == std::string::npos || recursive) {
      entries[path] = file_entry(path, file);
    }
    for (; slash != std::string::npos; slash = path.find('/', slash + 1)) {
      const auto parent = path.substr(0, slash);
      if (!entries.contains(parent)) {
        entries[parent] = folder_entry(tree, parent);
      }
      if (!recursive) {
        break;
      }
    }
  }
  std::vector<ordered_json> sorted;
  for (auto& [path, entry] : entries) {
    sorted.push_back(std::move(entry));
  }
  return sorted;
}

ordered_json tree_entry(const Tree& tree, const std::string& path) {
  const auto file = tree.files.find(path);
  if (file != tree.files.end()) {
    return file_entry(path, file->second);
  }
  return has_folder(tree, path) ? folder_entry(tree, path) : ordered_json();
}

ordered_json repository_info(const std::string& type, const std::string& id, const Tree& tree,
                             const AccessRules::Repo& access, bool with_blobs) {
  ordered_json json = {{"_id", tree.commit.substr(0, 24)},
                       {"id", id},
                       {"author", id.substr(0, id.find('/'))},
                       {"sha", tree.commit},
                       {"private", access.is_private},
                       {"gated", access.gated ? ordered_json("manual") : ordered_json(false)},
                       {"disabled", false},
                       {"downloads", 0},
                       {"likes", 0},
                       {"tags", ordered_json::array()}};
  if (type == "model") {
    json["modelId"] = id;
  }
  if (type == "kernel") {  // the Hub lists no files of kernels here
    return json;
  }
  auto& siblings = json["siblings"] = ordered_json::array();
  for (const auto& [path, file] : tree.files) {
    ordered_json sibling = {{"rfilename", path}};
    if (with_blobs) {
      sibling["blobId"] = file.ids.git_id;
      sibling["size"] = file.state.size_bytes;
      if (file.large) {
        sibling["lfs"] = {{"sha256", file.ids.sha256},
                          {"size", file.state.size_bytes},
                          {"pointerSize", kPointerBytes}};
      }
    }
    siblings.push_back(std::move(sibling));
  }
  return json;
}

ordered_json refs_json(const Repository& repository) {
  const auto list = [](const std::map<std::string, TreePtr>& refs, const char* prefix) {
    auto rows = ordered_json::array();
    for (const auto& [name, tree] : refs) {
      rows.push_back({{"name", name}, {"ref", prefix + name}, {"targetCommit", tree->commit}});
    }
    return rows;
  };
  return {{"tags", list(repository.tags, "refs/tags/")},
          {"branches", list(repository.branches, "refs/heads/")},
          {"converts", ordered_json::array()}};
}

}  // namespace graft::hub::server
