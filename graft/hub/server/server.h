// A local Hub: a folder of repositories (repositories.h) served with the Hub's protocol
// (protocol.h) over HTTP, for tests and for companies that keep their models at home. It only
// reads. Not meant for the open network: no TLS, no limits per client.
#pragma once

#include <cstddef>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>

namespace graft::hub::server {

struct ServerOptions {
  std::filesystem::path folder;
  std::string host = "127.0.0.1";
  int port = 0;                        // 0: a free one
  std::optional<int> large_file_port;  // large files come from this port, another origin; 0: free
  std::filesystem::path faults;        // rules (faults.h), read anew when the file changes
  size_t page_size = 1000;             // entries of one page of a tree
};

// A server that answers until it is destroyed.
class Running {
 public:
  virtual ~Running() = default;

  virtual int port() const = 0;
  virtual int large_file_port() const = 0;  // port() when there is no second one
  virtual std::string url() const = 0;
};

class Server final : public Running {
 public:
  // Lists and hashes the folder, binds the ports and starts to answer.
  //
  // Throws   NetworkError `hub.server.bind` when a port cannot be had; as Repositories and Faults.
  // Blocking until all files are hashed. Sets SIGPIPE to be ignored, as the HTTP library does.
  explicit Server(const ServerOptions& options);

  // Stops: no new connections; answers under way have a few seconds to end.
  ~Server() override;

  int port() const override;
  int large_file_port() const override;
  std::string url() const override;

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace graft::hub::server
