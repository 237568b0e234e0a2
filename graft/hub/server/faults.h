// Faults that the local Hub injects on request, for tests of clients.
//
// A JSON array of rules; the first that applies to a request spoils it (one that is still skipping, or
// was used up, leaves the request to the next). `path` is a shell pattern over the
// request's decoded path (`*` crosses `/`); every other key is optional:
//
//   {"path": "*.safetensors", "method": "GET",
//    "skip": 1, "times": 2,            let the first request pass, spoil the two after it
//    "status": 503, "retry_after": 1,  answer with this status instead
//    "headers": {"X-Error-Code": "…"}, add or replace headers
//    "delay_ms": 500,                  wait before the answer
//    "cut_after": 1000,                close the connection after so many bytes of the body
//    "flip_byte": 10,                  another value in this byte of the file
//    "declare_length": 20,             say this Content-Length
//    "redirect_loop": true}            redirect to the request's own URL
#pragma once

#include <chrono>
#include <cstdint>
#include <filesystem>
#include <map>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

namespace graft::hub::server {

struct Fault {
  std::string path = "*";
  std::string method;  // empty: any
  uint64_t skip = 0;
  std::optional<uint64_t> times;  // absent: always
  std::optional<int> status;
  std::optional<uint64_t> retry_after;
  std::map<std::string, std::string> headers;
  std::chrono::milliseconds delay{0};
  std::optional<uint64_t> cut_after;
  std::optional<uint64_t> flip_byte;
  std::optional<uint64_t> declare_length;
  bool redirect_loop = false;
};

// Throws   FormatError `hub.server.faults` for anything that is not a list of rules as above, an
//          unknown key included.
std::vector<Fault> parse_faults(const nlohmann::json& rules);

// The rules of one file, which is read anew whenever it changes.
class Faults {
 public:
  // No file: no faults. Throws as parse_faults, and NotFound `hub.server.faults-file`.
  explicit Faults(std::filesystem::path file = {});

  // The rule for this request, counted. Throws as the constructor when the file changed for the
  // worse.
  std::optional<Fault> next(const std::string& method, const std::string& path);

 private:
  void read_if_changed();

  std::filesystem::path file_;
  std::mutex mutex_;
  std::optional<std::filesystem::file_time_type> modified_;
  std::vector<Fault> rules_;
  std::vector<uint64_t> matches_;  // how often each rule matched
};

}  // namespace graft::hub::server
