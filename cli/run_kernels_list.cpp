// `graft kernels list`: what is on this machine.
#include <algorithm>
#include <filesystem>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "graft/hub/environment.h"
#include "graft/hub/inventory.h"
#include "graft/kernel/package_source.h"

#include "cli/output.h"
#include "cli/run.h"

namespace graft::cli {

namespace {

namespace fs = std::filesystem;
using nlohmann::ordered_json;

struct Row {
  std::string repository;
  std::string source;
  std::string commit;
  std::vector<std::string> refs;
  std::vector<std::string> variants;
  uint64_t size_bytes = 0;
};

// The variants in a build/ that are more than a metadata.json, and the bytes of all of them.
void add_variants(const fs::path& build, Row& row) {
  std::error_code status;
  for (const auto& variant : fs::directory_iterator(build, status)) {
    size_t num_files = 0;
    for (const auto& file : fs::recursive_directory_iterator(variant.path(), status)) {
      if (file.is_regular_file(status)) {
        ++num_files;
        row.size_bytes += file.file_size(status);
      }
    }
    if (num_files > 1) {
      row.variants.push_back(variant.path().filename().string());
    }
  }
  std::sort(row.variants.begin(), row.variants.end());
}

// Commits with a build/ in a cache.
void add_cached(const fs::path& cache, hub::RepoType type, std::vector<Row>& rows) {
  for (const auto& repository : hub::list_cached(cache, type)) {
    for (const auto& commit : repository.commits) {
      Row row{repository.repo_id, "cache", commit.commit, commit.refs, {}, 0};
      add_variants(repository.folder / "snapshots" / commit.commit / "build", row);
      if (!row.variants.empty()) {
        rows.push_back(std::move(row));
      }
    }
  }
}

std::vector<Row> all_rows() {
  std::vector<Row> rows;
  for (const auto& name : kernel::embedded_packages()) {
    Row row{name, "embedded hub", "", {}, {}, 0};
    add_variants(kernel::embedded_hub() / name / "build", row);
    rows.push_back(std::move(row));
  }
  add_cached(hub::kernels_cache_folder(), hub::RepoType::kKernel, rows);
  add_cached(hub::cache_folder(), hub::RepoType::kModel, rows);
  std::stable_sort(rows.begin(), rows.end(), [](const Row& left, const Row& right) {
    return left.repository < right.repository;
  });
  return rows;
}

}  // namespace

int run_kernels_list(const KernelsOptions& options) {
  const auto rows = all_rows();
  if (options.common.json) {
    ordered_json list = ordered_json::array();
    for (const auto& row : rows) {
      list.push_back({{"repository", row.repository},
                      {"source", row.source},
                      {"commit", row.commit},
                      {"refs", row.refs},
                      {"variants", row.variants},
                      {"size_bytes", row.size_bytes}});
    }
    print_json({{"kernels", list}});
    return 0;
  }
  std::string text;
  for (const auto& row : rows) {
    text += fmt::format(
        "{:<32} {:<13} {:<20} {:>10}  {}\n", row.repository, row.source,
        row.refs.empty() ? row.commit.substr(0, 12) : fmt::to_string(fmt::join(row.refs, ",")),
        format_bytes(row.size_bytes), fmt::join(row.variants, " "));
  }
  write_report(text);
  print_note(options.common, fmt::format("{} packages", rows.size()));
  return 0;
}

}  // namespace graft::cli
