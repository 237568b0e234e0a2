#include "graft/hub/listing.h"

#include <algorithm>

#include <nlohmann/json.hpp>

#include "graft/core/error.h"
#include "graft/core/log.h"
#include "graft/hub/content_hash.h"
#include "graft/hub/disk.h"
#include "graft/hub/payload.h"
#include "graft/io/json.h"

namespace graft::hub {

namespace {

namespace fs = std::filesystem;
using nlohmann::json;

constexpr int kFormatVersion = 1;
constexpr std::string_view kBuild = "build/";

json to_json(const std::vector<RepoFile>& files) {
  json object = json::object();
  for (const RepoFile& file : files) {
    json& entry = object[file.path];
    entry = {{"size", file.size_bytes}, {"blob_id", file.git_oid}};
    if (!file.sha256.empty()) {
      entry["lfs_sha256"] = file.sha256;
      entry["lfs_size"] = file.size_bytes;
    }
    if (!file.xet_hash.empty()) {
      entry["xet_hash"] = file.xet_hash;
    }
  }
  return object;
}

// Nothing when one entry cannot be one: whoever may write the cache may write the listing.
std::optional<std::vector<RepoFile>> from_json(const json& object) {
  if (!object.is_object()) {
    return std::nullopt;
  }
  std::vector<RepoFile> files;
  for (const auto& item : object.items()) {
    const std::string& path = item.key();
    const json& entry = item.value();
    if (!entry.is_object() || !is_safe_path(path)) {
      return std::nullopt;
    }
    const auto text = [&](const char* key) {
      const auto found = entry.find(key);
      return found != entry.end() && found->is_string() ? found->get<std::string>() : std::string();
    };
    const auto size = entry.find("size");
    RepoFile file{path, 0, text("blob_id"), text("lfs_sha256"), text("xet_hash")};
    if (size == entry.end() || !size->is_number_unsigned() || !is_content_id(file.content_id()) ||
        size->get<uint64_t>() > kMaxFileBytes) {
      return std::nullopt;
    }
    file.size_bytes = size->get<uint64_t>();
    files.push_back(std::move(file));
  }
  return files;
}

// Nothing for a file that is missing, broken or of another format.
json read_file(const fs::path& file) {
  constexpr io::JsonLimits kLimits{
      .max_bytes = 64 << 20, .max_depth = 8, .max_memory_bytes = 1 << 30};
  try {
    json parsed = io::read_json_file(file, "hub.listing", kLimits);
    const bool known = parsed.is_object() && parsed.contains("format_version") &&
                       parsed["format_version"] == kFormatVersion;
    return known ? parsed : json::object();
  } catch (const Error&) {
    return json::object();
  }
}

void write_file(const fs::path& file, const json& content) {
  try {
    write_atomically(file, content.dump(1, ' ', false, json::error_handler_t::replace));
  } catch (const Error& error) {
    log()->debug("listing not kept: {}", error.what());
  }
}

fs::path tree_file(const fs::path& repo, const std::string& commit) {
  return repo / "trees" / (commit + ".json");
}

fs::path kernel_file(const fs::path& repo, const std::string& commit) {
  return repo / "trees" / (commit + ".graft.json");
}

}  // namespace

std::optional<std::vector<RepoFile>> read_tree(const fs::path& repo, const std::string& commit) {
  const json content = read_file(tree_file(repo, commit));
  return content.contains("files") ? from_json(content["files"]) : std::nullopt;
}

void write_tree(const fs::path& repo, const std::string& commit,
                const std::vector<RepoFile>& files) {
  write_file(tree_file(repo, commit),
             {{"format_version", kFormatVersion}, {"files", to_json(files)}});
}

KernelListing kernel_listing_of(const std::vector<RepoFile>& files) {
  KernelListing listing;
  for (const RepoFile& file : files) {
    const auto end = file.path.find('/', kBuild.size());
    if (file.path.starts_with(kBuild) && end != std::string::npos) {
      listing.files[file.path.substr(kBuild.size(), end - kBuild.size())].push_back(file);
    }
  }
  for (const auto& [name, unused] : listing.files) {
    listing.variants.push_back(name);
  }
  return listing;
}

std::optional<KernelListing> read_kernel_listing(const fs::path& repo, const std::string& commit) {
  const json content = read_file(kernel_file(repo, commit));
  if (!content.contains("variants") || !content["variants"].is_array() ||
      !content.contains("files") || !content["files"].is_object()) {
    const auto tree = read_tree(repo, commit);
    return tree ? std::optional(kernel_listing_of(*tree)) : std::nullopt;
  }
  KernelListing listing;
  for (const auto& name : content["variants"]) {
    const std::string text = name.is_string() ? name.get<std::string>() : "";
    if (!is_safe_path(text) || text.find('/') != std::string::npos) {
      return std::nullopt;
    }
    listing.variants.push_back(text);
  }
  for (const auto& [name, files] : content["files"].items()) {
    auto read = from_json(files);
    const auto stays_below = [&, below = "build/" + name + "/"](const RepoFile& file) {
      return file.path.starts_with(below);
    };
    if (!read || !std::all_of(read->begin(), read->end(), stays_below)) {
      return std::nullopt;
    }
    listing.files.emplace(name, std::move(*read));
  }
  return listing;
}

void write_kernel_listing(const fs::path& repo, const std::string& commit,
                          const KernelListing& listing) {
  json files = json::object();
  for (const auto& [name, of_variant] : listing.files) {
    files[name] = to_json(of_variant);
  }
  write_file(kernel_file(repo, commit), {{"format_version", kFormatVersion},
                                         {"variants", listing.variants},
                                         {"files", std::move(files)}});
}

}  // namespace graft::hub
