#include "graft/layers/trace.h"

#include <algorithm>
#include <map>
#include <tuple>
#include <utility>

#include <fmt/format.h>

namespace graft::layers {

std::vector<SwappedRow> KernelizeReport::swapped() const {
  std::map<std::tuple<std::string, std::string, std::string>, int64_t> counts;
  for (const auto& slot : slots) {
    if (!slot.chosen.empty()) {
      ++counts[{slot.layer, slot.chosen.substr(0, slot.chosen.rfind(':')), slot.variant}];
    }
  }
  std::vector<SwappedRow> rows;
  for (const auto& [key, count] : counts) {
    rows.push_back({std::get<0>(key), std::get<1>(key), std::get<2>(key), count});
  }
  return rows;
}

int64_t KernelizeReport::num_working() const {
  return std::count_if(slots.begin(), slots.end(), [](const SlotTrace& slot) {
    return slot.inside.empty() && (!slot.encloses || !slot.chosen.empty());
  });
}

std::vector<FetchedRow> KernelizeReport::from_hub() const {
  std::map<std::pair<std::string, std::string>, FetchedRow> rows;
  for (const auto& slot : slots) {
    if (!slot.chosen.empty() && !slot.commit.empty()) {
      const auto package = slot.chosen.substr(0, slot.chosen.rfind(':'));
      rows[{package, slot.commit}] = {package,      slot.source,        slot.commit,
                                      slot.variant, slot.bytes_fetched, slot.is_signed};
    }
  }
  std::vector<FetchedRow> out;
  for (auto& [key, row] : rows) {
    out.push_back(std::move(row));
  }
  return out;
}

nlohmann::ordered_json KernelizeReport::to_json() const {
  nlohmann::ordered_json out = {
      {"device", device}, {"dtype", dtype}, {"mode", mode}, {"seconds", seconds}};
  if (dry_run) {
    out["dry_run"] = true;
  }
  if (!disabled_by.empty()) {
    out["disabled_by"] = disabled_by;
  }
  out["swapped"] = nlohmann::ordered_json::array();
  for (const auto& row : swapped()) {
    out["swapped"].push_back({{"layer", row.layer},
                              {"package", row.package},
                              {"variant", row.variant},
                              {"count", row.count}});
  }
  out["from_hub"] = nlohmann::ordered_json::array();
  for (const auto& row : from_hub()) {
    out["from_hub"].push_back({{"package", row.package},
                               {"source", row.source},
                               {"commit", row.commit},
                               {"variant", row.variant},
                               {"bytes_fetched", row.bytes_fetched},
                               {"signed", row.is_signed}});
  }
  out["slots"] = nlohmann::ordered_json::array();
  for (const auto& slot : slots) {
    nlohmann::ordered_json considered = nlohmann::ordered_json::array();
    for (const auto& item : slot.considered) {
      considered.push_back(
          {{"kernel", item.kernel}, {"outcome", item.outcome}, {"reason", item.reason}});
    }
    out["slots"].push_back({{"slot", slot.slot},
                            {"layer", slot.layer},
                            {"numeric_variant", slot.numeric_variant},
                            {"mode", slot.mode},
                            {"inside", slot.inside},
                            {"chosen", slot.chosen},
                            {"variant", slot.variant},
                            {"id", slot.id},
                            {"source", slot.source},
                            {"commit", slot.commit},
                            {"bytes_fetched", slot.bytes_fetched},
                            {"capturable", slot.capturable},
                            {"considered", considered}});
  }
  return out;
}

namespace {

// What does a slot's work.
std::string worker_text(const SlotTrace& slot, const std::string& enclosing_kernel) {
  if (!slot.inside.empty()) {
    return "inside " + enclosing_kernel;
  }
  if (slot.chosen.empty()) {
    return slot.encloses ? "its parts, one by one" : "reference";
  }
  return fmt::format("{}  [{}, {}]", slot.chosen, slot.variant, slot.source);
}

// Why kernels were not taken; a slot inside another has nothing to explain.
std::string refusals_text(const SlotTrace& slot) {
  std::string text;
  for (const auto& item : slot.considered) {
    if (item.outcome != "chosen" && slot.inside.empty()) {
      text += fmt::format("{}{}: {}", text.empty() ? "" : "; ",
                          item.kernel.empty() ? item.outcome : item.kernel, item.reason);
    }
  }
  return text;
}

}  // namespace

std::string KernelizeReport::to_text() const {
  struct Row {
    int64_t count = 0;
    std::string example;
  };
  std::map<std::tuple<std::string, std::string, std::string>, Row>
      rows;                                    // layer (variant), kernel, reason
  std::map<std::string, std::string> kernels;  // by slot; an enclosing one comes first
  int64_t num_swapped = 0;
  for (const auto& slot : slots) {
    num_swapped += slot.chosen.empty() ? 0 : 1;
    const std::string layer = slot.numeric_variant == "default"
                                  ? slot.layer
                                  : fmt::format("{} ({})", slot.layer, slot.numeric_variant);
    kernels[slot.slot] = slot.chosen;
    auto& row = rows[{layer, worker_text(slot, kernels[slot.inside]), refusals_text(slot)}];
    row.count += 1;
    row.example = row.example.empty() ? slot.slot : row.example;
  }
  std::string text;
  for (const auto& [key, row] : rows) {
    const auto& [layer, kernel, reason] = key;
    text += fmt::format("{:>5} x {:<36} {}\n", row.count, layer, kernel);
    if (!reason.empty()) {
      text += fmt::format("          {} ({})\n", reason, row.example);
    }
  }
  for (const auto& row : from_hub()) {
    text += fmt::format("{} at {}: {} bytes {}{}\n", row.package, row.commit, row.bytes_fetched,
                        dry_run ? "to fetch" : "fetched",
                        dry_run ? (row.is_signed ? ", signed" : ", not signed") : "");
  }
  text += fmt::format(
      "{} {} of {} slots on {} in {}, mode {}{}; {:.0f} ms\n", dry_run ? "kernels for" : "swapped",
      num_swapped, num_working(), device, dtype, mode,
      disabled_by.empty() ? "" : fmt::format(" (kernels are off: {})", disabled_by), seconds * 1e3);
  return text;
}

}  // namespace graft::layers
