#include "cli/progress.h"

#include <algorithm>
#include <cstdio>
#include <utility>

#include <fmt/format.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "graft/core/env.h"

#include "cli/output.h"

namespace graft::cli {

namespace {

constexpr std::chrono::milliseconds kRedraw{100};

bool is_watched() {
  return isatty(STDERR_FILENO) != 0 && env::get("TERM").value_or("dumb") != "dumb" &&
         env::get("CI").value_or("").empty();
}

size_t terminal_width() {
  winsize size{};
  const bool known = ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0;
  return known ? size.ws_col : 80;
}

}  // namespace

ProgressBar::ProgressBar(const CommonOptions& common, std::string label)
    : label_(std::move(label)), enabled_(!common.quiet && is_watched()) {}

ProgressBar::~ProgressBar() {
  if (drawn_) {
    std::fputs("\r\033[K", stderr);
  }
}

void ProgressBar::update(uint64_t done, uint64_t total, bool bytes) {
  const auto now = std::chrono::steady_clock::now();
  if (!enabled_ || (drawn_ && done < total && now - last_ < kRedraw)) {
    return;
  }
  last_ = now;
  drawn_ = true;
  const std::string numbers = bytes
                                  ? fmt::format("{} of {}", format_bytes(done), format_bytes(total))
                                  : fmt::format("{} of {}", done, total);
  const size_t used = label_.size() + numbers.size() + 5;
  const size_t width = std::min<size_t>(40, std::max(terminal_width(), used) - used);
  const size_t full = total == 0 ? width : std::min(width, width * done / total);
  const std::string bar = width < 8 ? "" : fmt::format("[{:<{}}] ", std::string(full, '#'), width);
  write_stderr(fmt::format("\r\033[K{} {}{}", label_, bar, numbers));
  std::fflush(stderr);
}

}  // namespace graft::cli
