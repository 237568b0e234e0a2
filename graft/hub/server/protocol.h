// The Hub's protocol as clients that only read use it, without a network: a request in, an answer
// out. server.h puts it on a socket.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <string_view>

#include "graft/hub/server/content.h"
#include "graft/hub/server/repositories.h"
#include "graft/hub/server/request.h"

namespace graft::hub::server {

struct Answer {
  int status = 200;
  std::map<std::string, std::string> headers;
  std::string body;                      // when there is no file
  std::shared_ptr<const OpenFile> file;  // `length` bytes of it from `offset`
  uint64_t offset = 0;
  uint64_t length = 0;

  uint64_t size_bytes() const { return file ? length : body.size(); }
};

struct ProtocolOptions {
  size_t page_size = 1000;  // entries of one page of a tree
  int large_file_port = 0;  // redirects of large files go to this port; 0: the one that was asked
};

class Protocol {
 public:
  // `repositories` must outlive this.
  Protocol(Repositories& repositories, ProtocolOptions options);

  // Never throws for what a request holds: every refusal is an answer with a status, a JSON body
  // `{"error": …}` and the Hub's X-Error-Code.
  // Reads the disk; thread-safe.
  Answer answer(const Request& request, const Target& target);

 private:
  struct Asked;  // one request on its way

  Answer api(Asked& asked);
  Answer info(Asked& asked);
  Answer list(const std::string& type, const Target& target, const Request& request);
  Answer refs(Asked& asked);
  Answer tree(Asked& asked);
  Answer paths_info(Asked& asked);
  Answer resolve(Asked& asked);
  Answer large_file(Asked& asked);
  Answer who_am_i(const Request& request);
  Answer publisher(const std::string& name);

  Answer file_answer(Asked& asked, const RepoFile& file);
  bool may_see(Asked& asked, Answer& refusal);
  bool find_repository(Asked& asked, Answer& refusal);
  bool find_tree(Asked& asked, const std::string& revision, Answer& refusal);
  bool may_read_files(Asked& asked, Answer& refusal);
  std::string signature(std::string_view path) const;

  Repositories& repositories_;
  ProtocolOptions options_;
  std::string secret_;  // signs the addresses of large files, as the Hub's storage does
};

}  // namespace graft::hub::server
