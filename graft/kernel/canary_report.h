// What the canary's helper is told, and what it says: one JSON object a line. Shared by both sides.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "graft/kernel/canary_process.h"
#include "graft/kernel/canary_verdict.h"
#include "graft/kernel/resolver.h"

namespace graft::kernel {

// Descriptors that the helper finds.
constexpr int kCanaryRequest = 0;
constexpr int kCanaryReport = 3;
constexpr int kCanaryLibrary = 4;  // the first; the others follow

constexpr size_t kMostReportBytes = 4 << 20;
// The line after which the package's own code runs.
constexpr std::string_view kReportOpening = R"({"step":"open"})";

struct CanaryRequest {
  std::string repository;
  Resolution resolution;  // without digest: the libraries are handed down sealed
  std::vector<std::filesystem::path> libraries;  // where the sealed copies were taken from
  std::filesystem::path folder;                  // of the run: `scratch` and `decoy` lie in it
  bool require_isolation = false;
  CanaryLimits limits;
};

std::string canary_request(const CanaryRequest& request);
// Throws   nlohmann::json::exception.
CanaryRequest parse_canary_request(const std::string& text);

// The verdict on a run whose helper has ended.
//
// report  what the helper wrote
// status  of waitpid, when there is one
// output  what the package wrote to stdout and stderr, of which the end is shown
CanaryVerdict judge_report(const std::string& report, std::optional<int> status,
                           const std::string& output);

// Where the helper was, for people: `while guarding SiLU in float32`.
std::string last_step(const std::string& report);

}  // namespace graft::kernel
