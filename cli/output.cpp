#include "cli/output.h"

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <iostream>
#include <iterator>

#include <fmt/format.h>
#include <sys/resource.h>
#include <unistd.h>

#include "graft/core/error.h"

namespace graft::cli {

void write_stdout(std::string_view data) {
  errno = 0;
  const bool written = std::fwrite(data.data(), 1, data.size(), stdout) == data.size();
  if (written && std::fflush(stdout) == 0) {
    return;
  }
  if (errno == EPIPE) {
    throw ClosedPipe();
  }
  throw Error("cli", "stdout",
              fmt::format("stdout: expected to write {} bytes, got: {}", data.size(),
                          std::strerror(errno)));
}

std::string read_stdin(std::string_view what) {
  if (isatty(STDIN_FILENO) != 0) {
    throw InvalidArgument("cli", "stdin",
                          fmt::format("{}: expected text on stdin, got a terminal", what),
                          "pipe a file into the program, or give the text as an argument");
  }
  return {std::istreambuf_iterator<char>(std::cin), {}};
}

void print_json(nlohmann::ordered_json object) {
  nlohmann::ordered_json with_schema = {{"schema", kJsonSchema}};
  with_schema.update(object);
  // Bytes that are no UTF-8 (a token of half a character) become U+FFFD instead of an exception.
  const auto text =
      with_schema.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace);
  write_stdout(text + "\n");
}

void print_note(const CommonOptions& common, std::string_view line) {
  if (!common.quiet) {
    fmt::print(stderr, "{}\n", line);
  }
}

int report_error(const std::exception& error, bool json) {
  const auto* known = dynamic_cast<const Error*>(&error);
  const int exit_code = known != nullptr ? known->exit_code() : 1;
  if (json) {
    nlohmann::ordered_json body = {{"code", known != nullptr ? known->code() : "internal"},
                                   {"message", error.what()}};
    if (known != nullptr && !known->hint().empty()) {
      body["hint"] = known->hint();
    }
    print_json({{"error", body}, {"exit_code", exit_code}});
  } else {
    fmt::print(stderr, "graft: error: {}\n", error.what());
    if (known != nullptr) {
      fmt::print(stderr, "code: {}\n", known->code());
    }
  }
  return exit_code;
}

std::string format_bytes(uint64_t size_bytes) {
  const double mib = static_cast<double>(size_bytes) / (1024.0 * 1024.0);
  return mib < 1024.0 ? fmt::format("{:.1f} MiB", mib) : fmt::format("{:.1f} GiB", mib / 1024.0);
}

std::string format_seconds(double seconds) {
  return seconds < 10.0 ? fmt::format("{:.0f} ms", seconds * 1e3)
                        : fmt::format("{:.1f} s", seconds);
}

uint64_t peak_rss_bytes() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return static_cast<uint64_t>(usage.ru_maxrss) * 1024;
}

}  // namespace graft::cli
