// What is said on stderr while something takes long.
#pragma once

#include <chrono>
#include <cstdint>
#include <string>
#include <string_view>

#include "cli/options.h"

namespace graft::cli {

// A bar where a person looks on: stderr is a terminal that can move its cursor, and CI is not set. At
// most ten redraws a second; it is gone afterwards. Elsewhere, as in a log, a line every few seconds
// for what is counted in bytes, the first after as long. Nothing under --quiet, --json and
// HF_HUB_DISABLE_PROGRESS_BARS.
class ProgressBar {
 public:
  ProgressBar(const CommonOptions& common, std::string label);
  ~ProgressBar();
  ProgressBar(const ProgressBar&) = delete;
  ProgressBar& operator=(const ProgressBar&) = delete;

  // Numbers are a count, or bytes, shown as MiB and GiB. item  what it is at, said in lines.
  void update(uint64_t done, uint64_t total, bool bytes = false, std::string_view item = {});

 private:
  enum class Form { kNothing, kLines, kBar };
  void draw_bar(const std::string& numbers, uint64_t done, uint64_t total) const;

  CommonOptions common_;
  std::string label_;
  Form form_;
  bool drawn_ = false;
  std::chrono::steady_clock::time_point last_;
};

// While it lives, Ctrl-C says what becomes of what was begun before it ends the process as it would have: the bar goes,
// and a line stands in its place. Nothing under --quiet and --json, nothing where the process was started to ignore
// Ctrl-C. One at a time.
class InterruptNote {
 public:
  // line  a literal; what was begun has to be safe to leave at any point.
  InterruptNote(const CommonOptions& common, const char* line);
  ~InterruptNote();
  InterruptNote(const InterruptNote&) = delete;
  InterruptNote& operator=(const InterruptNote&) = delete;
};

// For downloads.
inline constexpr char kDownloadInterrupted[] =
    "interrupted; what has come is kept, the same command goes on from there";

}  // namespace graft::cli
