#include "graft/kernel/canary.h"

#include <charconv>
#include <fstream>
#include <mutex>
#include <set>

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <torch/headeronly/version.h>

#include "graft/core/env.h"
#include "graft/core/error.h"
#include "graft/core/file_lock.h"
#include "graft/core/version.h"
#include "graft/core/warn.h"
#include "graft/hub/environment.h"
#include "graft/kernel/compiled_layer.h"
#include "graft/kernel/digest.h"
#include "graft/kernel/open_kernel.h"

namespace graft::kernel {

namespace {

namespace fs = std::filesystem;

constexpr int kKeySchema = 3;  // another number: what was remembered is void
constexpr std::chrono::seconds kMostWait{90};

// The first line of a file that begins with `prefix`, or nothing.
std::string line_of(const fs::path& file, std::string_view prefix) {
  std::ifstream in(file);
  for (std::string line; std::getline(in, line);) {
    if (line.starts_with(prefix)) {
      return line;
    }
  }
  return "";
}

// Driver and devices, as the driver's own files name them.
std::string cuda_facts() {
  std::string facts = line_of("/proc/driver/nvidia/version", "");
  std::set<std::string> models;
  std::error_code status;
  for (const auto& device : fs::directory_iterator("/proc/driver/nvidia/gpus", status)) {
    models.insert(line_of(device.path() / "information", "Model:"));
  }
  return fmt::format("{}|{}", facts, fmt::join(models, "|"));
}

CanaryLimits limits() {
  CanaryLimits limits;
  if (const auto text = env::get("GRAFT_CANARY_SECONDS")) {
    double seconds = 0.0;
    const auto [end, status] = std::from_chars(text->data(), text->data() + text->size(), seconds);
    if (status != std::errc() || end != text->data() + text->size() || !(seconds > 0.0) ||
        seconds > 3600.0) {
      throw InvalidArgument(
          "kernel.canary", "setting",
          fmt::format("GRAFT_CANARY_SECONDS: expected seconds between 0 and 3600, got `{}`",
                      *text));
    }
    limits.run = std::chrono::duration<double>(seconds);
  }
  return limits;
}

// Once for each text, however many packages.
void warn_once(const std::string& text) {
  static std::mutex mutex;
  static std::set<std::string> said;
  const std::lock_guard lock(mutex);
  if (said.insert(text).second) {
    warn(text);
  }
}

std::mutex notes_mutex;
std::vector<CanaryNote> notes;

CanaryVerdict ask_or_run(const std::string& repository, const Resolution& resolution,
                         const SealedLibraries& libraries, const CanaryDecision& decision) {
  const CanaryRecords records(hub::private_folder() / "canary");
  const std::string key = canary_key(resolution, libraries);
  const auto remembered = [&]() -> std::optional<CanaryVerdict> {
    auto verdict = decision.ask_records ? records.find(key) : std::nullopt;
    // A run without isolation is no answer to who insists on it.
    const bool counts = verdict && (verdict->gaps.empty() || !decision.require_isolation);
    return counts ? verdict : std::nullopt;
  };
  if (const auto verdict = remembered()) {
    return *verdict;
  }
  fs::path lock_file = records.file_of(key);
  const FileLock lock(lock_file.replace_extension(".lock"), kMostWait);
  if (const auto verdict = remembered()) {  // another process was faster
    return *verdict;
  }
  const CanaryVerdict verdict =
      run_canary(repository, resolution, libraries, decision.require_isolation, limits());
  inform(fmt::format("[kernel.canary] `{}`: {} in {:.2f} s, {} checks{}{}", repository,
                     canary_status_name(verdict.status), verdict.seconds, verdict.num_checks,
                     verdict.unchecked.empty() ? "" : "; opened, but not run: ",
                     fmt::join(verdict.unchecked, ", ")));
  if (verdict.status != CanaryStatus::kNotIsolated) {
    records.keep(key, verdict);
  }
  return verdict;
}

}  // namespace

std::optional<CanaryVerdict> remembered_verdict(const Resolution& resolution) {
  const SealedLibraries libraries =
      is_compiled_layer(resolution.folder)
          ? seal_compiled_layer(resolution.folder)
          : SealedLibraries{std::make_shared<const SealedLibrary>(
                find_library(resolution.folder, resolution.metadata.id, resolution.repository))};
  return CanaryRecords(hub::private_folder() / "canary").find(canary_key(resolution, libraries));
}

std::vector<CanaryNote> canary_notes() {
  const std::lock_guard lock(notes_mutex);
  return notes;
}

CanaryDecision decide_canary(const Resolution& resolution) {
  const std::string setting = env::get("GRAFT_CANARY").value_or("on");
  if (setting == "off") {
    return {.run = false};
  }
  if (setting == "always") {
    return {.ask_records = false};
  }
  if (setting == "on" || setting == "strict") {
    return {.run = resolution.source != "embedded hub", .require_isolation = setting == "strict"};
  }
  throw InvalidArgument(
      "kernel.canary", "setting",
      fmt::format("GRAFT_CANARY: expected on, strict, always or off, got `{}`", setting));
}

std::string canary_key(const Resolution& resolution, const SealedLibraries& libraries) {
  std::vector<std::string> hashes;
  for (const auto& library : libraries) {
    hashes.push_back(file_hash(library->path(), "sha256"));
  }
  const fs::path layers = resolution.folder / "layers.json";
  std::error_code status;
  return text_hash(fmt::format("{}\n{}\n{}\n{}\n{}\n{}\n{}\n{}\n{}", kKeySchema, kVersion,
                               TORCH_VERSION, resolution.metadata.name, resolution.metadata.id,
                               fmt::join(hashes, ","),
                               fs::exists(layers, status) ? file_hash(layers, "sha256") : "",
                               line_of("/proc/cpuinfo", "model name"),
                               resolution.metadata.backend == "cuda" ? cuda_facts() : ""));
}

std::vector<CanaryWrongAnswer> pass_canary(const std::string& repository,
                                           const Resolution& resolution,
                                           const SealedLibraries& libraries) {
  const CanaryDecision decision = decide_canary(resolution);
  if (!decision.run) {
    return {};
  }
  const CanaryVerdict verdict = ask_or_run(repository, resolution, libraries, decision);
  {
    const std::lock_guard lock(notes_mutex);
    notes.push_back({repository, verdict});
  }
  const std::string gaps = fmt::format("{}", fmt::join(verdict.gaps, "; "));
  if (verdict.status == CanaryStatus::kNotIsolated) {
    const std::string reason = fmt::format(
        "expected to run packages first in an isolated process, got a system that does not "
        "offer it: {}{}{}",
        gaps, gaps.empty() || verdict.detail.empty() ? "" : "; ", verdict.detail);
    if (decision.require_isolation) {
      throw LoadError("kernel.canary", "not-isolated", fmt::format("`{}`: {}", repository, reason));
    }
    warn_once(fmt::format("[kernel.canary] {}; packages are loaded without", reason));
    return {};
  }
  if (!verdict.gaps.empty()) {
    warn_once(fmt::format(
        "[kernel.canary] packages run first in a process of their own, not wholly isolated: {}",
        gaps));
  }
  if (verdict.status != CanaryStatus::kOk) {
    throw LoadError("kernel.canary", canary_status_name(verdict.status),
                    fmt::format("`{}`: expected a package that runs in the canary process, got: {}",
                                repository, verdict.detail),
                    "GRAFT_CANARY=always runs it again, GRAFT_CANARY=off loads it without");
  }
  // Nothing of it could be used: then it need not come in.
  if (verdict.num_checks > 0 && verdict.wrong.size() == static_cast<size_t>(verdict.num_checks)) {
    throw IncompatibleError(
        "kernel.canary", "wrong-answer",
        fmt::format("`{}`: expected layers that compute what the reference "
                    "does, got none: {}: {}",
                    repository, verdict.wrong.front().layer, verdict.wrong.front().reason));
  }
  return verdict.wrong;
}

}  // namespace graft::kernel
