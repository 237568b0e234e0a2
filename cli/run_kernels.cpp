// `graft kernels get | info | variants`.
#include <fmt/format.h>
#include <fmt/ranges.h>

#include "graft/core/error.h"
#include "graft/core/printable.h"
#include "graft/hub/client.h"
#include "graft/hub/environment.h"
#include "graft/hub/revision.h"
#include "graft/kernel/locked_kernel.h"

#include "cli/kernel_text.h"
#include "cli/library_report.h"
#include "cli/output.h"
#include "cli/progress.h"
#include "cli/run.h"

namespace graft::cli {

namespace {

using kernel::ResolvedKernel;
using nlohmann::ordered_json;

// Every tree that the arguments name.
std::vector<std::vector<ResolvedKernel>> fetch(const KernelsOptions& options) {
  ProgressBar bar(options.common, "downloading");
  const InterruptNote interrupt(options.common, kDownloadInterrupted);
  const auto progress = [&bar](const hub::DownloadProgress& at) {
    bar.update(at.done_bytes, at.total_bytes, /*bytes=*/true, at.file.path);
  };
  std::vector<std::vector<ResolvedKernel>> trees;
  for (const auto& text : options.kernels) {
    auto request = kernel_argument(text, options);
    request.progress = progress;
    trees.push_back(kernel::resolve_tree(request));
  }
  if (!options.lock.empty()) {
    const auto lock = kernel::read_lock_file(options.lock);
    auto lock_request = lock_options(options);
    lock_request.dry_run = options.dry_run;
    for (const auto& entry : lock.entries) {
      trees.push_back(kernel::resolve_locked(entry.repo_id, lock, lock_request));
    }
  }
  return trees;
}

// What is not here yet is verified when it is loaded.
std::string signature_of(const kernel::Resolution& found) {
  if (found.bytes_fetched > 0) {
    return found.is_signed ? "there, to be verified once fetched" : "none";
  }
  return trust_of(found).signature;
}

constexpr size_t kNameWidth = 17;

std::string info_text(const kernel::Resolution& found) {
  const auto& metadata = found.metadata;
  const auto row = [](const char* name, const std::string& value) {
    return value.empty() ? "" : fmt::format("{:<{}} {}\n", name, kNameWidth, printable_line(value));
  };
  std::vector<std::string> depends;
  for (const auto& dependency : metadata.kernel_depends) {
    depends.push_back(fmt::format("{}@{}", dependency.repo_id, dependency.ref()));
  }
  return row("name", metadata.name) + row("repository", found.repository) +
         row("version", fmt::to_string(metadata.version)) + row("commit", found.commit) +
         row("variant", found.variant) + row("source", found.source) +
         row("license", metadata.license) + row("upstream", metadata.upstream) +
         row("built from", metadata.source) +
         row("backend",
             metadata.backend + (metadata.archs.empty()
                                     ? ""
                                     : fmt::format(" {}", fmt::join(metadata.archs, ", ")))) +
         row("ops under", metadata.id) +
         row("needs Python", fmt::format("{}", fmt::join(metadata.python_depends, ", "))) +
         row("needs kernels", fmt::format("{}", fmt::join(depends, ", "))) +
         row("needs version", metadata.min_version) +
         row("digest", metadata.digest ? fmt::format("{} of {} files", metadata.digest->algorithm,
                                                     metadata.digest->files.size())
                                       : "none") +
         row("signature", signature_of(found)) +
         library_text(library_report(found), 0, kNameWidth) + row("canary", canary_text_of(found)) +
         row("provenance", metadata.is_dirty ? "built from changed sources" : "") +
         row("to fetch", found.bytes_fetched == 0 ? "" : format_bytes(found.bytes_fetched));
}

ordered_json info_json(const ResolvedKernel& kernel) {
  const auto& metadata = kernel.resolution.metadata;
  ordered_json object = to_json(kernel);
  object["name"] = metadata.name;
  object["id"] = metadata.id;
  object["license"] = metadata.license;
  object["upstream"] = metadata.upstream;
  object["built_from"] = metadata.source;
  object["backend"] = metadata.backend;
  object["archs"] = metadata.archs;
  object["python_depends"] = metadata.python_depends;
  object["kernel_depends"] = ordered_json::array();
  for (const auto& dependency : metadata.kernel_depends) {
    object["kernel_depends"].push_back(fmt::format("{}@{}", dependency.repo_id, dependency.ref()));
  }
  object["min_version"] = metadata.min_version;
  object["has_digest"] = metadata.digest.has_value();
  object["signature"] = signature_of(kernel.resolution);
  object["library"] = library_report(kernel.resolution);
  object["canary"] = canary_text_of(kernel.resolution);
  object["dirty"] = metadata.is_dirty;
  return object;
}

// The refs to show variants of: the one that was named, or every version that the Hub has.
std::vector<std::string> refs_of(const kernel::LayerReference& reference, bool all) {
  if (!all || reference.is_path()) {
    return {reference.ref.empty() && !reference.is_path() ? "v1" : reference.ref};
  }
  std::vector<std::string> refs;
  for (const auto& [name, commit] :
       hub::Client().list_refs(hub::RepoType::kKernel, reference.repository).branches) {
    if (hub::version_branch(name)) {
      refs.push_back(name);
    }
  }
  return refs;
}

}  // namespace

int run_kernels_get(const KernelsOptions& options) {
  if (options.kernels.empty() == options.lock.empty()) {
    throw InvalidArgument(
        "cli.kernels", "arguments",
        "graft kernels get: expected kernels or --lock FILE, got neither or both");
  }
  const auto trees = fetch(options);
  uint64_t bytes = 0;
  ordered_json rows = ordered_json::array();
  std::string text, folders;
  for (const auto& tree : trees) {
    for (const auto& kernel : tree) {
      bytes += kernel.resolution.bytes_fetched;
      rows.push_back(to_json(kernel));
    }
    text += to_text(tree, options.dry_run);
    folders += tree.back().resolution.folder.string() + "\n";
  }
  if (options.common.json) {
    print_json({{"kernels", rows}, {"dry_run", options.dry_run}, {"bytes_fetched", bytes}});
    return 0;
  }
  if (options.dry_run) {
    write_report(text);
  } else {
    write_stdout(folders);  // for programs: every byte as it is
    if (!text.empty()) {
      text.pop_back();
      print_note(options.common, text);
    }
  }
  print_note(options.common, fmt::format("{} kernels, {} {}", rows.size(), format_bytes(bytes),
                                         options.dry_run ? "to fetch" : "fetched"));
  return 0;
}

int run_kernels_info(const KernelsOptions& options) {
  KernelsOptions looking = options;
  looking.dry_run = true;
  ordered_json rows = ordered_json::array();
  std::string text;
  for (const auto& name : options.kernels) {
    const auto request = kernel_argument(name, looking);
    const ResolvedKernel found{request.reference, kernel::resolve(request), {}};
    rows.push_back(info_json(found));
    text += text.empty() ? "" : "\n";
    text += info_text(found.resolution);
  }
  if (options.common.json) {
    print_json({{"kernels", rows}});
  } else {
    write_report(text);
  }
  return 0;
}

int run_kernels_variants(const KernelsOptions& options) {
  ordered_json rows = ordered_json::array();
  std::string text;
  for (const auto& name : options.kernels) {
    const auto reference = kernel::parse_kernel_reference(name);
    for (const auto& ref : refs_of(reference, options.all)) {
      auto asked = lock_options(options);
      asked.revision = ref;
      const auto decisions = kernel::get_kernel_variants(reference.repository, asked);
      ordered_json list = ordered_json::array();
      text += fmt::format("{}{}{}\n", reference.repository, ref.empty() ? "" : "@", ref);
      for (const auto& decision : decisions) {
        list.push_back({{"variant", decision.variant},
                        {"accepted", decision.is_accepted},
                        {"reason", decision.reason}});
        text += fmt::format("  {} {}{}\n", decision.is_accepted ? "+" : "-", decision.variant,
                            decision.reason.empty() ? "" : ": " + decision.reason);
      }
      rows.push_back({{"kernel", reference.repository}, {"ref", ref}, {"variants", list}});
    }
  }
  if (options.common.json) {
    print_json({{"kernels", rows}});
  } else {
    write_report(text);
  }
  return 0;
}

}  // namespace graft::cli
