// One logger for the library. It writes to stderr by default; the host program may replace the
// sink.
#pragma once

#include <memory>

#include <spdlog/spdlog.h>

namespace graft {

// Returns the library's logger. Level from GRAFT_LOG (trace, debug, info, warn, error, off);
// default warn. Thread-safe.
std::shared_ptr<spdlog::logger> log();

}  // namespace graft
