#include "graft/hub/server/server.h"

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <string>
#include <thread>

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <httplib.h>
#include <nlohmann/json.hpp>

#include "graft/core/error.h"
#include "graft/hub/server/faults.h"
#include "graft/hub/server/protocol.h"
#include "graft/hub/url.h"

namespace graft::hub::server {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;
using testing::ElementsAre;
using testing::HasSubstr;

constexpr char kHelloGitId[] = "ce013625030ba8dba906f756967f9e9ca394464a";  // git hash-object
constexpr char kHelloSha256[] = "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03";

void put(const fs::path& path, const std::string& content) {
  fs::create_directories(path.parent_path());
  std::ofstream(path, std::ios::binary) << content;
}

// A folder of repositories that goes away, and clients of a server over it.
class HubServer : public testing::Test {
 protected:
  HubServer()
      : base_(fs::temp_directory_path() /
              ("graft-hub-server-" + std::to_string(::getpid()) + "-" +
               testing::UnitTest::GetInstance()->current_test_info()->name())),
        root_(base_ / "root") {
    put(root_ / "models/acme/tiny/config.json", "hello\n");
    put(root_ / "models/acme/tiny/sub/a.txt", "0123456789");
    put(root_ / "models/acme/tiny/sub/deep/b c.txt", "");
    put(root_ / "models/acme/tiny/model.safetensors", "hello\n");
    put(root_ / "acme/relu/build/torch-cpu/metadata.json", R"({"version": 3})");
    options_.folder = root_;
  }
  ~HubServer() override {
    server_.reset();
    fs::remove_all(base_);
  }

  httplib::Client& client() {
    if (!client_) {
      server_ = std::make_unique<Server>(options_);
      client_ = std::make_unique<httplib::Client>("127.0.0.1", server_->port());
      client_->set_url_encode(false);
    }
    return *client_;
  }

  httplib::Result get(const std::string& path, const httplib::Headers& headers = {}) {
    return client().Get(path, headers);
  }

  json get_json(const std::string& path, const httplib::Headers& headers = {}) {
    const auto result = get(path, headers);
    return result ? json::parse(result->body) : json();
  }

  std::string commit() { return get_json("/api/models/acme/tiny")["sha"].get<std::string>(); }

