// The Hub's HTTP interface: which commit a revision is, which files a commit holds, where a file
// lies. Both generations of repositories: models (`/api/models`) and kernels (`/api/kernels`).
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "graft/hub/cache.h"
#include "graft/hub/http.h"

namespace graft::hub {

struct ClientOptions {
  std::string endpoint;              // empty: endpoint() of environment.h
  std::optional<std::string> token;  // absent: token() of environment.h; empty text: none
};

// One file of a commit.
struct RepoFile {
  std::string path;  // from the repository's root, `/`-separated, no `..`
  uint64_t size_bytes = 0;
  std::string git_oid;  // SHA-1 of the git blob, 40 hexadecimal digits
  std::string sha256;   // of the content, for files in large storage; else empty
};

struct GitRefs {
  std::map<std::string, std::string> branches;  // name -> commit
  std::map<std::string, std::string> tags;
};

class Client {
 public:
  explicit Client(ClientOptions options = {});

  const std::string& endpoint() const { return endpoint_; }

  // The commit that a branch, tag or commit names. Network: one request.
  // Throws   NotFound (repository, revision), NetworkError (also when offline()), FormatError for
  // an
  //          answer that is not the Hub's.
  std::string resolve_commit(RepoType type, std::string_view repo_id,
                             std::string_view revision) const;

  // Branches and tags. Network: one request.
  GitRefs list_refs(RepoType type, std::string_view repo_id) const;

  // All files below `folder` (empty: all) of a commit, in the listing's order. Network: one request
  // a page of 1,000 files, at most 100 pages.
  std::vector<RepoFile> list_files(RepoType type, std::string_view repo_id, std::string_view commit,
                                   std::string_view folder = {}) const;

  // Receives bytes of a file and where in the file the first of them stands; returns false to stop.
  using FileSink = std::function<bool(uint64_t position, std::string_view piece)>;

  // Feeds a file of a commit to `sink` from byte `offset` on (from 0 when the server ignores
  // ranges). Redirects are followed by hand, five at most; the token goes to the Hub's own origin
  // only. One try: the caller goes on from where it stands.
  void read_file(RepoType type, std::string_view repo_id, std::string_view commit,
                 const RepoFile& file, uint64_t offset, const FileSink& sink) const;

 private:
  HttpRequest api_request(const std::string& url) const;
  HttpResponse get_api(const std::string& url, const std::string& what) const;

  std::string endpoint_;
  std::string token_;
};

}  // namespace graft::hub
