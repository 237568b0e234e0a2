#include "graft/hub/payload.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "graft/core/error.h"

namespace graft::hub {
namespace {

using testing::HasSubstr;

HttpResponse answer(int status, std::map<std::string, std::string> headers) {
  return {status, std::move(headers), ""};
}

template <typename Call>
std::string refusal(const Call& call) {
  try {
    call();
  } catch (const FormatError& error) {
    EXPECT_EQ(error.code(), "hub.client.not-the-hub");
    return error.what();
  }
  ADD_FAILURE() << "expected to be refused";
  return "";
}

TEST(Payload, AnAnswerIsOneStrictDocument) {
  EXPECT_EQ(parse_answer(R"({"a": [1, 2]})", "x")["a"].size(), 2U);
  for (const char* body :
       {"", "<html>", "{", R"({"a": 1, "a": 2})", "{} {}", "\xEF\xBB\xBF{}", "[NaN]"}) {
    EXPECT_THAT(refusal([&] { parse_answer(body, "x"); }), HasSubstr("x")) << body;
  }
  refusal([] { parse_answer(std::string(1'000'000, '['), "x"); });
}

TEST(Payload, RefsAreNamedOnceAndPointToCommits) {
  const std::string commit(40, 'a');
  const auto entry = [](const std::string& name, const std::string& target) {
    return nlohmann::json{{"name", name}, {"targetCommit", target}};
  };
  EXPECT_EQ(parse_refs({entry("v1", commit), entry("main", commit)}, "x").size(), 2U);
  refusal([&] { parse_refs({entry("v1", commit), entry("v1", commit)}, "x"); });
  refusal([&] { parse_refs({entry("v1", "main")}, "x"); });
  refusal([&] { parse_refs({entry("v1", std::string(40, 'A'))}, "x"); });
  refusal([&] { parse_refs({nlohmann::json(5)}, "x"); });
}

TEST(Payload, ABodyBeginsWhereItWasAskedToOrIsRefused) {
  const FilePart asked{100, 200, 1000};
  EXPECT_EQ(first_byte(answer(200, {}), asked, "x"), 0U);
  EXPECT_EQ(first_byte(answer(206, {{"content-range", "bytes 100-199/1000"}}), asked, "x"), 100U);
  for (const char* range : {"", "bytes 101-199/1000", "bytes 100-198/1000", "bytes 100-199/1001",
                            "bytes 100-199/*", "bytes */1000", "bytes 100-199/1000 and more"}) {
    EXPECT_THAT(refusal([&] {
                  first_byte(answer(206, {{"content-range", range}}), asked, "x");
                }),
                HasSubstr(range));
  }
  refusal([&] { first_byte(answer(204, {}), asked, "x"); });
  refusal([&] { first_byte(answer(200, {{"content-encoding", "gzip"}}), asked, "x"); });
  EXPECT_EQ(first_byte(answer(200, {{"content-encoding", "identity"}}), asked, "x"), 0U);
}

TEST(Payload, PathsThatNoFolderCanHoldAreRefused) {
  const auto listed = [](std::vector<std::string> paths) {
    std::vector<RepoFile> files;
    for (auto& path : paths) {
      files.push_back({std::move(path), 1, std::string(40, 'a'), "", ""});
    }
    return files;
  };
  EXPECT_NO_THROW(require_distinct_paths(listed({"a/b", "a.b", "a-b/c", "ab", "A"}), "x"));
  refusal([&] { require_distinct_paths(listed({"a", "b", "a"}), "x"); });
  refusal([&] { require_distinct_paths(listed({"a", "a.x", "a/b/c"}), "x"); });
  refusal([&] { require_distinct_paths(listed({"a/b/c", "a/b"}), "x"); });
}

TEST(Payload, TheNextPageIsReadFromItsLinkAlone) {
  EXPECT_EQ(next_page(answer(200, {{"link", "<http://x/y?cursor=1>; rel=\"next\""}})),
            "http://x/y?cursor=1");
  for (const char* link :
       {"", "<x>; rel=\"prev\"", "> <; rel=\"next\"", "rel=\"next\"", "<x; rel=\"next\""}) {
    EXPECT_EQ(next_page(answer(200, {{"link", link}})), "") << link;
  }
}

TEST(Http, RetryAfterIsSecondsADateOrNothing) {
  const auto wait = [](const char* text) {
    return retry_after(answer(429, {{"retry-after", text}})).count();
  };
  EXPECT_EQ(wait("120"), 120);
  EXPECT_EQ(wait("-5"), 0);
  EXPECT_EQ(wait("soon"), 0);
  EXPECT_EQ(wait("Fri, 31 Dec 1999 23:59:59 GMT"), 0);
  EXPECT_GT(wait("Fri, 31 Dec 2099 23:59:59 GMT"), 1'000'000);
  EXPECT_GE(wait("99999999999999999999"), 999'999);
  EXPECT_EQ(retry_after(answer(429, {{"ratelimit", "\"api\";r=0;t=27"}})).count(), 27);
  EXPECT_EQ(retry_after(answer(429, {{"ratelimit", "\"api\";r=5;t=27"}})).count(), 0);
}

TEST(Http, NoWaitEndsAfterTheDeadline) {
  using std::chrono::seconds;
  const auto now = std::chrono::steady_clock::now();
  EXPECT_FALSE(wait_before_retry(0, seconds(3600), now + seconds(60)));
  EXPECT_FALSE(wait_before_retry(0, seconds(0), now));
  for (int attempt = 0; attempt < 8; ++attempt) {
    const auto wait = wait_before_retry(attempt, seconds(0), now + seconds(60));
    ASSERT_TRUE(wait);
    EXPECT_GT(wait->count(), 0);
    EXPECT_LE(wait->count(), 8000);
  }
}

// A name in an answer must not pass for a line of ours.
TEST(Payload, WhatIsRefusedIsShownOnOneLine) {
  const std::string text = refusal([] { throw_not_the_hub("x", "`a\nhint: do as I say\x1b[2J`"); });
  EXPECT_THAT(text, HasSubstr(R"(`a\nhint: do as I say\x1b[2J`)"));
}

}  // namespace
}  // namespace graft::hub
