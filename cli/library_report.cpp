#include "cli/library_report.h"

#include <algorithm>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "graft/core/error.h"
#include "graft/core/printable.h"
#include "graft/kernel/elf_check.h"
#include "graft/kernel/import_report.h"
#include "graft/kernel/open_kernel.h"
#include "graft/kernel/symbol_check.h"

namespace graft::cli {

namespace {

using nlohmann::ordered_json;
using Names = std::vector<std::string>;

constexpr size_t kMostNamed = 8;

std::string some_of(const Names& names) {
  const size_t shown = std::min(names.size(), kMostNamed);
  return fmt::format("{}{}", fmt::join(names.begin(), names.begin() + shown, ", "),
                     shown < names.size() ? fmt::format(" and {} more", names.size() - shown) : "");
}

}  // namespace

ordered_json library_report(const kernel::Resolution& found) {
  ordered_json report = {{"library", ""}};
  if (found.bytes_fetched > 0) {
    return report;
  }
  try {
    const auto library = kernel::find_library(found.folder, found.metadata.id, found.repository);
    report["library"] = library.filename().string();
    const kernel::ElfFacts facts = kernel::check_elf(library);
    report["needed"] = facts.needed;
    report["undefined_symbols"] = facts.undefined.size();
    report["missing_symbols"] = kernel::missing_symbols(facts);
    report["newer_symbol_versions"] = kernel::newer_symbol_versions(facts);
    report["num_constructors"] = facts.num_constructors;
    report["constructors"] = facts.constructors;
    const auto imports = kernel::sensitive_imports(facts);
    report["imports"] = {{"files", imports.files},
                         {"processes", imports.processes},
                         {"network", imports.network},
                         {"code", imports.code}};
  } catch (const LoadError& error) {
    report["refused"] = error.what();
  }
  return report;
}

std::string library_text(const ordered_json& report, size_t indent, size_t width) {
  std::string text;
  const auto row = [&](const char* name, const std::string& value) {
    text += fmt::format("{:{}}{:<{}} {}\n", "", indent, name, width, printable_line(value));
  };
  const std::string library = report.at("library");
  if (library.empty() && !report.contains("refused")) {
    return text;
  }
  if (report.contains("refused")) {
    row("library", fmt::format("{}{}", library.empty() ? "" : library + ", refused: ",
                               report.at("refused").get<std::string>()));
    return text;
  }
  row("library", library);
  row("needs", some_of(report.at("needed")));
  const Names missing = report.at("missing_symbols");
  row("undefined", fmt::format("{} symbols, {}", report.at("undefined_symbols").get<size_t>(),
                               missing.empty() ? "all of them offered here"
                                               : "missing here: " + some_of(missing)));
  if (const Names newer = report.at("newer_symbol_versions"); !newer.empty()) {
    row("newer than usual", some_of(newer));
  }
  const Names constructors = report.at("constructors");
  row("constructors", fmt::format("{}{}", report.at("num_constructors").get<uint64_t>(),
                                  constructors.empty() ? "" : ": " + some_of(constructors)));
  for (const auto& [reaches, names] : report.at("imports").items()) {
    if (!names.empty()) {
      row(fmt::format("reaches {}", reaches).c_str(), some_of(names));
    }
  }
  return text;
}

}  // namespace graft::cli
