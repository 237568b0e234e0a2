// What was asked of the local Hub, so that a test can say "no request".
#pragma once

#include <cstdint>
#include <deque>
#include <map>
#include <mutex>
#include <string>

#include <nlohmann/json.hpp>

namespace graft::hub::server {

struct LoggedRequest {
  std::string method;
  std::string path;  // decoded, without the query
  std::string range;
  int status = 0;
  bool authorized = false;  // carried a token
  bool fault = false;       // a rule of faults.h matched
};

class RequestLog {
 public:
  void add(LoggedRequest request);
  void clear();

  // {"total": …, "counts": {"GET /path": …}, "requests": [the last 10,000, oldest first]}
  nlohmann::ordered_json json() const;

 private:
  mutable std::mutex mutex_;
  uint64_t total_ = 0;
  std::deque<LoggedRequest> requests_;
};

}  // namespace graft::hub::server
