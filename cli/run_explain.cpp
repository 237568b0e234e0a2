#include <algorithm>
#include <array>
#include <utility>

#include <fmt/format.h>

#include "graft/core/printable.h"
#include "graft/generation/generate.h"
#include "graft/io/excerpt.h"
#include "graft/kernel/canary.h"
#include "graft/layers/kernelize.h"
#include "graft/trust/journal.h"

#include "cli/kernel_text.h"
#include "cli/load_model.h"
#include "cli/model_path.h"
#include "cli/output.h"
#include "cli/run.h"

namespace graft::cli {

namespace {

// What the journal noted when the packages of the Hub were loaded.
std::vector<trust::JournalEntry> decisions_on(const layers::KernelizeReport& report) {
  const trust::Journal journal(trust::journal_file());
  std::vector<trust::JournalEntry> found;
  for (const auto& row : report.from_hub()) {
    const auto is_of_row = [&](const trust::JournalEntry& entry) {
      return entry.commit == row.commit && entry.variant == row.variant && entry.allowed;
    };
    const auto last = std::find_if(journal.entries().rbegin(), journal.entries().rend(), is_of_row);
    if (last != journal.entries().rend()) {
      found.push_back(*last);
    }
  }
  return found;
}

nlohmann::ordered_json json_of(const std::vector<trust::JournalEntry>& decisions) {
  auto rows = nlohmann::ordered_json::array();
  for (const auto& entry : decisions) {
    rows.push_back({{"repository", entry.repository},
                    {"commit", entry.commit},
                    {"variant", entry.variant},
                    {"reason", entry.reason},
                    {"signer", entry.signer}});
  }
  return rows;
}

std::string text_of(const std::vector<trust::JournalEntry>& decisions) {
  std::string text;
  for (const auto& entry : decisions) {
    text += fmt::format(
        "{} may run: {}, {}\n", entry.repository, entry.reason,
        entry.signer.empty() ? "not signed" : "signed by " + io::excerpt(entry.signer, 240));
  }
  return text;
}

// What the canary said of the packages that were loaded, or would have been.
nlohmann::ordered_json canary_json() {
  auto rows = nlohmann::ordered_json::array();
  for (const auto& [repository, verdict] : kernel::canary_notes()) {
    auto row = nlohmann::ordered_json(kernel::to_json(verdict));
    row["repository"] = repository;
    rows.push_back(std::move(row));
  }
  return rows;
}

std::string canary_lines() {
  std::string text;
  for (const auto& [repository, verdict] : kernel::canary_notes()) {
    text += fmt::format("{} in the canary: {}\n", repository, printable_line(canary_text(verdict)));
  }
  return text;
}

// A prompt, and one token after it.
constexpr std::array<std::pair<const char*, int64_t>, 2> kPasses = {
    {{"prefill", 512}, {"decode", 1}}};

nlohmann::ordered_json attention_json(const models::CausalLM& model) {
  nlohmann::ordered_json object{{"implementation", model.attn_implementation()}};
  for (const auto& [pass, queries] : kPasses) {
    for (const auto& candidate : model.attention_candidates(queries)) {
      object[pass].push_back({{"name", candidate.name}, {"reason", candidate.reason}});
    }
  }
  return object;
}

// The first candidate without a reason is taken; those before it say why they are not.
std::string attention_text(const models::CausalLM& model) {
  std::string text = fmt::format("attention (attn_implementation {}), candidates best first\n",
                                 model.attn_implementation());
  for (const auto& [pass, queries] : kPasses) {
    text += fmt::format("  {} ({} new {})\n", pass, queries, queries == 1 ? "token" : "tokens");
    bool taken = false;
    for (const auto& candidate : model.attention_candidates(queries)) {
      const bool chosen = !taken && candidate.reason.empty();
      text += fmt::format("    {} {}{}\n", chosen ? "*" : "-", candidate.name,
                          candidate.reason.empty() ? "" : ": " + candidate.reason);
      taken = taken || chosen;
    }
  }
  return text;
}

}  // namespace

int run_explain(const ExplainOptions& options) {
  const auto mode = layers::parse_mode(options.mode);
  ModelOptions model_options = settled(options.model, mode);
  model_options.kernel_config.clear();
  model_options.use_kernels = false;  // kernelized below, with the mode that was asked for
  const auto model = load_model(model_options, options.common);
  layers::KernelizeOptions kernelize{.mode = mode,
                                     .device = model->device(),
                                     .dtype = model->dtype(),
                                     .config = kernel_config(options.model)};
  const auto report = layers::kernelize(*model, kernelize);
  const std::string no_graph = generation::graph_refusal(*model);
  if (options.common.json) {
    auto object = report.to_json();
    object["model"] = resolve_model(options.model.model);
    object["cuda_graph"] = {{"possible", no_graph.empty()}, {"reason", no_graph}};
    object["trust"] = json_of(decisions_on(report));
    object["canary"] = canary_json();
    object["attention"] = attention_json(*model);
    print_json(object);
  } else {
    write_report(text_of(decisions_on(report)) + canary_lines() + report.to_text() +
                 attention_text(*model));
    if (model->device().is_cuda()) {
      write_report(fmt::format(
          "decode steps with a static cache: {}\n",
          no_graph.empty() ? "replayed from a CUDA graph" : "no CUDA graph: " + no_graph));
    }
  }
  return 0;
}

}  // namespace graft::cli
