// JsonDocument beside io::parse_json: the same texts are accepted, with the same values, and the
// others are refused with the same reason.
#include "graft/text/json_view.h"

#include <filesystem>
#include <fstream>
#include <random>

#include <gtest/gtest.h>

#include "graft/core/error.h"
#include "graft/io/excerpt.h"
#include "graft/io/json.h"

namespace graft::text {
namespace {

using nlohmann::json;

struct Outcome {
  json value;
  std::string reason = "accepted";  // the last part of an error's code
};

json as_json(const JsonView& view) {
  switch (view.kind()) {
    case JsonView::Kind::kNull:
      return nullptr;
    case JsonView::Kind::kFalse:
    case JsonView::Kind::kTrue:
      return view.boolean("value");
    case JsonView::Kind::kInteger:
      return view.integer("value");
    case JsonView::Kind::kReal:
      return view.real("value");
    case JsonView::Kind::kText:
      return std::string(view.text("value"));
    case JsonView::Kind::kArray: {
      json array = json::array();
      view.each([&](const JsonView& item) { array.push_back(as_json(item)); });
      return array;
    }
    case JsonView::Kind::kObject: {
      json object = json::object();
      view.each_member([&](std::string_view key, const JsonView& item) {
        object[std::string(key)] = as_json(item);
      });
      return object;
    }
  }
  return nullptr;
}

template <typename Parse>
Outcome outcome_of(Parse&& parse) {
  try {
    return {parse(), "accepted"};
  } catch (const FormatError& error) {
    EXPECT_TRUE(io::is_utf8(error.what()));
    return {nullptr, error.code().substr(error.where().size() + 1)};
  }
}

Outcome read_view(const std::string& text) {
  return outcome_of([&] { return as_json(JsonDocument(text, "f").root()); });
}

Outcome read_tree(const std::string& text) {
  const io::JsonLimits limits{.max_bytes = size_t{512} << 20, .max_memory_bytes = size_t{2} << 30};
  return outcome_of([&] { return io::parse_json(text, "room", "f", limits); });
}

// Both readers, compared; returns what they agree on.
std::string agreed(const std::string& text) {
  const Outcome view = read_view(text);
  const Outcome tree = read_tree(text);
  EXPECT_EQ(view.reason, tree.reason) << io::excerpt(text, 300);
  EXPECT_TRUE(view.value == tree.value) << io::excerpt(text, 300);
  return tree.reason;
}

TEST(JsonView, ReadsEveryFileOfTheTestsAsTheTreeDoes) {
  int files = 0;
  for (const auto& entry : std::filesystem::recursive_directory_iterator(GRAFT_TEST_DATA)) {
    if (entry.path().extension() == ".json") {
      std::ifstream file(entry.path(), std::ios::binary);
      const std::string text{std::istreambuf_iterator<char>(file), {}};
      EXPECT_EQ(agreed(text), "accepted") << entry.path();
      ++files;
    }
  }
  EXPECT_GT(files, 30);
}

TEST(JsonView, RefusesWhatTheTreeRefuses) {
  for (const std::string text : {"",
                                 " ",
                                 "nul",
                                 "nulll",
                                 "tru",
                                 "{",
                                 "}",
                                 "[",
                                 "]",
                                 "[1,]",
                                 "[,1]",
                                 "{\"a\":1,}",
                                 "{a:1}",
                                 "{\"a\"}",
                                 "{\"a\":}",
                                 "{1:2}",
                                 "'a'",
                                 "// c\n1",
                                 "/**/1",
                                 "01",
                                 "-",
                                 "-01",
                                 "+1",
                                 ".5",
                                 "1.",
                                 "1.e5",
                                 "1e",
                                 "1e+",
                                 "0x1",
                                 "NaN",
                                 "-NaN",
                                 "Infinity",
                                 "1e999",
                                 "-1e999",
                                 "1 2",
                                 "{} {}",
                                 "[1] x",
                                 "\"",
                                 "\"\\",
                                 "\"\\x\"",
                                 "\"\\u12\"",
                                 "\"\\u12g4\"",
                                 "\"\\u+123\"",
                                 "\"\\ud800\"",
                                 "\"\\ud800\\u0041\"",
                                 "\"\\udc00\"",
                                 "\"\\ud800x\"",
                                 "\"\xff\"",
                                 "\"\xc0\x80\"",
                                 "\"\xed\xa0\x80\"",
                                 "\"\xf4\x90\x80\x80\"",
                                 "\"a\nb\"",
                                 "\"\t\"",
                                 "\xEF\xBB\xBF{}",
                                 "\f1",
                                 "\v1",
                                 "[1 2]",
                                 "{\"a\" 1}",
                                 "{\"a\":1 \"b\":2}"}) {
    EXPECT_EQ(agreed(text), "json") << io::excerpt(text);
  }
  for (const std::string& text : {std::string("{}\0", 3), std::string("\0", 1),
                                  std::string("[1,\0]", 5), std::string("\"a\0b\"", 5)}) {
    EXPECT_EQ(agreed(text), "json");
  }
  EXPECT_EQ(agreed("1" + std::string(400, '0')), "json");
}

TEST(JsonView, AcceptsWhatTheTreeAccepts) {
  for (const std::string text : {"0",
                                 "-0",
                                 "-0.0",
                                 "1e-999",
                                 "-1e-999",
                                 "1e5",
                                 "1E+5",
                                 "2.5e-3",
                                 "9223372036854775807",
                                 "-9223372036854775808",
                                 "1000000000000000019884624838656",
                                 "5e-324",
                                 "1.7976931348623157e308",
                                 "\"\"",
                                 "\"\\u0000\"",
                                 "\"\\ud83d\\ude00\"",
                                 "\"\\uD83D\\uDE00\"",
                                 "\"\\\"\\\\\\/\\b\\f\\n\\r\\t\"",
                                 "\"\x7f\"",
                                 "\"é\"",
                                 "[]",
                                 "{}",
                                 " [ ] ",
                                 "{\"\":1}",
                                 "{\"a\\u0000\":1,\"a\":2}",
                                 "[[[[]]]]",
                                 "\r\n\t 1 \r\n\t"}) {
    EXPECT_EQ(agreed(text), "accepted") << io::excerpt(text);
  }
  // Whole numbers of 64 bits without a sign are numbers to both; the view has them as reals.
  EXPECT_EQ(read_view("18446744073709551615").value.get<double>(), 0x1p64);
}

TEST(JsonView, HasTheLimitsOfTheTree) {
  const auto nested = [](size_t depth, const char* open, const char* close) {
    std::string text;
    for (size_t i = 0; i < depth; ++i) {
      text += open;
    }
    text += "1";
    for (size_t i = 0; i < depth; ++i) {
      text += close;
    }
    return text;
  };
  EXPECT_EQ(agreed(nested(64, "[", "]")), "accepted");
  EXPECT_EQ(agreed(nested(64, "{\"a\":", "}")), "accepted");
  for (const size_t depth : {65, 100'000}) {
    EXPECT_EQ(agreed(nested(depth, "[", "]")), "json-limits");
    EXPECT_EQ(agreed(nested(depth, "{\"a\":", "}")), "json-limits");
  }
  for (const char* text : {R"({"a":1,"a":2})", R"({"a":1,"\u0061":2})", R"([{"b":{"":1,"":1}}])"}) {
    EXPECT_EQ(agreed(text), "duplicate-key") << text;
  }
}

// Texts that differ from JSON by a few characters are where two parsers part. A text with a key
// twice may be broken elsewhere too: which of the two is said is each parser's own order.
TEST(JsonView, AgreesOnThousandsOfMutations) {
  const std::string seed =
      R"({"model":{"vocab":{"a":0,"b\"":1,"é\u00e9":-2,"":3},"merges":[["a","b"],"c d"],)"
      R"("x":[1.5e3,-0.25,true,false,null,[],{}, 12345678901234567890]}, "s":"\ud83d\ude00\n"})";
  const std::string alphabet = "{}[]\",:\\/ue0123456789.-+Etfn aB\n\t\x01\x7f\xc3\xa9\xff";
  std::mt19937 random(17);
  int accepted = 0, refused = 0;
  for (int round = 0; round < 30'000; ++round) {
    std::string text = seed;
    for (int edits = 1 + static_cast<int>(random() % 3); edits > 0; --edits) {
      const size_t at = random() % text.size();
      const char character = alphabet[random() % alphabet.size()];
      switch (random() % 3) {
        case 0:
          text[at] = character;
          break;
        case 1:
          text.insert(at, 1, character);
          break;
        default:
          text.erase(at, 1 + random() % 4);
      }
    }
    const Outcome view = read_view(text);
    const Outcome tree = read_tree(text);
    ASSERT_EQ(view.reason == "accepted", tree.reason == "accepted") << io::excerpt(text, 400);
    ASSERT_TRUE(view.value == tree.value) << io::excerpt(text, 400);
    (tree.reason == "accepted" ? accepted : refused) += 1;
  }
  EXPECT_GT(accepted, 1000);
  EXPECT_GT(refused, 1000);
}

}  // namespace
}  // namespace graft::text
