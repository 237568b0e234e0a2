// Files that are broken or hostile, one case per line of the table of known attacks.
#include <chrono>
#include <ctime>
#include <filesystem>
#include <fstream>
#include <functional>
#include <string>

#include <fmt/format.h>
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "graft/core/error.h"
#include "graft/text/regex.h"
#include "graft/text/tokenizer.h"

namespace graft::text {
namespace {

using Json = nlohmann::json;

Json small_file() {
  return Json::parse(R"({"version": "1.0", "truncation": null, "padding": null,
    "added_tokens": [{"id": 3, "content": "<s>", "special": true}],
    "normalizer": null, "pre_tokenizer": {"type": "Whitespace"}, "post_processor": null,
    "decoder": null,
    "model": {"type": "BPE", "unk_token": "?", "vocab": {"a": 0, "b": 1, "ab": 2, "?": 4},
              "merges": [["a", "b"]]}})");
}

// The small file has a hole at id 3 that the added token may not fill; this one is consistent.
Json good_file() {
  Json json = small_file();
  json["model"]["vocab"] = {{"a", 0}, {"b", 1}, {"ab", 2}, {"?", 3}};
  json["added_tokens"][0]["id"] = 4;
  return json;
}

std::string code_of(const std::string& text) {
  try {
    Tokenizer::from_json(text);
  } catch (const FormatError& error) {
    return error.code().substr(std::string("text.tokenizer.").size());
  }
  return "accepted";
}

std::string with(const std::function<void(Json&)>& change) {
  Json json = good_file();
  change(json);
  return code_of(json.dump());
}

TEST(HostileTokenizer, TheFileThatTheCasesStartFromIsGood) {
  EXPECT_EQ(code_of(good_file().dump()), "accepted");
  EXPECT_EQ(Tokenizer::from_json(good_file().dump()).encode("ab <s> ba"),
            (std::vector<int32_t>{2, 4, 1, 0}));
}

TEST(HostileTokenizer, RefusesWhatIsNoTokenizer) {
  EXPECT_EQ(code_of(""), "json");
  EXPECT_EQ(code_of("[]"), "field-type");
  EXPECT_EQ(code_of(good_file().dump().substr(0, 200)), "json");
  EXPECT_EQ(with([](Json& f) { f["version"] = "2.0"; }), "version");
  EXPECT_EQ(with([](Json& f) { f["model"]["type"] = "Magic"; }), "component");
  EXPECT_EQ(with([](Json& f) { f["normalizer"] = {{"type", "Magic"}}; }), "component");
  EXPECT_EQ(with([](Json& f) { f.erase("model"); }), "field-missing");
}

TEST(HostileTokenizer, RefusesBrokenMerges) {
  EXPECT_EQ(with([](Json& f) { f["model"]["merges"] = {{"a", "zz"}}; }), "merges");
  EXPECT_EQ(with([](Json& f) { f["model"]["merges"] = {{"ab", "ab"}}; }), "merges");
  EXPECT_EQ(with([](Json& f) { f["model"]["merges"] = {"a b c"}; }), "merges");
  EXPECT_EQ(with([](Json& f) { f["model"]["merges"] = {7}; }), "merges");
}

TEST(HostileTokenizer, RefusesBrokenIds) {
  EXPECT_EQ(with([](Json& f) { f["model"]["vocab"]["b"] = 0; }), "ids");
  EXPECT_EQ(with([](Json& f) { f["model"]["vocab"]["b"] = -1; }), "ids");
  EXPECT_EQ(with([](Json& f) { f["model"]["vocab"]["b"] = 4294967296; }), "ids");
  EXPECT_EQ(with([](Json& f) { f["model"]["vocab"]["b"] = 4294967295; }), "ids");
  std::string twice = good_file().dump();
  twice.replace(twice.find("\"b\":1"), 5, "\"a\":1");
  EXPECT_EQ(code_of(twice), "duplicate-key");
}

TEST(HostileTokenizer, RefusesTemplatesThatNameWhatIsNotThere) {
  const auto frame = [](const Json& single) {
    return Json{{"type", "TemplateProcessing"},
                {"single", single},
                {"pair", Json::array({"$A", "$B"})},
                {"special_tokens", {{"<s>", {{"id", "<s>"}, {"ids", {4}}, {"tokens", {"<s>"}}}}}}};
  };
  EXPECT_EQ(with([&](Json& f) { f["post_processor"] = frame({"<s>", "$A"}); }), "accepted");
  EXPECT_EQ(with([&](Json& f) { f["post_processor"] = frame({"<t>", "$A"}); }), "post-processor");
  EXPECT_EQ(with([&](Json& f) { f["post_processor"] = frame(Json::array({"$B"})); }),
            "post-processor");
}

TEST(HostileTokenizer, RefusesRangesThatWouldPanicLater) {
  const Json truncation = {{"max_length", 4}, {"stride", 4}, {"strategy", "LongestFirst"}};
  EXPECT_EQ(with([&](Json& f) { f["truncation"] = truncation; }), "truncation");
  EXPECT_EQ(with([](Json& f) {
              f["pre_tokenizer"] = {{"type", "FixedLength"}, {"length", 0}};
            }),
            "field-range");
  EXPECT_EQ(with([](Json& f) {
              f["padding"] = {{"pad_id", 0}, {"pad_to_multiple_of", 0}};
            }),
            "field-range");
  EXPECT_EQ(with([](Json& f) {
              f["decoder"] = {{"type", "Strip"}, {"content", " "}, {"start", -1}, {"stop", 0}};
            }),
            "field-range");
  Json strip = good_file();
  strip["decoder"] = {{"type", "Strip"}, {"content", "a"}, {"start", 9}, {"stop", 9}};
  EXPECT_EQ(Tokenizer::from_json(strip.dump()).decode(std::vector<int32_t>{0, 2}), "b");
}

TEST(HostileTokenizer, RefusesBrokenCharsmapsAndScores) {
  const auto map = [](const char* text) {
    return with([&](Json& f) {
      f["normalizer"] = {{"type", "Precompiled"}, {"precompiled_charsmap", text}};
    });
  };
  EXPECT_EQ(map("!!"), "charsmap");
  EXPECT_EQ(map(""), "charsmap");
  EXPECT_EQ(map("/////w=="), "charsmap");
  const auto unigram = [](const char* model) {
    Json f = good_file();
    f["added_tokens"] = Json::array();
    std::string text = f.dump();
    const std::string old = f["model"].dump();
    return code_of(text.replace(text.find(old), old.size(), model));
  };
  EXPECT_EQ(unigram(R"({"type":"Unigram","unk_id":0,"vocab":[["a",-1.0]]})"), "accepted");
  EXPECT_EQ(unigram(R"({"type":"Unigram","unk_id":7,"vocab":[["a",-1.0]]})"), "field-range");
  EXPECT_EQ(unigram(R"({"type":"Unigram","unk_id":0,"vocab":[]})"), "scores");
  EXPECT_EQ(unigram(R"({"type":"Unigram","unk_id":0,"vocab":[["a",1e999]]})"), "json");
  EXPECT_EQ(unigram(R"({"type":"Unigram","unk_id":0,"vocab":[["a",NaN]]})"), "json");
}

TEST(HostileTokenizer, StopsExpressionsThatExplode) {
  const Regex regex("(a+)+$");
  // The processor's time: what others do on the machine meanwhile is no matter of the limit's.
  const auto spend = [&](size_t letters) {
    const std::string text = std::string(letters, 'a') + "b";
    size_t begin = 0;
    size_t end = 0;
    const std::clock_t started = std::clock();
    EXPECT_THROW(regex.find(text, 0, &begin, &end), FormatError);
    return std::clock() - started;
  };
  spend(28);  // the first search sets up more than itself
  // Sixteen times the steps if nothing stopped them; how long the limit's take is the processor's matter.
  const std::clock_t shorter = spend(28);
  EXPECT_LT(spend(32), 4 * shorter);
  EXPECT_THROW(Regex("(a"), FormatError);
  EXPECT_THROW(Regex(std::string(1 << 20, 'a')), FormatError);
  EXPECT_THROW(Regex("[a&&b]"), FormatError);
}

TEST(HostileTokenizer, RefusesDeepNestingAndOddAddedTokens) {
  std::string nested = R"({"type":"Lowercase"})";
  for (int i = 0; i < 5000; ++i) {
    nested = R"({"type":"Sequence","normalizers":[)" + nested + "]}";
  }
  std::string text = good_file().dump();
  const std::string from = "\"normalizer\":null";
  text.replace(text.find(from), from.size(), "\"normalizer\":" + nested);
  EXPECT_EQ(code_of(text), "json-limits");
  EXPECT_EQ(with([](Json& f) { f["added_tokens"][0]["content"] = ""; }), "added-token");
  EXPECT_EQ(with([](Json& f) { f["added_tokens"][0]["content"] = "ab"; }), "ids");
  EXPECT_EQ(code_of(small_file().dump()), "ids");
  std::string broken = good_file().dump();
  broken.replace(broken.find("<s>"), 3, "\xFF\xFE!");
  EXPECT_EQ(code_of(broken), "json");
  std::string lone = good_file().dump();
  lone.replace(lone.find("<s>"), 3, "\\ud800");
  EXPECT_EQ(code_of(lone), "json");
}

TEST(HostileTokenizer, RefusesByteLevelVocabulariesThatWouldLoseText) {
  EXPECT_EQ(with([](Json& f) {
              f["pre_tokenizer"] = {{"type", "ByteLevel"}, {"add_prefix_space", false}};
              f["model"]["unk_token"] = nullptr;
            }),
            "byte-tokens");
}

TEST(HostileTokenizer, RefusesFileNamesThatLeaveTheFolder) {
  const auto folder = std::filesystem::path(testing::TempDir()) / "hostile_tokenizer";
  std::filesystem::create_directories(folder);
  std::ofstream(folder / "tokenizer.json") << good_file().dump();
  for (const char* name : {"/etc/passwd", "../secret", "a/b"}) {
    std::ofstream(folder / "tokenizer_config.json") << Json{{"vocab_file", name}}.dump();
    EXPECT_THROW(Tokenizer::from_folder(folder), FormatError) << name;
  }
  std::filesystem::remove_all(folder);
}

TEST(HostileTokenizer, LongRunsAreNotQuadratic) {
  const auto tokenizer = Tokenizer::from_folder(std::string(GRAFT_TEST_DATA) + "/text/llama2");
  const auto started = std::chrono::steady_clock::now();
  EXPECT_FALSE(tokenizer.encode(std::string(1'000'000, 'a')).empty());
  EXPECT_FALSE(tokenizer.encode(std::string(1'000'000, ' ')).empty());
  EXPECT_LT(std::chrono::steady_clock::now() - started, std::chrono::seconds(5));
}

}  // namespace
}  // namespace graft::text