  fs::path base_;
  fs::path root_;
  ServerOptions options_;
  std::unique_ptr<Server> server_;
  std::unique_ptr<httplib::Client> client_;
};

TEST_F(HubServer, AFileCarriesTheHeadersThatClientsNeed) {
  const auto sha = commit();
  for (const std::string revision : {"main", "refs%2Fheads%2Fmain", sha.c_str()}) {
    const auto file = get("/acme/tiny/resolve/" + revision + "/config.json");
    ASSERT_TRUE(file);
    EXPECT_EQ(file->status, 200) << revision;
    EXPECT_EQ(file->body, "hello\n");
    EXPECT_EQ(file->get_header_value("ETag"), "\"" + std::string(kHelloGitId) + "\"");
    EXPECT_EQ(file->get_header_value("X-Repo-Commit"), sha);
  }
  const auto head = client().Head("/acme/tiny/resolve/main/config.json");
  ASSERT_TRUE(head);
  EXPECT_EQ(head->get_header_value("Content-Length"), "6");
  EXPECT_EQ(get("/acme/tiny/resolve/main/sub/deep/b%20c.txt")->status, 200);
}

TEST_F(HubServer, ALargeFileIsARedirectToASignedAddress) {
  options_.large_file_port = 0;
  const auto file = get("/acme/tiny/resolve/main/model.safetensors");
  ASSERT_TRUE(file);
  EXPECT_EQ(file->status, 302);
  EXPECT_EQ(file->get_header_value("X-Linked-ETag"), "\"" + std::string(kHelloSha256) + "\"");
  EXPECT_EQ(file->get_header_value("X-Linked-Size"), "6");
  EXPECT_EQ(file->get_header_value("X-Repo-Commit"), commit());
  const auto origin = "http://127.0.0.1:" + std::to_string(server_->large_file_port());
  const auto location = file->get_header_value("Location");
  ASSERT_TRUE(location.starts_with(origin + "/")) << location;
  EXPECT_NE(server_->large_file_port(), server_->port());
  httplib::Client storage("127.0.0.1", server_->large_file_port());
  auto path = location.substr(origin.size());
  EXPECT_EQ(storage.Get(path)->body, "hello\n");
  const auto digit = path.find("/large/") + 7;
  path[digit] = path[digit] == '0' ? '1' : '0';
  EXPECT_EQ(storage.Get(path)->status, 403);
}

TEST_F(HubServer, RangesAreAnsweredInPart) {
  const std::string path = "/acme/tiny/resolve/main/sub/a.txt";
  const auto part = [&](const char* range) { return get(path, {{"Range", range}}); };
  EXPECT_EQ(part("bytes=3-")->body, "3456789");
  EXPECT_EQ(part("bytes=3-")->status, 206);
  EXPECT_EQ(part("bytes=3-")->get_header_value("Content-Range"), "bytes 3-9/10");
  EXPECT_EQ(part("bytes=2-4")->body, "234");
  EXPECT_EQ(part("bytes=2-4000")->body, "23456789");
  EXPECT_EQ(part("bytes=-4")->body, "6789");
  EXPECT_EQ(part("bytes=10-")->status, 416);
  EXPECT_EQ(part("bytes=10-")->get_header_value("Content-Range"), "bytes */10");
  EXPECT_EQ(part("bytes=1-2,4-5")->body, "0123456789");  // several parts: the whole file
  EXPECT_EQ(part("lines=1-2")->status, 416);             // the HTTP library knows bytes only
}

TEST_F(HubServer, ATreeIsListedInPages) {
  options_.page_size = 2;
  const std::string path = "/api/models/acme/tiny/tree/main";
  std::vector<std::string> seen;
  std::string next = path + "?recursive=true";
  for (int pages = 0; !next.empty() && pages < 10; ++pages) {
    const auto page = get(next);
    for (const auto& entry : json::parse(page->body)) {
      seen.push_back(entry["type"].get<std::string>() + " " + entry["path"].get<std::string>());
    }
    const auto link = page->get_header_value("Link");
    const auto origin = server_->url();
    next = link.empty() ? "" : link.substr(origin.size() + 1, link.find('>') - origin.size() - 1);
  }
  EXPECT_THAT(seen, ElementsAre("file config.json", "file model.safetensors", "directory sub",
                                "file sub/a.txt", "directory sub/deep", "file sub/deep/b c.txt"));
  EXPECT_EQ(get_json(path + "/sub%2Fdeep")[0]["path"], "sub/deep/b c.txt");
  EXPECT_EQ(get_json(path + "/sub/deep")[0]["size"], 0);
  EXPECT_EQ(get(path + "/nowhere")->get_header_value("X-Error-Code"), "EntryNotFound");
}

TEST_F(HubServer, TheTreeNamesContents) {
  const auto tree = get_json("/api/models/acme/tiny/tree/main");
  ASSERT_EQ(tree.size(), 3u);
  EXPECT_EQ(tree[0]["oid"], kHelloGitId);
  EXPECT_FALSE(tree[0].contains("lfs"));
  EXPECT_EQ(tree[1]["lfs"]["oid"], kHelloSha256);
}

TEST_F(HubServer, PathsInfoAnswersFormsAndJson) {
  const std::string path = "/api/models/acme/tiny/paths-info/main";
  const auto form = client().Post(path, "paths=config.json&paths=sub&paths=none&expand=False",
                                  "application/x-www-form-urlencoded");
  ASSERT_TRUE(form);
  const auto rows = json::parse(form->body);
  ASSERT_EQ(rows.size(), 2u);
  EXPECT_EQ(rows[0]["oid"], kHelloGitId);
  EXPECT_EQ(rows[1]["type"], "directory");
  const auto same = client().Post(path, R"({"paths": ["config.json", "sub"]})", "application/json");
  EXPECT_EQ(json::parse(same->body), rows);
}

TEST_F(HubServer, AKernelIsFoundUnderTheVersionOfItsMetadata) {
  const auto branches = get_json("/api/kernels/acme/relu/refs")["branches"];
  ASSERT_EQ(branches.size(), 2u);
  EXPECT_EQ(branches[0]["name"], "main");
  EXPECT_EQ(branches[1]["ref"], "refs/heads/v3");
  const auto path = "/kernels/acme/relu/resolve/v3/build/torch-cpu/metadata.json";
  EXPECT_EQ(get(path)->status, 200);
  EXPECT_EQ(get("/api/models/acme/relu")->status, 200);
  EXPECT_EQ(get("/api/kernels/acme/tiny")->status, 404);
}

TEST_F(HubServer, BranchesAndTagsHaveFoldersOfTheirOwn) {
  put(root_ / "acme/versions/refs/main/README.md", "card");
  put(root_ / "acme/versions/refs/v1/build/x/metadata.json", "{}");
  put(root_ / "acme/versions/tags/v0.1.0/old.txt", "old");
  const auto refs = get_json("/api/kernels/acme/versions/refs");
  EXPECT_EQ(refs["branches"].size(), 2u);
  EXPECT_EQ(refs["tags"][0]["ref"], "refs/tags/v0.1.0");
  EXPECT_EQ(get("/kernels/acme/versions/resolve/v0.1.0/old.txt")->body, "old");
  EXPECT_EQ(get("/kernels/acme/versions/resolve/main/old.txt")->status, 404);
}

TEST_F(HubServer, ACommitChangesWithItsFilesAndAnOldOneIsNotServedWithNewBytes) {
  const auto before = commit();
  EXPECT_EQ(commit(), before);
  put(root_ / "models/acme/tiny/config.json", "changed");
  const auto after = commit();
  EXPECT_NE(after, before);
  EXPECT_EQ(get("/acme/tiny/resolve/" + before + "/sub/a.txt")->status, 200);
  EXPECT_EQ(get("/acme/tiny/resolve/" + before + "/config.json")->status, 404);
  EXPECT_EQ(get("/acme/tiny/resolve/" + after + "/config.json")->body, "changed");
}

TEST_F(HubServer, WhatIsMissingIsSaidInTheHubsCodes) {
  const auto code = [&](const std::string& path) {
    const auto result = get(path);
    return std::to_string(result->status) + " " + result->get_header_value("X-Error-Code");
  };
  EXPECT_EQ(code("/api/models/acme/none"), "404 RepoNotFound");
  EXPECT_EQ(code("/acme/none/resolve/main/config.json"), "404 RepoNotFound");
  EXPECT_EQ(code("/acme/tiny/resolve/v9/config.json"), "404 RevisionNotFound");
  EXPECT_EQ(code("/acme/tiny/resolve/main/none.json"), "404 EntryNotFound");
  EXPECT_EQ(code("/nothing/like/this"), "404 ");
  EXPECT_EQ(client().Delete("/api/models/acme/tiny")->status, 405);
}

TEST_F(HubServer, NothingOutsideTheFolderIsServed) {
  put(base_ / "secret.txt", "secret");
  put(base_ / "other/secret.txt", "secret");
  const auto repository = root_ / "models/acme/tiny";
  fs::create_symlink(base_ / "secret.txt", repository / "link.txt");
  fs::create_directory_symlink(base_ / "other", repository / "folder");
  fs::create_directory_symlink(base_ / "other", root_ / "models/acme/linked");
  fs::create_symlink("config.json", repository / "inside.txt");
  for (const std::string path :
       {"link.txt", "folder/secret.txt", "../../../../secret.txt", "..%2F..%2F..%2F..%2Fsecret.txt",
        "sub/../../../../../secret.txt", "%2e%2e/%2e%2e/%2e%2e/%2e%2e/secret.txt", "/etc/passwd",
        "%2Fetc%2Fpasswd", "config.json%00.txt"}) {
    EXPECT_EQ(get("/acme/tiny/resolve/main/" + path)->status, 404) << path;
  }
  EXPECT_EQ(get("/acme/linked/resolve/main/secret.txt")->status, 404);
  EXPECT_EQ(get("/../other/resolve/main/secret.txt")->status, 404);
  EXPECT_EQ(get("/acme/tiny/resolve/main/inside.txt")->body, "hello\n");
  // A link that appears behind the listing's back.
  const auto sha = commit();
  fs::remove(repository / "config.json");
  fs::create_symlink(base_ / "secret.txt", repository / "config.json");
  EXPECT_EQ(get("/acme/tiny/resolve/" + sha + "/config.json")->status, 404);
}

TEST_F(HubServer, FilesThatJsonCannotNameAreLeftOut) {
  put(root_ / "models/acme/tiny/\xff\xfe.txt", "x");
  put(root_ / "models/acme/tiny/\xff/inside.txt", "x");
  put(root_ / "models/acme/tiny/na me \xc3\xbc#?%.txt", "y");
  std::vector<std::string> names;
  for (const auto& entry : get_json("/api/models/acme/tiny/tree/main?recursive=true")) {
    names.push_back(entry["path"]);
    if (entry["type"] == "file") {
      // There, or in the storage of large files.
      EXPECT_LT(get("/acme/tiny/resolve/main/" + percent_encode(names.back(), "/"))->status, 400)
          << names.back();
    }
  }
  EXPECT_NE(std::find(names.begin(), names.end(), "na me \xc3\xbc#?%.txt"), names.end());
}

TEST_F(HubServer, PrivateAndGatedRepositoriesNeedTheirReaders) {
  put(root_ / ".graft-hub.json",
      R"({"users": {"tok-a": "alice", "tok-b": "bob"}, "trusted-publishers": ["acme"],
          "repositories": {"acme/tiny": {"private": true, "readers": ["alice"]},
                           "acme/relu": {"gated": true, "readers": ["alice"]}}})");
  const auto answer = [&](const std::string& path, const std::string& token) {
    const auto result =
        get(path, token.empty() ? httplib::Headers()
                                : httplib::Headers{{"Authorization", "Bearer " + token}});
    return std::to_string(result->status) + " " + result->get_header_value("X-Error-Code");
  };
  const std::string hidden = "/acme/tiny/resolve/main/config.json";
  EXPECT_EQ(answer(hidden, "tok-a"), "200 ");
  EXPECT_EQ(answer(hidden, "tok-b"), "404 RepoNotFound");
  EXPECT_EQ(answer(hidden, ""), "401 RepoNotFound");
  EXPECT_EQ(answer("/api/models/acme/tiny", ""), "401 RepoNotFound");
  EXPECT_EQ(answer(hidden, "wrong"), "401 ");
  const std::string gated = "/kernels/acme/relu/resolve/main/build/torch-cpu/metadata.json";
  EXPECT_EQ(answer(gated, "tok-a"), "200 ");
  EXPECT_EQ(answer(gated, "tok-b"), "403 GatedRepo");
  EXPECT_EQ(answer(gated, ""), "401 GatedRepo");
  EXPECT_EQ(answer("/api/kernels/acme/relu", ""), "200 ");
  EXPECT_EQ(get_json("/api/whoami-v2", {{"Authorization", "Bearer tok-b"}})["name"], "bob");
  EXPECT_EQ(answer("/api/whoami-v2", ""), "401 ");
  EXPECT_EQ(get_json("/api/organizations/acme/overview")["trustedKernelPublisher"], true);
  EXPECT_EQ(answer("/api/organizations/nobody/overview", ""), "404 ");
}

