// A Hub for tests in C++: a folder of repositories, a server over it, and a client's environment
// that ends with the object.
#pragma once

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <memory>
#include <string>
#include <vector>

#include <fmt/format.h>
#include <nlohmann/json.hpp>
#include <unistd.h>

#include "graft/hub/http.h"
#include "graft/hub/server/server.h"

namespace graft::hub::server {

class TestHub {
 public:
  explicit TestHub(const std::string& name)
      : base_(std::filesystem::temp_directory_path() / fmt::format("graft-{}-{}", name, getpid())) {
    std::filesystem::remove_all(base_);
    options_.folder = base_ / "served";
    options_.faults = base_ / "faults.json";
    put(".graft-hub.json", R"({"trusted-publishers": ["acme"]})");
    faults("[]");
    set("HF_HOME", (base_ / "home").string());
    set("XDG_CACHE_HOME", (base_ / "xdg").string());
    set("NO_PROXY", "*");
    for (const char* unset : {"HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "KERNELS_CACHE", "HF_TOKEN",
                              "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"}) {
      set(unset, "");
    }
  }
  ~TestHub() {
    server_.reset();
    for (const auto& name : variables_) {
      unsetenv(name.c_str());
    }
    std::filesystem::remove_all(base_);
  }
  TestHub(const TestHub&) = delete;
  TestHub& operator=(const TestHub&) = delete;

  const std::filesystem::path& base() const { return base_; }
  std::filesystem::path cache() const { return base_ / "home/hub"; }
  ServerOptions& options() { return options_; }

  void put(const std::string& path, const std::string& content) {
    const auto file = options_.folder / path;
    std::filesystem::create_directories(file.parent_path());
    std::ofstream(file, std::ios::binary) << content;
  }

  void faults(const std::string& rules) { std::ofstream(options_.faults) << rules; }

  void set(const std::string& name, const std::string& value) {
    setenv(name.c_str(), value.c_str(), 1);
    variables_.push_back(name);
  }

  // Starts on the first call; HF_ENDPOINT then names it.
  void start() {
    if (!server_) {
      server_ = std::make_unique<Server>(options_);
      set("HF_ENDPOINT", server_->url());
    }
  }
  void stop() { server_.reset(); }

  // `METHOD path`, in order, of what was asked since the last call. What a large file's redirect
  // leads to is the storage's, not the Hub's.
  std::vector<std::string> asked(bool with_storage = false) {
    HttpRequest request;
    request.url = server_->url() + "/.graft/requests";
    const auto log = nlohmann::json::parse(http_send(request).body);
    const auto& all = log["requests"];
    std::vector<std::string> rows;
    for (; seen_ < all.size(); ++seen_) {
      const auto path = all[seen_]["path"].get<std::string>();
      if (with_storage || path.find("/.graft/large/") == std::string::npos) {
        rows.push_back(all[seen_]["method"].get<std::string>() + " " + path);
      }
    }
    return rows;
  }

 private:
  std::filesystem::path base_;
  ServerOptions options_;
  std::unique_ptr<Server> server_;
  std::vector<std::string> variables_;
  size_t seen_ = 0;
};

}  // namespace graft::hub::server
