#include "graft/hub/url.h"

#include <algorithm>
#include <cctype>

#include <fmt/format.h>

#include "graft/core/error.h"

namespace graft::hub {

namespace {

std::string lower(std::string_view text) {
  std::string out(text);
  std::transform(out.begin(), out.end(), out.begin(),
                 [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  return out;
}

}  // namespace

std::string url_origin(std::string_view url) {
  const auto scheme_end = url.find("://");
  const std::string scheme =
      scheme_end == std::string_view::npos ? "" : lower(url.substr(0, scheme_end));
  if (scheme != "http" && scheme != "https") {
    throw NetworkError("hub.http", "scheme",
                       fmt::format("URL: expected http or https, got `{}`", without_query(url)));
  }
  std::string_view rest = url.substr(scheme_end + 3);
  rest = rest.substr(0, rest.find_first_of("/?#"));
  constexpr std::string_view kOfHosts =
      "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._:[]";
  if (rest.empty() || rest.find_first_not_of(kOfHosts) != std::string_view::npos) {
    throw NetworkError("hub.http", "host",
                       "URL: expected a host's name and maybe a port, got something else");
  }
  const auto bracket = rest.rfind(']');  // the end of an IPv6 address
  const auto colon = rest.rfind(':');
  const bool has_port =
      colon != std::string_view::npos && (bracket == std::string_view::npos || colon > bracket);
  const std::string port = has_port ? "" : (scheme == "https" ? ":443" : ":80");
  return scheme + "://" + lower(rest) + port;
}

std::string without_query(std::string_view url) {
  return std::string(url.substr(0, url.find('?')));
}

std::string resolve_location(std::string_view base_url, std::string_view location) {
  if (const auto scheme_end = location.find(':'); scheme_end < location.find_first_of("/?#")) {
    return std::string(location);
  }
  const auto host_start = base_url.find("://") + 3;
  const auto path_start = std::min(base_url.find('/', host_start), base_url.size());
  if (location.starts_with("//")) {
    return std::string(base_url.substr(0, host_start - 2)) + std::string(location);
  }
  if (location.starts_with('/')) {
    return std::string(base_url.substr(0, path_start)) + std::string(location);
  }
  const auto path = base_url.substr(0, base_url.find('?'));
  const auto last_slash = path.rfind('/');
  return std::string(last_slash < path_start ? path.substr(0, path_start)
                                             : path.substr(0, last_slash)) +
         "/" + std::string(location);
}

std::string percent_encode(std::string_view text, std::string_view keep) {
  std::string out;
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    const bool plain =
        std::isalnum(byte) != 0 || std::string_view("-_.~").find(c) != std::string_view::npos;
    if (plain || keep.find(c) != std::string_view::npos) {
      out += c;
    } else {
      out += fmt::format("%{:02X}", byte);
    }
  }
  return out;
}

}  // namespace graft::hub
