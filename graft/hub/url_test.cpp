#include "graft/hub/url.h"

#include <gtest/gtest.h>

#include "graft/core/error.h"

namespace graft::hub {
namespace {

TEST(Url, OriginIsSchemeHostAndPort) {
  EXPECT_EQ(url_origin("https://Hub.example/a?b"), "https://hub.example:443");
  EXPECT_EQ(url_origin("HTTP://hub.example:8080"), "http://hub.example:8080");
  EXPECT_EQ(url_origin("http://[::1]:90/x"), "http://[::1]:90");
  EXPECT_EQ(url_origin("http://[::1]/x"), "http://[::1]:80");
}

TEST(Url, WhatCannotBeAHubIsRefused) {
  for (const char* url :
       {"file:///etc/passwd", "ftp://x/", "http:/x", "", "//x", "javascript:alert(1)"}) {
    EXPECT_THROW(url_origin(url), NetworkError) << url;
  }
  for (const char* url : {"http://user:secret@x/", "http:///x", "http://a\\@b/", "http://a b/",
                          "http://a%2fb/", "http://a\nb/"}) {
    EXPECT_THROW(url_origin(url), NetworkError) << url;
  }
}

TEST(Url, LocationsAreResolvedAsBrowsersDo) {
  constexpr char kBase[] = "https://hub.example:8443/a/b?c=d";
  EXPECT_EQ(resolve_location(kBase, "http://x/y"), "http://x/y");
  EXPECT_EQ(resolve_location(kBase, "/y"), "https://hub.example:8443/y");
  EXPECT_EQ(resolve_location(kBase, "//x/y"), "https://x/y");
  EXPECT_EQ(resolve_location(kBase, "y"), "https://hub.example:8443/a/y");
  EXPECT_EQ(resolve_location(kBase, "/y?to=http://x"), "https://hub.example:8443/y?to=http://x");
  EXPECT_EQ(resolve_location(kBase, "file:///etc/passwd"), "file:///etc/passwd");
}

TEST(Url, QueriesStayOutOfMessages) {
  EXPECT_EQ(without_query("https://x/y?signature=secret"), "https://x/y");
}

}  // namespace
}  // namespace graft::hub
