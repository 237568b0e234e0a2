// What became of a package's first run in a process of its own, and how that is remembered.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

namespace graft::kernel {

enum class CanaryStatus {
  kOk,
  kCrash,        // a signal ended the process
  kExit,         // it ended the process itself
  kHang,         // not done within the time
  kOutOfMemory,  // asked for more memory than it may have
  kOutput,       // wrote more text or more files than it may
  kForbidden,    // asked the system for what a kernel has no business with
  kLoad,         // could not be opened, or not as what it says it is
  kNotIsolated,  // was not run: the system did not offer what keeps it in
};

// `ok`, `crash`, …, as in the codes `kernel.canary.<name>`.
std::string_view canary_status_name(CanaryStatus status);

// A layer that computed something else than the reference, in one numeric variant and dtype.
struct CanaryWrongAnswer {
  std::string layer;
  std::string variant;
  std::string dtype;
  std::string reason;
};

struct CanaryVerdict {
  CanaryStatus status = CanaryStatus::kOk;
  std::string detail;                    // for people: the signal, the path, the last step
  std::vector<std::string> gaps;         // what did not keep it in: `landlock: …`
  std::vector<CanaryWrongAnswer> wrong;  // with status ok
  int64_t num_checks = 0;                // guards that ran
  std::vector<std::string> unchecked;    // layers that no guard is for: opened, not run
  double seconds = 0.0;
};

nlohmann::json to_json(const CanaryVerdict& verdict);
// Throws   nlohmann::json::exception, std::out_of_range for an unknown status.
CanaryVerdict verdict_from_json(const nlohmann::json& json);

// Verdicts on disk, one file for each key, below a folder that is this user's alone. They save time;
// a file that is damaged, or that another user could have written, is as good as none.
class CanaryRecords {
 public:
  // folder  created when missing
  explicit CanaryRecords(std::filesystem::path folder);

  std::filesystem::path file_of(const std::string& key) const;
  // The verdict of that key, or nothing; what is there and cannot be used is said in a warning.
  std::optional<CanaryVerdict> find(const std::string& key) const;
  // Remembers a verdict, in one step. Where that is impossible, a warning says so.
  void keep(const std::string& key, const CanaryVerdict& verdict) const;

 private:
  std::filesystem::path folder_;
};

}  // namespace graft::kernel
