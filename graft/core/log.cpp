#include "graft/core/log.h"

#include <spdlog/sinks/stdout_sinks.h>

#include "graft/core/env.h"

namespace graft {

std::shared_ptr<spdlog::logger> log() {
  static const std::shared_ptr<spdlog::logger> logger = [] {
    auto made = std::make_shared<spdlog::logger>("graft",
                                                 std::make_shared<spdlog::sinks::stderr_sink_mt>());
    made->set_pattern("graft: %l: %v");
    made->set_level(spdlog::level::from_str(env::get("GRAFT_LOG").value_or("warn")));
    return made;
  }();
  return logger;
}

}  // namespace graft
