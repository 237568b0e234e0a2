#include "graft/io/json.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "graft/core/error.h"
#include "graft/io/excerpt.h"
#include "graft/io/test_hostile.h"

namespace graft::io {
namespace {

using testing::HasSubstr;

// The code that a text ends with; checks that the message names file and place.
std::string code_of(std::string_view text, const JsonLimits& limits = {}, uint64_t max_bytes = 0) {
  return test_support::refusal_of([&] { parse_json(text, "room", "some/config.json", limits); },
                                  "some/config.json",
                                  max_bytes > 0 ? max_bytes : test_support::allowance(text.size()))
      .code;
}

TEST(Json, ReadsADocument) {
  const auto value = parse_json(R"( {"a": [1, -2, 2.5, null, true, "x"], "b": {}} )", "room", "f");
  EXPECT_EQ(value["a"][1], -2);
  EXPECT_EQ(value["a"][2], 2.5);
  EXPECT_EQ(value["a"][5], "x");
  EXPECT_TRUE(value["b"].empty());
}

TEST(Json, KeepsTheOrderOfKeysWhereAsked) {
  const auto value = parse_ordered_json(R"({"z":1,"a":{"y":2,"b":3},"m":[]})", "room", "f");
  EXPECT_EQ(value.dump(), R"({"z":1,"a":{"y":2,"b":3},"m":[]})");
}

TEST(Json, RefusesADuplicateKeyAndTellsWhere) {
  EXPECT_EQ(code_of(R"({"a":1,"b":{"c":1},"a":2})"), "room.duplicate-key");
  EXPECT_EQ(code_of(R"({"a":{"b":1,"b":1}})"), "room.duplicate-key");
  EXPECT_EQ(code_of(R"({"a":1,"\u0061":2})"), "room.duplicate-key");
  EXPECT_EQ(code_of(R"([{"a":1},{"a":1}])"), "accepted");
  EXPECT_THROW(parse_ordered_json(R"({"a":1,"a":2})", "room", "f"), FormatError);
  try {
    parse_json(R"({"a":1,"a":2})", "room", "f");
    FAIL();
  } catch (const FormatError& error) {
    EXPECT_THAT(error.what(), HasSubstr("at byte 10"));
  }
}

TEST(Json, RefusesWhatIsNoJson) {
  for (const std::string_view text : {"",
                                      "  ",
                                      "nul",
                                      "{",
                                      "[1,]",
                                      "{\"a\":1,}",
                                      "{a:1}",
                                      "'a'",
                                      "// c\n1",
                                      "01",
                                      "+1",
                                      ".5",
                                      "NaN",
                                      "Infinity",
                                      "1 2",
                                      "{} {}",
                                      "[1] x",
                                      "\"\\ud800\"",
                                      "\"\xff\"",
                                      "\"\xc0\x80\"",
                                      "\"\xed\xa0\x80\"",
                                      "\"a\nb\"",
                                      "\xEF\xBB\xBF{}"}) {
    EXPECT_EQ(code_of(text), "room.json") << text;
  }
}

TEST(Json, RefusesANulByteThatWouldHideWhatFollows) {
  using namespace std::string_view_literals;
  EXPECT_EQ(code_of("{}\0"sv), "room.json");
  EXPECT_EQ(code_of("{}\0{\"a\":1}"sv), "room.json");
  EXPECT_EQ(code_of("{\"a\":\0 1}"sv), "room.json");
}

TEST(Json, RefusesNumbersOutOfRange) {
  EXPECT_EQ(code_of("1e999"), "room.json");
  EXPECT_EQ(code_of("{\"rope_theta\":-1e999}"), "room.json");
}

TEST(Json, ReadsWholeNumbersBeyond64BitsAsFloatingPoint) {
  const auto value = parse_json("1000000000000000019884624838656", "room", "f");
  EXPECT_TRUE(value.is_number_float());
  EXPECT_DOUBLE_EQ(value.get<double>(), 1e30);
}

TEST(Json, RefusesDeepNestingWithoutRecursion) {
  EXPECT_EQ(code_of(std::string(64, '[') + std::string(64, ']')), "accepted");
  EXPECT_EQ(code_of(std::string(65, '[') + std::string(65, ']')), "room.json-limits");
  EXPECT_EQ(code_of(std::string(1'000'000, '[')), "room.json-limits");
  std::string objects;
  for (int i = 0; i < 100'000; ++i) {
    objects += "{\"a\":";
  }
  EXPECT_EQ(code_of(objects), "room.json-limits");
}

TEST(Json, RefusesTextsAndTreesThatAreTooLarge) {
  EXPECT_EQ(code_of(std::string(11 << 20, ' ')), "room.json-limits");
  EXPECT_EQ(code_of("[1,2,3]", {.max_bytes = 6}), "room.json-limits");
  std::string zeros = "[0";
  for (int i = 0; i < 4'500'000; ++i) {
    zeros += ",0";
  }
  EXPECT_EQ(code_of(zeros + "]", {}, uint64_t{256} << 20), "room.json-limits");
}

TEST(Json, CountsBytesFromTheStartOfTheFile) {
  try {
    parse_json("{} x", "room", "f", {.first_byte = 100});
    FAIL();
  } catch (const FormatError& error) {
    EXPECT_THAT(error.what(), HasSubstr("`f`: at byte 104: "));
  }
}

TEST(Json, FindsWhereAKeyStands) {
  const std::string text =
      R"( {"n": 1, "x": {"b": 1}, "a": [{"b": 2}], "q\"\\": {"b" :3, "c": {"b": 4}}} )";
  const auto place = [&](const std::string& part) { return text.find(part); };
  EXPECT_EQ(offset_of(text, {}), 0);
  EXPECT_EQ(offset_of(text, {"absent"}), 0);
  EXPECT_EQ(offset_of(text, {"n"}), 2);
  EXPECT_EQ(offset_of(text, {"n", "b"}), 2);
  EXPECT_EQ(offset_of(text, {"x"}), place(R"("x")"));
  EXPECT_EQ(offset_of(text, {"x", "b"}), place(R"("b": 1)"));
  EXPECT_EQ(offset_of(text, {"x", "c"}), place(R"("x")"));  // as far as there is a path
  EXPECT_EQ(offset_of(text, {"a", "b"}), place(R"("a")"));  // not inside of arrays
  EXPECT_EQ(offset_of(text, {"q\"\\"}), place(R"("q)"));
  EXPECT_EQ(offset_of(text, {"q\"\\", "c", "b"}), place(R"("b": 4)"));
}

TEST(Allocations, AreCountedInsideTheLibrary) {
  const std::string text = "\"" + std::string(1 << 20, 'a') + "\"";
  const uint64_t bytes =
      test_support::bytes_allocated_by([&] { parse_json(text, "room", "some/file"); });
  EXPECT_GT(bytes, 1 << 20);  // else the bounds of the tests beside would hold of themselves
}

TEST(Json, NamesAFileThatIsMissing) {
  try {
    read_json_file("/nonexistent/config.json", "room");
    FAIL();
  } catch (const NotFound& error) {
    EXPECT_EQ(error.code(), "io.file.open");
    EXPECT_THAT(error.what(), HasSubstr("/nonexistent/config.json"));
  }
}

TEST(Excerpt, CutsAtCharactersAndEscapesWhatCannotBePrinted) {
  EXPECT_EQ(excerpt("plain"), "plain");
  EXPECT_EQ(excerpt("a\nb\x7f"), "a\\x0ab\\x7f");
  EXPECT_EQ(excerpt("\xff\xc0\x80"), "\\xff\\xc0\\x80");
  EXPECT_EQ(excerpt("ééé", 5), "éé…");
  EXPECT_TRUE(is_utf8(excerpt(std::string(1000, '\xe2'), 50)));
}

TEST(Excerpt, KnowsStrictUtf8) {
  for (const char* good : {"", "a", "é", "€", "😀", "\xf4\x8f\xbf\xbf"}) {
    EXPECT_TRUE(is_utf8(good)) << good;
  }
  for (const char* bad : {"\x80", "\xc1\xbf", "\xe0\x80\x80", "\xed\xa0\x80", "\xf0\x80\x80\x80",
                          "\xf4\x90\x80\x80", "\xf8\x88\x80\x80\x80", "\xe2\x82"}) {
    EXPECT_FALSE(is_utf8(bad));
  }
}

}  // namespace
}  // namespace graft::io
