#include "graft/hub/server/server.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <cctype>
#include <condition_variable>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#include <fmt/format.h>
#include <httplib.h>

#include "graft/core/error.h"
#include "graft/hub/server/answers.h"
#include "graft/hub/server/faults.h"
#include "graft/hub/server/protocol.h"
#include "graft/hub/server/request_log.h"

namespace graft::hub::server {

namespace {

constexpr size_t kThreads = 64;  // a connection holds one while it is open
constexpr size_t kPieceBytes = 64 << 10;
constexpr size_t kMaxBodyBytes = 1 << 20;
constexpr char kLogPath[] = "/.graft/requests";

Request to_request(const httplib::Request& from) {
  Request request{from.method, from.target, {}, from.body};
  for (const auto& [name, value] : from.headers) {
    std::string lower = name;
    std::transform(lower.begin(), lower.end(), lower.begin(),
                   [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
    request.headers[lower] = value;
  }
  return request;
}

// Up to `count` bytes of the body, as they are or with the fault's byte changed.
size_t read_body(const Answer& answer, const Fault& fault, uint64_t offset, char* out,
                 size_t count) {
  if (answer.file) {
    count = answer.file->read(answer.offset + offset, out, count);
  } else {
    count = std::min<size_t>(count, answer.body.size() - offset);
    std::copy_n(answer.body.data() + offset, count, out);
  }
  if (fault.flip_byte) {  // counted from the beginning of the file, whatever part was asked for
    const uint64_t first = answer.offset + offset;
    if (*fault.flip_byte >= first && *fault.flip_byte < first + count) {
      out[*fault.flip_byte - first] = static_cast<char>(out[*fault.flip_byte - first] ^ 1);
    }
  }
  return count;
}

// Answers with `answer` as far as `fault` lets it.
void write(Answer answer, const Fault& fault, httplib::Response& response) {
  response.status = answer.status;
  std::string type = "application/json";
  for (const auto& [name, value] : answer.headers) {
    if (name == "Content-Type") {
      type = value;
    } else {
      response.set_header(name, value);
    }
  }
  const uint64_t size = answer.size_bytes();
  const uint64_t declared = fault.declare_length.value_or(size);
  if (declared == 0) {
    return;
  }
  const bool spoilt = fault.declare_length || fault.cut_after || fault.flip_byte;
  if (!answer.file && !spoilt) {
    response.set_content(answer.body, type);
    return;
  }
  const uint64_t available = std::min(size, fault.cut_after.value_or(size));
  response.set_content_provider(
      declared, type,
      [answer = std::move(answer), fault, available](size_t offset, size_t length,
                                                     httplib::DataSink& sink) {
        if (offset >= available) {
          return false;  // closes the connection
        }
        std::array<char, kPieceBytes> piece;
        const auto count = std::min({length, available - offset, piece.size()});
        const auto got = read_body(answer, fault, offset, piece.data(), count);
        return got > 0 && sink.write(piece.data(), got);
      });
}

}  // namespace

class Server::Impl {
 public:
  explicit Impl(const ServerOptions& options)
      : options_(options), repositories_(options.folder), faults_(options.faults) {
    port_ = bind(server_, options.port);
    ProtocolOptions protocol{options.page_size, 0};
    if (options.large_file_port) {
      protocol.large_file_port = bind(large_file_server_, *options.large_file_port);
    }
    protocol_ = std::make_unique<Protocol>(repositories_, protocol);
    large_file_port_ = options.large_file_port ? protocol.large_file_port : port_;
    start(server_);
    if (options.large_file_port) {
      start(large_file_server_);
    }
  }

  ~Impl() {
    {
      const std::lock_guard lock(mutex_);
      stopping_ = true;
    }
    stop_.notify_all();
    for (auto* server : {&server_, &large_file_server_}) {
      server->stop();
    }
    for (auto& thread : threads_) {
      thread.join();
    }
  }

  int port() const { return port_; }
  int large_file_port() const { return large_file_port_; }
  const std::string& host() const { return options_.host; }

 private:
  int bind(httplib::Server& server, int port) {
    server.new_task_queue = [] { return new httplib::ThreadPool(kThreads); };
    server.set_keep_alive_timeout(1);  // an idle connection is waited for when the server stops
    server.set_keep_alive_max_count(1000);
    server.set_payload_max_length(kMaxBodyBytes);
    // Not the library's default, SO_REUSEPORT: two servers would share a port unnoticed.
    server.set_socket_options([](socket_t socket) {
      const int yes = 1;
      ::setsockopt(socket, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
    });
    server.set_tcp_nodelay(true);
    server.set_pre_routing_handler(
        [this](const httplib::Request& request, httplib::Response& response) {
          if (request.method == "POST") {  // routed below, once its body was read
            return httplib::Server::HandlerResponse::Unhandled;
          }
          handle(request, response);
          return httplib::Server::HandlerResponse::Handled;
        });
    server.Post(".*", [this](const httplib::Request& request, httplib::Response& response) {
      handle(request, response);
    });
    const bool bound = port == 0 ? (port = server.bind_to_any_port(options_.host)) > 0
                                 : server.bind_to_port(options_.host, port);
    if (!bound) {
      throw NetworkError("hub.server", "bind",
                         fmt::format("{}:{}: expected a free port of this machine", options_.host,
                                     std::max(port, 0)),
                         "another program may have it; port 0 takes a free one");
    }
    return port;
  }

  void start(httplib::Server& server) {
    threads_.emplace_back([&server] { server.listen_after_bind(); });
    while (!server.is_running()) {  // stop() before that would be lost
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
  }

  void handle(const httplib::Request& from, httplib::Response& response) {
    // The protocol answers ranges; the library would cut the part once more.
    const_cast<httplib::Request&>(from).ranges.clear();
    const auto request = to_request(from);
    const auto target = Target::parse(request.target);
    if (target.path == kLogPath) {
      if (request.method == "DELETE") {
        log_.clear();
      }
      return write(json_answer(log_.json()), {}, response);
    }
    Fault fault;
    bool matched = false;
    Answer answer;
    try {
      const auto rule = faults_.next(request.method, target.path);
      matched = rule.has_value();
      fault = rule.value_or(Fault());
      answer = spoil(request, target, fault);
    } catch (const std::exception& error) {
      answer = refusal(500, "", error.what());
    }
    log_.add({request.method, target.path, request.header("range"), answer.status,
              !request.header("authorization").empty(), matched});
    write(std::move(answer), fault, response);
  }

  Answer spoil(const Request& request, const Target& target, const Fault& fault) {
    if (fault.delay.count() > 0) {
      std::unique_lock lock(mutex_);
      stop_.wait_for(lock, fault.delay, [this] { return stopping_; });
    }
    Answer answer;
    if (fault.redirect_loop) {
      answer.status = 302;
      answer.headers["Location"] =
          fmt::format("http://{}{}", request.header("host"), request.target);
    } else if (fault.status) {
      answer = refusal(*fault.status, "", "Injected fault");
    } else {
      answer = protocol_->answer(request, target);
    }
    if (fault.retry_after) {
      answer.headers["Retry-After"] = fmt::format("{}", *fault.retry_after);
    }
    for (const auto& [name, value] : fault.headers) {
      answer.headers[name] = value;
    }
    return answer;
  }

  ServerOptions options_;
  Repositories repositories_;
  Faults faults_;
  RequestLog log_;
  std::unique_ptr<Protocol> protocol_;
  httplib::Server server_;
  httplib::Server large_file_server_;
  int port_ = 0;
  int large_file_port_ = 0;
  std::mutex mutex_;
  std::condition_variable stop_;
  bool stopping_ = false;
  std::vector<std::thread> threads_;
};

Server::Server(const ServerOptions& options) : impl_(std::make_unique<Impl>(options)) {}
Server::~Server() = default;
int Server::port() const { return impl_->port(); }
int Server::large_file_port() const { return impl_->large_file_port(); }

std::string Server::url() const {
  const auto& host = impl_->host();
  const bool v6 = host.find(':') != std::string::npos;
  return fmt::format("http://{}:{}", v6 ? "[" + host + "]" : host, impl_->port());
}

}  // namespace graft::hub::server
