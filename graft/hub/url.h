// URLs as far as a client of the Hub needs them: whose they are, and where a redirect leads.
#pragma once

#include <string>
#include <string_view>

namespace graft::hub {

// `scheme://host:port` of a URL in lower case, for deciding whether two URLs are the same origin.
// Throws   NetworkError `hub.http.scheme` or `.host` for a URL that is not http or https, or whose
//          host is no plain name and port (user information, a backslash).
std::string url_origin(std::string_view url);

// `url` without its query, which may hold a signature; for messages.
std::string without_query(std::string_view url);

// Resolves a Location header against the URL that answered with it.
std::string resolve_location(std::string_view base_url, std::string_view location);

// Percent-encodes everything but unreserved characters; `keep` names further characters to leave.
std::string percent_encode(std::string_view text, std::string_view keep = {});

}  // namespace graft::hub