TEST_F(HubServer, FaultsSpoilTheRequestsTheyName) {
  options_.faults = base_ / "faults.json";
  put(options_.faults, R"([
    {"path": "*/resolve/*/config.json", "skip": 1, "times": 1, "status": 503, "retry_after": 7},
    {"path": "*/sub/a.txt", "method": "GET", "times": 1, "cut_after": 4}])");
  const std::string config = "/acme/tiny/resolve/main/config.json";
  EXPECT_EQ(get(config)->status, 200);
  const auto refused = get(config);
  EXPECT_EQ(refused->status, 503);
  EXPECT_EQ(refused->get_header_value("Retry-After"), "7");
  EXPECT_EQ(get(config)->status, 200);
  const std::string text = "/acme/tiny/resolve/main/sub/a.txt";
  std::string got;
  const auto cut = client().Get(text, [&](const char* data, size_t size) {
    got.append(data, size);
    return true;
  });
  EXPECT_FALSE(cut);
  EXPECT_EQ(got, "0123");
}

TEST_F(HubServer, FaultRulesFollowEachOther) {
  options_.faults = base_ / "faults.json";
  put(options_.faults, R"([{"path": "*/a.txt", "times": 1, "flip_byte": 2},
                           {"path": "*/model.safetensors", "redirect_loop": true},
                           {"path": "/api/*", "delay_ms": 150},
                           {"path": "*/config.json", "declare_length": 3}])");
  const std::string text = "/acme/tiny/resolve/main/sub/a.txt";
  EXPECT_EQ(get(text)->body, "0133456789");
  EXPECT_EQ(get(text)->body, "0123456789");
  EXPECT_EQ(get("/acme/tiny/resolve/main/config.json")->body, "hel");
  const std::string loop = "/acme/tiny/resolve/main/model.safetensors";
  EXPECT_EQ(get(loop)->get_header_value("Location"), server_->url() + loop);
  const auto begin = std::chrono::steady_clock::now();
  EXPECT_EQ(get("/api/models/acme/tiny")->status, 200);
  EXPECT_GE(std::chrono::steady_clock::now() - begin, std::chrono::milliseconds(150));
  // The file is read anew when it changes.
  put(options_.faults, R"([{"path": "*/a.txt", "status": 500}])");
  fs::last_write_time(options_.faults, fs::file_time_type::clock::now() + std::chrono::seconds(5));
  EXPECT_EQ(get(text)->status, 500);
  EXPECT_EQ(get(loop)->status, 302);
}

