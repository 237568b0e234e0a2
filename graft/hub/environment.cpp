#include "graft/hub/environment.h"

#include <algorithm>
#include <cctype>
#include <charconv>
#include <fstream>
#include <optional>

#include <fmt/format.h>

#include "graft/core/env.h"
#include "graft/core/error.h"

namespace graft::hub {

namespace {

namespace fs = std::filesystem;

fs::path user_cache() {
  return env::folder("XDG_CACHE_HOME").value_or(env::user_home() / ".cache");
}

bool is_true(std::string value) {
  std::transform(value.begin(), value.end(), value.begin(),
                 [](unsigned char c) { return static_cast<char>(std::toupper(c)); });
  return value == "1" || value == "ON" || value == "YES" || value == "TRUE";
}

std::chrono::seconds seconds(const char* name, int otherwise) {
  constexpr int kDay = 86'400;
  const std::string text = env::get(name).value_or("");
  if (text.empty()) {
    return std::chrono::seconds(otherwise);
  }
  int value = 0;
  const auto [end, status] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (status != std::errc() || end != text.data() + text.size() || value < 1 || value > kDay) {
    throw InvalidArgument(
        "hub.environment", "seconds",
        fmt::format("{}: expected seconds from 1 to {}, got `{}`", name, kDay, text));
  }
  return std::chrono::seconds(value);
}

std::string trimmed(const std::string& text) {
  constexpr char kSpace[] = " \t\r\n";
  const auto first = text.find_first_not_of(kSpace);
  return first == std::string::npos ? ""
                                    : text.substr(first, text.find_last_not_of(kSpace) - first + 1);
}

}  // namespace

fs::path home() {
  if (const auto named = env::folder("HF_HOME")) {
    return *named;
  }
  return user_cache() / "huggingface";
}

fs::path private_folder() { return user_cache() / "graft"; }

fs::path cache_folder() {
  if (const auto named = env::folder("HF_HUB_CACHE")) {
    return *named;
  }
  if (const auto named = env::folder("HUGGINGFACE_HUB_CACHE")) {
    return *named;
  }
  return home() / "hub";
}

fs::path kernels_cache_folder() { return env::folder("KERNELS_CACHE").value_or(cache_folder()); }

std::string endpoint() {
  std::string value = env::get("HF_ENDPOINT").value_or("");
  while (value.ends_with('/')) {
    value.pop_back();
  }
  return value.empty() ? "https://huggingface.co" : value;
}

bool implicit_token_disabled() {
  return is_true(env::get("HF_HUB_DISABLE_IMPLICIT_TOKEN").value_or(""));
}

std::optional<std::string> token() {
  if (implicit_token_disabled()) {
    return std::nullopt;
  }
  for (const char* name : {"HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"}) {
    const auto value = trimmed(env::get(name).value_or(""));
    if (!value.empty()) {
      return value;
    }
  }
  std::ifstream file(env::folder("HF_TOKEN_PATH").value_or(home() / "token"));
  std::string value;
  for (std::string line; value.empty() && std::getline(file, line);) {
    value = trimmed(line);
  }
  return value.empty() ? std::nullopt : std::optional<std::string>(value);
}

std::chrono::seconds request_deadline() { return seconds("GRAFT_HUB_DEADLINE", 60); }

std::chrono::seconds stall_timeout() { return seconds("HF_HUB_DOWNLOAD_TIMEOUT", 20); }

bool symlinks_disabled() { return is_true(env::get("HF_HUB_DISABLE_SYMLINKS").value_or("")); }

bool offline() {
  // One that is set to nothing says nothing.
  if (const auto value = env::get("HF_HUB_OFFLINE"); value && !value->empty()) {
    return is_true(*value);
  }
  return is_true(env::get("TRANSFORMERS_OFFLINE").value_or(""));
}

}  // namespace graft::hub
