#include "graft/core/log.h"

#include <cstdio>
#include <mutex>

#include <spdlog/sinks/base_sink.h>

#include "graft/core/env.h"
#include "graft/core/printable.h"

namespace graft {

namespace {

// Lines on stderr that cannot steer a terminal: they quote names that come from anywhere.
class StderrSink : public spdlog::sinks::base_sink<std::mutex> {
 protected:
  void sink_it_(const spdlog::details::log_msg& message) override {
    spdlog::memory_buf_t text;
    formatter_->format(message, text);
    const std::string line = printable({text.data(), text.size()});
    std::fwrite(line.data(), 1, line.size(), stderr);
  }
  void flush_() override { std::fflush(stderr); }
};

}  // namespace

std::shared_ptr<spdlog::logger> log() {
  static const std::shared_ptr<spdlog::logger> logger = [] {
    auto made = std::make_shared<spdlog::logger>("graft", std::make_shared<StderrSink>());
    made->set_pattern("graft: %l: %v");
    made->set_level(spdlog::level::from_str(env::get("GRAFT_LOG").value_or("warn")));
    return made;
  }();
  return logger;
}

}  // namespace graft