TEST_F(HubServer, RequestsAreCounted) {
  get("/acme/tiny/resolve/main/config.json",
      {{"Authorization", "Bearer x"}, {"Range", "bytes=1-"}});
  get("/acme/tiny/resolve/main/config.json");
  const auto log = get_json("/.graft/requests");
  EXPECT_EQ(log["total"], 2);
  EXPECT_EQ(log["counts"]["GET /acme/tiny/resolve/main/config.json"], 2);
  EXPECT_EQ(log["requests"][0]["authorized"], true);
  EXPECT_EQ(log["requests"][0]["range"], "bytes=1-");
  EXPECT_EQ(log["requests"][0]["status"], 206);
  EXPECT_EQ(log["requests"][1]["authorized"], false);
  client().Delete("/.graft/requests");
  EXPECT_EQ(get_json("/.graft/requests")["total"], 0);
}

TEST_F(HubServer, APortThatIsTakenIsAnError) {
  client();
  ServerOptions second = options_;
  second.port = server_->port();
  EXPECT_THROW(Server{second}, NetworkError);
}

TEST_F(HubServer, ItStopsWhileARequestWaits) {
  options_.faults = base_ / "faults.json";
  put(options_.faults, R"([{"path": "*", "delay_ms": 60000}])");
  client();
  std::thread asking([&] { get("/api/models/acme/tiny"); });
  std::this_thread::sleep_for(std::chrono::milliseconds(200));
  const auto begin = std::chrono::steady_clock::now();
  server_.reset();
  asking.join();
  EXPECT_LT(std::chrono::steady_clock::now() - begin, std::chrono::seconds(10));
}

TEST(HubServerFiles, AFolderThatIsNoneAndSettingsThatAreWrongAreErrors) {
  EXPECT_THROW(Repositories("/nonexistent/folder"), NotFound);
  const auto file = fs::temp_directory_path() / ("graft-hub-" + std::to_string(::getpid()));
  put(file, R"({"users": ["not", "a", "map"]})");
  EXPECT_THROW(AccessRules::read(file), FormatError);
  fs::remove(file);
}

TEST(HubServerFaults, UnknownKeysAndWrongTypesAreErrors) {
  for (const char* text : {R"({})", R"([1])", R"([{"statu": 500}])", R"([{"status": "500"}])",
                           R"([{"delay_ms": "x"}])"}) {
    EXPECT_THROW(parse_faults(json::parse(text)), FormatError) << text;
  }
  EXPECT_EQ(parse_faults(json::parse(R"([{"path": "*", "status": 500}])"))[0].status, 500);
}

}  // namespace
}  // namespace graft::hub::server
