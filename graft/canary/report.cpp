#include "graft/canary/report.h"

#include <algorithm>
#include <cerrno>
#include <cstring>

#include <unistd.h>

#include "graft/kernel/canary_report.h"

namespace graft::canary {

namespace {

constexpr size_t kMostTextBytes = 1024;

void write_all(const char* data, size_t size) {
  while (size > 0) {
    const ssize_t written = write(kernel::kCanaryReport, data, size);
    if (written < 0 && errno == EINTR) {
      continue;
    }
    if (written <= 0) {
      return;
    }
    data += written;
    size -= static_cast<size_t>(written);
  }
}

}  // namespace

void report_line(std::string_view json) {
  write_all(json.data(), json.size());
  write_all("\n", 1);
}

void report(std::string_view key, std::string_view text) {
  const int kept = errno;
  char line[kMostTextBytes + 128];
  size_t size = 0;
  const auto put = [&](std::string_view piece, size_t most) {
    const size_t count = std::min(piece.size(), most);
    for (size_t i = 0; i < count; ++i) {
      const char c = piece[i];
      line[size++] = c < 0x20 || c >= 0x7f || c == '"' || c == '\\' ? '?' : c;
    }
  };
  line[size++] = '{';
  line[size++] = '"';
  put(key, 32);
  std::memcpy(line + size, "\":\"", 3);
  size += 3;
  put(text, kMostTextBytes);
  std::memcpy(line + size, "\"}\n", 3);
  write_all(line, size + 3);
  errno = kept;
}

void report_and_end(std::string_view key, std::string_view text) {
  report(key, text);
  _exit(1);
}

}  // namespace graft::canary
