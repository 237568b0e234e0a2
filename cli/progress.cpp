#include "cli/progress.h"

#include <algorithm>
#include <atomic>
#include <cctype>
#include <csignal>
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
constexpr std::chrono::seconds kBetweenLines{3};

bool is_watched() {
  return isatty(STDERR_FILENO) != 0 && env::get("TERM").value_or("dumb") != "dumb" &&
         env::get("CI").value_or("").empty();
}

// As huggingface_hub reads its variable.
bool is_wanted(const CommonOptions& common) {
  std::string off = env::get("HF_HUB_DISABLE_PROGRESS_BARS").value_or("");
  std::transform(off.begin(), off.end(), off.begin(),
                 [](unsigned char c) { return static_cast<char>(std::toupper(c)); });
  return !common.quiet && !common.json && off != "1" && off != "ON" && off != "YES" &&
         off != "TRUE";
}

size_t terminal_width() {
  winsize size{};
  const bool known = ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0;
  return known ? size.ws_col : 80;
}

// What the handler says; set before it stands.
std::atomic<const char*> interrupt_line{nullptr};
std::atomic<bool> clears_bar{false};

void write_plainly(std::string_view text) {
  [[maybe_unused]] const ssize_t written = ::write(STDERR_FILENO, text.data(), text.size());
}

// Runs in the middle of anything: no more than write() and signal() here.
void on_interrupt(int) {
  if (clears_bar) {
    write_plainly("\r\033[K");
  }
  if (const char* line = interrupt_line) {
    write_plainly(line);
    write_plainly("\n");
  }
  std::signal(SIGINT, SIG_DFL);
  std::raise(SIGINT);
}

}  // namespace

ProgressBar::ProgressBar(const CommonOptions& common, std::string label)
    : common_(common),
      label_(std::move(label)),
      form_(!is_wanted(common) ? Form::kNothing
            : is_watched()     ? Form::kBar
                               : Form::kLines),
      last_(std::chrono::steady_clock::now()) {}

ProgressBar::~ProgressBar() {
  if (drawn_) {
    std::fputs("\r\033[K", stderr);
  }
}

void ProgressBar::update(uint64_t done, uint64_t total, bool bytes, std::string_view item) {
  const auto now = std::chrono::steady_clock::now();
  const std::string numbers = bytes
                                  ? fmt::format("{} of {}", format_bytes(done), format_bytes(total))
                                  : fmt::format("{} of {}", done, total);
  if (form_ == Form::kBar && (!drawn_ || done >= total || now - last_ >= kRedraw)) {
    last_ = now;
    drawn_ = true;
    draw_bar(numbers, done, total);
  }
  if (form_ == Form::kLines && bytes && done < total && now - last_ >= kBetweenLines) {
    last_ = now;
    print_note(common_, fmt::format("{} {}{}", label_, numbers,
                                    item.empty() ? "" : fmt::format(", at {}", item)));
  }
}

void ProgressBar::draw_bar(const std::string& numbers, uint64_t done, uint64_t total) const {
  const size_t used = label_.size() + numbers.size() + 5;
  const size_t width = std::min<size_t>(40, std::max(terminal_width(), used) - used);
  const size_t full = total == 0 ? width : std::min(width, width * done / total);
  const std::string bar = width < 8 ? "" : fmt::format("[{:<{}}] ", std::string(full, '#'), width);
  write_stderr(fmt::format("\r\033[K{} {}{}", label_, bar, numbers));
  std::fflush(stderr);
}

InterruptNote::InterruptNote(const CommonOptions& common, const char* line) {
  if (common.quiet || common.json || std::signal(SIGINT, SIG_IGN) == SIG_IGN) {
    return;
  }
  interrupt_line = line;
  clears_bar = is_watched();
  std::signal(SIGINT, on_interrupt);
}

InterruptNote::~InterruptNote() {
  if (interrupt_line.exchange(nullptr) != nullptr) {
    std::signal(SIGINT, SIG_DFL);
  }
}

}  // namespace graft::cli
