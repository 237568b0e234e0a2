#include "cli/output.h"

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <fstream>

#include <fmt/format.h>

#include "graft/core/error.h"
#include "graft/core/printable.h"

namespace graft::cli {

namespace {

// JSON escapes the first 32 control characters only; a terminal obeys some others.
std::string escape_in_json(const std::string& text) {
  std::string out;
  for (size_t i = 0; i < text.size(); ++i) {
    const auto byte = static_cast<unsigned char>(text[i]);
    if (byte == 0x7F) {
      out += "\\u007f";
    } else if (byte == 0xC2 && static_cast<unsigned char>(text[i + 1]) < 0xA0) {
      out += fmt::format("\\u{:04x}", static_cast<unsigned char>(text[++i]));
    } else {
      out += text[i];
    }
  }
  return out;
}

}  // namespace

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

void write_report(std::string_view text) { write_stdout(printable(text)); }

void write_stderr(const std::string& text) { std::fputs(text.c_str(), stderr); }

void print_json(const nlohmann::ordered_json& object) {
  nlohmann::ordered_json with_schema = {{"schema", kJsonSchema}};
  with_schema.update(object);
  // Bytes that are no UTF-8 (a token of half a character) become U+FFFD instead of an exception.
  const auto text =
      with_schema.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace);
  write_stdout(escape_in_json(text) + "\n");
}

void print_note(const CommonOptions& common, std::string_view line) {
  if (!common.quiet) {
    write_stderr(fmt::format("{}\n", printable(line)));
  }
}

int report_error(const std::exception& error, bool json) {
  const auto* known = dynamic_cast<const Error*>(&error);
  const int exit_code = known != nullptr ? known->exit_code() : 1;
  if (json) {
    const std::string text = error.what();  // with the hint as its last line
    nlohmann::ordered_json body = {{"code", known != nullptr ? known->code() : "internal"},
                                   {"message", text.substr(0, text.rfind("\nhint: "))}};
    if (known != nullptr && !known->hint().empty()) {
      body["hint"] = known->hint();
    }
    try {
      print_json({{"error", body}, {"exit_code", exit_code}});
    } catch (const std::exception&) {  // nobody reads stdout: the exit code alone is left
    }
  } else {
    write_stderr(fmt::format("graft: error: {}\n", printable(error.what())));
    if (known != nullptr) {
      write_stderr(fmt::format("code: {}\n", known->code()));
    }
  }
  return exit_code;
}

std::string format_bytes(uint64_t size_bytes) {
  const double mib = static_cast<double>(size_bytes) / (1024.0 * 1024.0);
  return mib < 1024.0 ? fmt::format("{:.1f} MiB", mib) : fmt::format("{:.1f} GiB", mib / 1024.0);
}

std::string format_count(int64_t count) {
  const auto number = static_cast<double>(count);
  return count < 1'000'000       ? fmt::format("{:.1f} K", number / 1e3)
         : count < 1'000'000'000 ? fmt::format("{:.1f} M", number / 1e6)
                                 : fmt::format("{:.2f} B", number / 1e9);
}

std::string format_seconds(double seconds) {
  return seconds < 10.0 ? fmt::format("{:.0f} ms", seconds * 1e3)
                        : fmt::format("{:.1f} s", seconds);
}

uint64_t peak_rss_bytes() {
  // Not getrusage(): its peak is inherited from whatever process started this program.
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);) {
    if (line.rfind("VmHWM:", 0) == 0) {
      return std::stoull(line.substr(6)) * 1024;  // in KiB
    }
  }
  return 0;
}

}  // namespace graft::cli
