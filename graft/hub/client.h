// The Hub's HTTP interface: which commit a revision is, which files a commit holds, where a file
// lies. Both generations of repositories: models (`/api/models`) and kernels (`/api/kernels`).
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "graft/hub/cache.h"
#include "graft/hub/http.h"

namespace graft::hub {

struct ClientOptions {
  std::string endpoint;  // empty: endpoint() of environment.h
  // Absent: oidc_token() of oidc.h where that is wanted, else token() of environment.h. Empty text: none.
  std::optional<std::string> token;
  // How long the lists of refs and the word on a publisher are taken from memory
  // (private_folder()/answers) instead of being asked for anew; 0: never.
  std::chrono::seconds answers_stay{0};
  // Of one question to the API (files have limits of their own, download.h).
  int max_tries = 5;
  std::optional<std::chrono::seconds> deadline;  // absent: request_deadline() of environment.h
};

// One file of a commit.
struct RepoFile {
  std::string path;  // from the repository's root, `/`-separated, no `..`
  uint64_t size_bytes = 0;
  std::string git_oid;   // SHA-1 of the git blob, 40 hexadecimal digits
  std::string sha256;    // of the content, for files in large storage; else empty
  std::string xet_hash;  // as the listing says it, for Python's clients; else empty

  // Names the content: the blob's name in the cache.
  const std::string& content_id() const { return sha256.empty() ? git_oid : sha256; }
};

// How a transfer ended that threw nothing.
struct ReadResult {
  HttpResponse response;        // without a body
  bool ranges_ignored = false;  // the server sent the whole file instead of the range
  bool is_transient() const { return is_transient_status(response.status); }
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
  // Throws   NotFound `hub.client.{repository,revision,file,unauthorized,gated,forbidden}`;
  //          NetworkError (also when offline()); FormatError for an answer that is not the Hub's.
  std::string resolve_commit(RepoType type, std::string_view repo_id,
                             std::string_view revision) const;

  // Branches and tags. Network: one request.
  GitRefs list_refs(RepoType type, std::string_view repo_id) const;

  // All files below `folder` (empty: all) of a commit, in the listing's order. Network: one request
  // a page of 1,000 files, at most 100 pages.
  std::vector<RepoFile> list_files(RepoType type, std::string_view repo_id, std::string_view commit,
                                   std::string_view folder = {}) const;

  // The same where one page holds them all; nothing where more would be needed. Network: one request.
  std::optional<std::vector<RepoFile>> list_few_files(RepoType type, std::string_view repo_id,
                                                      std::string_view commit,
                                                      std::string_view folder) const;

  // Files directly in `folder` (empty: the root) of a commit. Network: as list_files.
  std::vector<RepoFile> list_folder(RepoType type, std::string_view repo_id,
                                    std::string_view commit, std::string_view folder = {}) const;

  // Names of the folders directly in `folder` of a commit. Network: as list_files.
  std::vector<std::string> list_folders(RepoType type, std::string_view repo_id,
                                        std::string_view commit, std::string_view folder) const;

  // Whether the Hub says that kernels of this organisation may be trusted. Network: one request.
  // An organisation that the Hub does not know (a user's own namespace) is not trusted.
  bool is_trusted_publisher(std::string_view organisation) const;

  // Receives bytes of a file and where in the file the first of them stands; returns false to stop.
  using FileSink = std::function<bool(uint64_t position, std::string_view piece)>;

  // Feeds bytes [begin, end) of a file of a commit to `sink`; all of it from 0 on where the server
  // ignores ranges (the result says so). Redirects are followed by hand, five at most; the token
  // goes to the Hub's own origin only. One try: statuses that may be tried again are returned, the
  // caller goes on from where it stands. Throws as resolve_commit; Cancelled when the sink stopped.
  ReadResult read_file(RepoType type, std::string_view repo_id, std::string_view commit,
                       const RepoFile& file, uint64_t begin, uint64_t end,
                       const FileSink& sink) const;

  // An answer that is no success as the error that it is.
  [[noreturn]] static void throw_status(const HttpResponse& response, const std::string& what);

 private:
  std::string token() const;
  HttpRequest api_request(const std::string& url) const;
  HttpResponse get_api(const std::string& url, const std::string& what) const;
  std::string get_remembered(const std::string& url, const std::string& what) const;
  // Returns the URL of the next page; empty at the end.
  template <typename Visitor>
  std::string visit_page(const std::string& url, const std::string& what,
                         const Visitor& visit) const;
  template <typename Visitor>
  void visit_tree(const std::string& url, const std::string& what, const Visitor& visit) const;
  std::string tree_url(RepoType type, std::string_view repo_id, std::string_view commit,
                       std::string_view folder) const;

  std::string endpoint_;
  bool asks_for_token_;  // oidc.h
  std::string token_;
  std::chrono::seconds answers_stay_;
  int max_tries_;
  std::chrono::seconds deadline_;
};

}  // namespace graft::hub
