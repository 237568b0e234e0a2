#include "graft/kernel/lock_file.h"

#include <algorithm>
#include <cctype>
#include <cstdint>
#include <cstdlib>
#include <set>
#include <tuple>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "graft/core/error.h"
#include "graft/hub/content_hash.h"
#include "graft/io/json.h"
#include "graft/io/mapped_file.h"

namespace graft::kernel {

namespace {

namespace fs = std::filesystem;
using nlohmann::json;

constexpr io::JsonLimits kLimits{.max_bytes = 16 << 20, .max_depth = 8};
constexpr std::string_view kHashPrefix = "sha256-";
constexpr std::string_view kHashType = "git_lfs_concat";

bool is_hex(std::string_view text) {
  return !text.empty() && text.find_first_not_of("0123456789abcdef") == std::string_view::npos;
}

size_t line_of(std::string_view text, size_t offset) {
  return 1 + static_cast<size_t>(std::count(
                 text.begin(),
                 text.begin() + static_cast<std::ptrdiff_t>(std::min(offset, text.size())), '\n'));
}

// A lock's text and what is wrong with it.
class Source {
 public:
  Source(std::string_view text, const fs::path& path) : text_(text), path_(path) {}

  [[noreturn]] void fail(std::string_view reason, size_t line, const std::string& what,
                         std::string_view hint = {}) const {
    throw FormatError("kernel.lock", reason,
                      fmt::format("`{}` line {}: {}", path_.string(), line, what), hint);
  }

  json parse() const {
    if (const auto line = conflict_line(); line != 0) {
      fail("conflict", line, "expected JSON, got the markers of a merge conflict",
           "resolve the conflict, or write the lock anew with `graft kernels lock`");
    }
    try {
      return io::parse_json(text_, "kernel.lock", path_.string(), kLimits);
    } catch (const FormatError& error) {
      // The text names a byte; people count lines.
      const std::string message = error.what();
      const auto at = message.find("at byte ");
      const size_t byte =
          at == std::string::npos
              ? 0
              : static_cast<size_t>(std::strtoull(message.c_str() + at + 8, nullptr, 10));
      const std::string& code = error.code();
      fail(code.substr(code.rfind('.') + 1), line_of(text_, byte),
           at == std::string::npos ? message : message.substr(at));
    }
  }

  // Where entry `index` of the outermost array begins, and in it the first `key`.
  size_t line_of_entry(size_t index, std::string_view key = {}) const {
    const size_t begin = entry_offset(index);
    const size_t end = entry_offset(index + 1);
    const size_t found =
        key.empty() ? std::string_view::npos : text_.find(fmt::format("\"{}\"", key), begin);
    return line_of(text_, found < end ? found : begin);
  }

 private:
  size_t conflict_line() const {
    for (const std::string_view marker : {"<<<<<<< ", "=======", ">>>>>>> "}) {
      for (size_t at = text_.find(marker); at != std::string_view::npos;
           at = text_.find(marker, at + 1)) {
        if (at == 0 || text_[at - 1] == '\n') {
          return line_of(text_, at);
        }
      }
    }
    return 0;
  }

  // The `{` of the entry; the text's end for one that is not there.
  size_t entry_offset(size_t index) const {
    int depth = 0;
    size_t seen = 0;
    bool in_text = false;
    for (size_t at = 0; at < text_.size(); ++at) {
      const char c = text_[at];
      if (in_text) {
        at += c == '\\' ? 1 : 0;
        in_text = c != '"';
      } else if (c == '"') {
        in_text = true;
      } else if (c == '{' || c == '[') {
        if (++depth == 2 && c == '{' && seen++ == index) {
          return at;
        }
      } else if (c == '}' || c == ']') {
        --depth;
      }
    }
    return text_.size();
  }

  std::string_view text_;
  const fs::path& path_;
};

// One object of an entry: its keys are known, typed and there.
class Object {
 public:
  Object(const Source& source, size_t index, const json& value, std::string_view name,
         std::initializer_list<std::string_view> keys)
      : source_(source), index_(index), value_(value) {
    if (!value.is_object()) {
      fail("type", name, fmt::format("{}: expected an object", name));
    }
    for (const auto& [key, unused] : value.items()) {
      if (std::find(keys.begin(), keys.end(), key) == keys.end()) {
        fail("unknown-key", key,
             fmt::format("{}: expected the keys {}, got `{}`", name, fmt::join(keys, ", "),
                         key.substr(0, 200)));
      }
    }
  }

