// What the helper tells the process that started it (graft/kernel/canary_report.h), written so that
// a signal handler may do it too.
#pragma once

#include <string_view>

namespace graft::canary {

// One line `{"<key>":"<text>"}`; bytes that JSON or a terminal could stumble over become `?`.
// Async-signal-safe; keeps errno.
void report(std::string_view key, std::string_view text);

// A line as it stands.
void report_line(std::string_view json);

// Reports and ends the process at once.
[[noreturn]] void report_and_end(std::string_view key, std::string_view text);

}  // namespace graft::canary
