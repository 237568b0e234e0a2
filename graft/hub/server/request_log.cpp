#include "graft/hub/server/request_log.h"

#include <utility>

namespace graft::hub::server {

void RequestLog::add(LoggedRequest request) {
  constexpr size_t kKept = 10'000;
  const std::lock_guard lock(mutex_);
  ++total_;
  requests_.push_back(std::move(request));
  if (requests_.size() > kKept) {
    requests_.pop_front();
  }
}

void RequestLog::clear() {
  const std::lock_guard lock(mutex_);
  total_ = 0;
  requests_.clear();
}

nlohmann::ordered_json RequestLog::json() const {
  const std::lock_guard lock(mutex_);
  std::map<std::string, uint64_t> counts;
  auto rows = nlohmann::ordered_json::array();
  for (const auto& request : requests_) {
    ++counts[request.method + " " + request.path];
    rows.push_back({{"method", request.method},
                    {"path", request.path},
                    {"status", request.status},
                    {"range", request.range},
                    {"authorized", request.authorized},
                    {"fault", request.fault}});
  }
  return {{"total", total_}, {"counts", counts}, {"requests", rows}};
}

}  // namespace graft::hub::server