  [[noreturn]] void fail(std::string_view reason, std::string_view key,
                         const std::string& what) const {
    source_.fail(reason, source_.line_of_entry(index_, key), what);
  }

  const json* find(const char* key) const {
    const auto found = value_.find(key);
    return found == value_.end() ? nullptr : &*found;
  }

  const json& need(const char* key) const {
    const json* found = find(key);
    if (found == nullptr) {
      fail("missing-key", "", fmt::format("expected the key `{}`, got none", key));
    }
    return *found;
  }

  std::string text(const char* key) const {
    const json& value = need(key);
    if (!value.is_string()) {
      fail("type", key, fmt::format("`{}`: expected a text", key));
    }
    return value.get<std::string>();
  }

  std::string repo_id(const char* key) const {
    const std::string id = text(key);
    if (!hub::is_repo_id(id) || id.find('/') == std::string::npos) {
      fail("repo-id", key,
           fmt::format("`{}`: expected `org/name`, got `{}`", key, id.substr(0, 200)));
    }
    return id;
  }

  std::string commit(const char* key) const {
    std::string id = text(key);
    std::transform(id.begin(), id.end(), id.begin(),
                   [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
    if ((id.size() != 40 && id.size() != 64) || !is_hex(id)) {
      fail("commit", key,
           fmt::format("`{}`: expected a commit of 40 or 64 hexadecimal digits, got `{}`", key,
                       id.substr(0, 200)));
    }
    return id;
  }

 private:
  const Source& source_;
  size_t index_;
  const json& value_;
};

LockedEntry new_entry(const Source& source, size_t index, const json& value) {
  const Object entry(source, index, value, "entry", {"dependency", "lock"});
  const Object dependency(source, index, entry.need("dependency"), "dependency",
                          {"repo-id", "version", "revision"});
  const Object lock(source, index, entry.need("lock"), "lock", {"commit"});
  LockedEntry out;
  out.repo_id = dependency.repo_id("repo-id");
  const json* version = dependency.find("version");
  if ((version != nullptr) == (dependency.find("revision") != nullptr)) {
    dependency.fail("missing-key", "dependency",
                    "expected exactly one of `version` and `revision`");
  }
  if (version != nullptr) {
    if (!version->is_number_unsigned() || version->get<uint64_t>() > INT64_MAX) {
      dependency.fail("type", "version", "`version`: expected a whole number from 0");
    }
    out.version = version->get<int64_t>();
  } else {
    out.revision = dependency.text("revision");
  }
  out.commit = lock.commit("commit");
  return out;
}

LockedEntry old_entry(const Source& source, size_t index, const json& value) {
  const Object entry(source, index, value, "entry", {"repo_id", "sha", "variants"});
  LockedEntry out;
  out.repo_id = entry.repo_id("repo_id");
  out.commit = entry.commit("sha");
  const json& variants = entry.need("variants");
  if (!variants.is_object()) {
    entry.fail("type", "variants", "`variants`: expected an object");
  }
  for (const auto& [name, locked] : variants.items()) {
    const Object variant(source, index, locked, name, {"hash", "hash_type"});
    const std::string hash = variant.text("hash"), type = variant.text("hash_type");
    const bool has_prefix = hash.starts_with(kHashPrefix);
    const auto digits = std::string_view(hash).substr(has_prefix ? kHashPrefix.size() : 0);
    if (!has_prefix || digits.size() != 64 || !is_hex(digits) || type != kHashType ||
        !hub::is_safe_path(name) || name.find('/') != std::string::npos) {
      variant.fail(
          "hash", name,
          fmt::format("`{}`: expected `sha256-` and 64 digits of type {}, got `{}` of `{}`",
                      name.substr(0, 200), kHashType, hash.substr(0, 100), type.substr(0, 100)));
    }
    out.hashes.emplace(name, digits);
  }
  return out;
}

bool before(const LockedEntry& left, const LockedEntry& right) {
  // Versions stand before revisions.
  const auto key = [](const LockedEntry& entry) {
    return std::tuple(entry.repo_id, entry.version ? 0 : 1, entry.version.value_or(0),
                      entry.revision);
  };
  return key(left) < key(right);
}

std::vector<LockedEntry> sorted(std::vector<LockedEntry> entries) {
  std::sort(entries.begin(), entries.end(), before);
  return entries;
}

std::string read_text(const fs::path& path) {
  const auto file = io::MappedFile::open(path);
  const auto bytes = file->bytes();
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

// The hashes that a file beside the lock has for its commits.
void add_hashes(LockFile& lock, const LockFile& hashes) {
  for (const LockedEntry& hashed : hashes.entries) {
    bool is_used = false;
    for (LockedEntry& entry : lock.entries) {
      if (entry.repo_id == hashed.repo_id && entry.commit == hashed.commit) {
        entry.hashes = hashed.hashes;
        is_used = true;
      }
    }
    if (!is_used) {
      throw FormatError("kernel.lock", "hashes",
                        fmt::format("`{}` line {}: expected the commits of `{}`, got {} of `{}`",
                                    hashes.path.string(), hashed.line, lock.path.string(),
                                    hashed.commit, hashed.repo_id),
                        "write both files anew with `graft kernels lock`");
    }
  }
}

}  // namespace

std::string LockedEntry::name() const {
  return version             ? fmt::format("{}@v{}", repo_id, *version)
         : !revision.empty() ? fmt::format("{}@{}", repo_id, revision)
                             : repo_id;
}

LockFile parse_lock(std::string_view text, const fs::path& path) {
  const Source source(text, path);
  const json parsed = source.parse();
  if (!parsed.is_array()) {
    source.fail("type", 1, "expected an array of kernels");
  }
  LockFile lock{path, {}};
  std::set<std::string> names;
  const bool is_old = !parsed.empty() && parsed[0].is_object() && parsed[0].contains("repo_id");
  for (size_t i = 0; i < parsed.size(); ++i) {
    LockedEntry entry = is_old ? old_entry(source, i, parsed[i]) : new_entry(source, i, parsed[i]);
    entry.line = source.line_of_entry(i);
    if (!names.insert(entry.name()).second) {
      source.fail("duplicate", entry.line, fmt::format("`{}` is locked twice", entry.name()));
    }
    lock.entries.push_back(std::move(entry));
  }
  return lock;
}

LockFile read_lock_file(const fs::path& path) {
  LockFile lock = parse_lock(read_text(path), path);
  std::error_code status;
  if (const auto beside = hashes_path(path); fs::exists(beside, status)) {
    add_hashes(lock, parse_lock(read_text(beside), beside));
  }
  return lock;
}

std::string lock_text(const LockFile& lock) {
  auto rows = nlohmann::ordered_json::array();
  for (const LockedEntry& entry : sorted(lock.entries)) {
    nlohmann::ordered_json dependency = {{"repo-id", entry.repo_id}};
    if (entry.version) {
      dependency["version"] = *entry.version;
    } else {
      dependency["revision"] = entry.revision;
    }
    rows.push_back({{"dependency", dependency}, {"lock", {{"commit", entry.commit}}}});
  }
  return rows.dump(2);
}

std::string hashes_text(const LockFile& lock) {
  auto rows = nlohmann::ordered_json::array();
  std::set<std::pair<std::string, std::string>> seen;
  for (const LockedEntry& entry : sorted(lock.entries)) {
    if (entry.hashes.empty() || !seen.emplace(entry.repo_id, entry.commit).second) {
      continue;
    }
    nlohmann::ordered_json variants = nlohmann::ordered_json::object();
    for (const auto& [name, hash] : entry.hashes) {
      variants[name] = {{"hash", std::string(kHashPrefix) + hash}, {"hash_type", kHashType}};
    }
    rows.push_back({{"repo_id", entry.repo_id}, {"sha", entry.commit}, {"variants", variants}});
  }
  return rows.dump(2);
}

fs::path hashes_path(const fs::path& lock) {
  fs::path beside = lock;
  return beside.replace_extension("hashes" + lock.extension().string());
}

std::string variant_hash(const std::vector<hub::RepoFile>& files, std::string_view variant) {
  const std::string prefix = fmt::format("build/{}/", variant);
  std::vector<std::pair<std::string, std::string>> rows;
  for (const auto& file : files) {
    if (file.path.starts_with(prefix) && !file.path.ends_with(".pyc") &&
        file.path.find("/__pycache__/") == std::string::npos) {
      rows.emplace_back(file.path.substr(prefix.size()), file.content_id());
    }
  }
  std::sort(rows.begin(), rows.end());
  std::string bytes;
  for (const auto& [path, id] : rows) {
    bytes += path;
    for (size_t i = 0; i + 1 < id.size(); i += 2) {
      bytes += static_cast<char>(std::stoi(id.substr(i, 2), nullptr, 16));
    }
  }
  return hub::sha256_of(bytes);
}

}  // namespace graft::kernel
