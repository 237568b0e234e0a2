#include "graft/core/env.h"

#include <algorithm>
#include <cctype>
#include <charconv>
#include <cstdlib>
#include <vector>

#include <fmt/format.h>
#include <pwd.h>
#include <unistd.h>

#include "graft/core/error.h"

namespace graft::env {

std::optional<std::string> get(const char* name) {
  const char* value = std::getenv(name);
  return value == nullptr ? std::nullopt : std::optional<std::string>(value);
}

namespace {

// Of a user, or of whoever runs the process; empty where the system does not know.
std::string home_of(const std::string& name) {
  constexpr size_t kEnough = 16 << 10;
  std::vector<char> data(kEnough);
  passwd user{};
  passwd* found = nullptr;
  const int status = name.empty()
                         ? getpwuid_r(getuid(), &user, data.data(), data.size(), &found)
                         : getpwnam_r(name.c_str(), &user, data.data(), data.size(), &found);
  return status == 0 && found != nullptr && found->pw_dir != nullptr ? found->pw_dir : "";
}

// `~` or `~name` at the start.
std::string expand_user(const std::string& text) {
  if (!text.starts_with('~')) {
    return text;
  }
  const size_t end = std::min(text.find('/'), text.size());
  const std::string name = text.substr(1, end - 1);
  const std::string home = name.empty() ? user_home().string() : home_of(name);
  if (home.empty()) {
    return text;
  }
  return (home == "/" && end < text.size() ? "" : home) + text.substr(end);
}

bool is_name_part(char c) { return std::isalnum(static_cast<unsigned char>(c)) != 0 || c == '_'; }

}  // namespace

std::filesystem::path user_home() {
  const auto named = get("HOME");
  const std::string home = named ? *named : home_of("");
  return home.empty() ? "/" : home;
}

std::filesystem::path expand_path(const std::string& text) {
  const std::string path = expand_user(text);
  std::string expanded;
  for (size_t i = 0; i < path.size();) {
    size_t start = i + 1, end = start;
    const bool braced = path[i] == '$' && start < path.size() && path[start] == '{';
    if (braced) {
      end = path.find('}', ++start);
    } else {
      while (end < path.size() && is_name_part(path[end])) {
        ++end;
      }
    }
    if (path[i] != '$' || end == std::string::npos || end == start) {
      expanded += path[i++];
      continue;
    }
    const size_t next = braced ? end + 1 : end;
    expanded += get(path.substr(start, end - start).c_str()).value_or(path.substr(i, next - i));
    i = next;
  }
  return expanded;
}

std::optional<std::filesystem::path> folder(const char* name) {
  const auto value = get(name);
  return value && !value->empty() ? std::optional(expand_path(*value)) : std::nullopt;
}

bool use_hub_kernels() {
  auto value = get("USE_HUB_KERNELS");
  if (!value) {
    return true;
  }
  std::transform(value->begin(), value->end(), value->begin(),
                 [](unsigned char c) { return static_cast<char>(std::toupper(c)); });
  return *value == "1" || *value == "ON" || *value == "YES" || *value == "TRUE";
}

bool disable_kernel_mapping() {
  const auto value = get("DISABLE_KERNEL_MAPPING");
  if (!value) {
    return false;
  }
  int parsed = 0;
  const auto [end, status] = std::from_chars(value->data(), value->data() + value->size(), parsed);
  if (status != std::errc() || end != value->data() + value->size()) {
    throw InvalidArgument(
        "core.env", "not-an-integer",
        fmt::format("DISABLE_KERNEL_MAPPING: expected an integer, got `{}`", *value));
  }
  return parsed != 0;
}

}  // namespace graft::env
