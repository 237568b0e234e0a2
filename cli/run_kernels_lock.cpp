// `graft kernels lock | verify | diff`.
#include <map>

#include <fmt/format.h>

#include "graft/core/error.h"
#include "graft/hub/disk.h"
#include "graft/hub/revision.h"
#include "graft/kernel/digest.h"
#include "graft/kernel/locked_kernel.h"
#include "graft/kernel/reference.h"

#include "cli/kernel_text.h"
#include "cli/library_report.h"
#include "cli/output.h"
#include "cli/run.h"

namespace graft::cli {

namespace {

namespace fs = std::filesystem;
using kernel::LockedEntry;
using kernel::LockFile;
using nlohmann::ordered_json;

struct Change {
  std::string kernel;
  std::string what;  // added, removed, moved, content
  std::string before;
  std::string after;
};

std::vector<Change> changes_between(const LockFile& before, const LockFile& after) {
  std::map<std::string, const LockedEntry*> old;
  std::vector<Change> changes;
  for (const auto& entry : before.entries) {
    old[entry.name()] = &entry;
  }
  for (const auto& entry : after.entries) {
    const auto found = old.find(entry.name());
    if (found == old.end()) {
      changes.push_back({entry.name(), "added", "", entry.commit});
      continue;
    }
    const LockedEntry& known = *found->second;
    if (known.commit != entry.commit) {
      changes.push_back({entry.name(), "moved", known.commit, entry.commit});
    }
    for (const auto& [variant, hash] : entry.hashes) {
      const auto locked = known.hashes.find(variant);
      if (locked != known.hashes.end() && locked->second != hash) {
        changes.push_back({entry.name() + " " + variant, "content", locked->second, hash});
      }
    }
    old.erase(found);
  }
  for (const auto& [name, entry] : old) {
    changes.push_back({name, "removed", entry->commit, ""});
  }
  return changes;
}

std::string to_text(const std::vector<Change>& changes) {
  std::string text;
  for (const auto& change : changes) {
    text += fmt::format("{:<8} {}{}{}\n", change.what, change.kernel,
                        change.before.empty() ? "" : "  " + change.before.substr(0, 12),
                        change.after.empty() ? "" : " -> " + change.after.substr(0, 12));
  }
  return text;
}

ordered_json to_json(const std::vector<Change>& changes) {
  ordered_json rows = ordered_json::array();
  for (const auto& change : changes) {
    rows.push_back({{"kernel", change.kernel},
                    {"change", change.what},
                    {"before", change.before},
                    {"after", change.after}});
  }
  return rows;
}

std::vector<kernel::KernelDependency> kernels_to_lock(const KernelsOptions& options) {
  if (!options.project.empty()) {
    return kernel::read_pyproject(fs::path(options.project) / "pyproject.toml");
  }
  std::vector<kernel::KernelDependency> kernels;
  for (const auto& text : options.kernels) {
    const auto reference = kernel::parse_kernel_reference(text);
    const auto version = hub::version_branch(reference.ref);
    if (reference.is_path() || reference.ref.empty()) {
      throw InvalidArgument(
          "cli.kernels", "lock",
          fmt::format("--kernel: expected `org/repo@v1` or another ref, got `{}`", text));
    }
    kernels.push_back({reference.repository, version, version ? "" : reference.ref});
  }
  return kernels;
}

// What is wrong with one kernel in the cache; nothing when it is as it was published.
std::vector<std::string> violations_of(const kernel::Resolution& found) {
  return found.metadata.digest ? kernel::digest_violations(found.folder, *found.metadata.digest)
                               : std::vector<std::string>{};
}

// That the Hub was not asked says nothing about the content.
bool is_unasked(const trust::Verdict& verdict) {
  return verdict.reason == trust::Reason::kNotAsked ||
         verdict.reason == trust::Reason::kForeignFiles;
}

constexpr size_t kNameWidth = 17;

}  // namespace

int run_kernels_lock(const KernelsOptions& options) {
  if (options.project.empty() == options.kernels.empty()) {
    throw InvalidArgument("cli.kernels", "lock",
                          "graft kernels lock: expected PROJECT or --kernel, got neither or both");
  }
  const fs::path file =
      options.lock.empty() ? fs::path(options.project) / "kernels.lock" : fs::path(options.lock);
  const auto lock =
      kernel::make_lock(hub::Client(), kernels_to_lock(options), {options.trust_remote_code, {}});
  const auto changes =
      changes_between(fs::exists(file) ? kernel::read_lock_file(file) : LockFile{}, lock);
  if (!options.dry_run) {
    hub::write_atomically(kernel::hashes_path(file), kernel::hashes_text(lock));
    hub::write_atomically(file, kernel::lock_text(lock));
  }
  if (options.common.json) {
    print_json({{"lock", file.string()},
                {"hashes", kernel::hashes_path(file).string()},
                {"dry_run", options.dry_run},
                {"kernels", lock.entries.size()},
                {"changes", to_json(changes)}});
    return 0;
  }
  write_report(to_text(changes));
  print_note(options.common,
             fmt::format("{} kernels, {} changes{} {}", lock.entries.size(), changes.size(),
                         options.dry_run ? "; not written:" : "; wrote", file.string()));
  return 0;
}

int run_kernels_verify(const KernelsOptions& options) {
  if (options.kernels.empty() == options.lock.empty()) {
    throw InvalidArgument(
        "cli.kernels", "arguments",
        "graft kernels verify: expected kernels or --lock FILE, got neither or both");
  }
  std::vector<kernel::ResolvedKernel> found;
  for (const auto& text : options.kernels) {
    for (auto& kernel :
         kernel::resolve_tree(kernel_argument(text, options), kernel::local_sources())) {
      found.push_back(std::move(kernel));
    }
  }
  if (!options.lock.empty()) {
    const auto lock = kernel::read_lock_file(options.lock);
    auto local = lock_options(options);
    local.local_files_only = true;
    for (const auto& entry : lock.entries) {
      found.push_back(kernel::resolve_locked(entry.repo_id, lock, local).back());
    }
  }
  ordered_json rows = ordered_json::array();
  std::string text;
  bool is_right = true;
  for (const auto& kernel : found) {
    const auto violations = violations_of(kernel.resolution);
    const bool has_digest = kernel.resolution.metadata.digest.has_value();
    const auto verdict = trust_of(kernel.resolution);
    const bool is_trusted = verdict.allowed || is_unasked(verdict);
    const auto library = library_report(kernel.resolution);
    is_right &= violations.empty() && is_trusted;
    ordered_json row = to_json(kernel);
    row["signature"] = verdict.signature;
    row["trust"] = trust::to_text(verdict.reason);
    row["has_digest"] = has_digest;
    row["violations"] = violations;
    row["library"] = library;
    rows.push_back(row);
    text += fmt::format("{:<5} {}  {}{}  ({})\n", violations.empty() && is_trusted ? "ok" : "WRONG",
                        name_of(kernel), kernel.resolution.variant,
                        has_digest ? "" : "  (no digest)", verdict.signature);
    text += library_text(library, 6, kNameWidth);
    if (!is_trusted) {
      text += fmt::format("      {}\n", verdict.text);
    }
    for (const auto& violation : violations) {
      text += fmt::format("      {}\n", violation);
    }
  }
  if (options.common.json) {
    print_json({{"kernels", rows}, {"verified", is_right}});
  } else {
    write_report(text);
  }
  return is_right ? 0 : 4;
}

int run_kernels_diff(const KernelsOptions& options) {
  const auto changes = changes_between(kernel::read_lock_file(options.lock),
                                       kernel::read_lock_file(options.other_lock));
  if (options.common.json) {
    print_json({{"changes", to_json(changes)}});
  } else {
    write_report(to_text(changes));
  }
  return changes.empty() ? 0 : 1;
}

}  // namespace graft::cli
