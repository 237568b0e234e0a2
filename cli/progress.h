// A bar on stderr while something takes long.
#pragma once

#include <chrono>
#include <cstdint>
#include <string>

#include "cli/options.h"

namespace graft::cli {

// Draws only where a person looks on: stderr is a terminal that can move its cursor, and neither
// --quiet nor CI is set. At most ten redraws a second; the line is gone afterwards.
class ProgressBar {
 public:
  ProgressBar(const CommonOptions& common, std::string label);
  ~ProgressBar();
  ProgressBar(const ProgressBar&) = delete;
  ProgressBar& operator=(const ProgressBar&) = delete;

  // Numbers are a count, or bytes, shown as MiB and GiB.
  void update(uint64_t done, uint64_t total, bool bytes = false);

 private:
  std::string label_;
  bool enabled_;
  bool drawn_ = false;
  std::chrono::steady_clock::time_point last_;
};

}  // namespace graft::cli
