#include "graft/generation/generation_config.h"

#include <filesystem>
#include <fstream>
#include <limits>

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "graft/core/error.h"

namespace graft::generation {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;
using testing::ElementsAre;
using testing::HasSubstr;

class ConfigFolder : public testing::Test {
 protected:
  void SetUp() override {
    folder_ = fs::path(testing::TempDir()) / "graft_generation_config";
    fs::remove_all(folder_);
    fs::create_directories(folder_);
  }
  void TearDown() override { fs::remove_all(folder_); }

  GenerationConfig read(const std::string& text, const char* name = "generation_config.json") {
    std::ofstream(folder_ / name) << text;
    return GenerationConfig::from_folder(folder_);
  }
  std::string error_of(const std::string& text, std::string* code = nullptr) {
    try {
      read(text);
    } catch (const Error& error) {
      if (code != nullptr) {
        *code = error.code();
      }
      return error.what();
    }
    return "no error";
  }
  fs::path folder_;
};

TEST_F(ConfigFolder, HasTransformersDefaultsWithoutAFile) {
  const auto config = GenerationConfig::from_folder(folder_);
  EXPECT_FALSE(config.max_new_tokens || config.max_length || config.min_p);
  EXPECT_FALSE(config.do_sample);
  EXPECT_EQ(config.top_k, 50);
  EXPECT_EQ(config.top_p, 1.0);
  EXPECT_EQ(config.temperature, 1.0);
  EXPECT_EQ(config.repetition_penalty, 1.0);
  EXPECT_EQ(config.length_penalty, 1.0);
  EXPECT_EQ(config.early_stopping, EarlyStopping::kFalse);
  EXPECT_TRUE(config.use_cache);
}

TEST_F(ConfigFolder, ReadsEveryFieldAndIgnoresNullAndUnknownOnes) {
  const auto config = read(R"({
    "_from_model_config": true, "transformers_version": "5.20.2", "chat_format": "chatml",
    "max_new_tokens": 2048, "max_length": 4096, "min_new_tokens": 2, "max_time": 1.5,
    "do_sample": true, "temperature": 0.6, "top_k": 20, "top_p": 0.95, "min_p": 0.05,
    "typical_p": 0.9, "repetition_penalty": 1.05, "no_repeat_ngram_size": 3, "num_beams": 4,
    "length_penalty": -1, "early_stopping": "never", "num_return_sequences": 2,
    "eos_token_id": [151645, 151643], "bos_token_id": 151643, "pad_token_id": null,
    "stop_strings": "END", "cache_implementation": "static", "use_cache": false,
    "disable_compile": true,
    "suppress_tokens": null, "guidance_scale": 1.0, "bad_words_ids": []})");
  EXPECT_EQ(config.max_new_tokens, 2048);
  EXPECT_EQ(config.max_length, 4096);
  EXPECT_EQ(config.max_time_seconds, 1.5);
  EXPECT_TRUE(config.do_sample);
  EXPECT_EQ(config.temperature, 0.6);
  EXPECT_EQ(config.min_p, 0.05);
  EXPECT_EQ(config.length_penalty, -1.0);
  EXPECT_EQ(config.early_stopping, EarlyStopping::kNever);
  EXPECT_THAT(config.eos_token_ids, ElementsAre(151645, 151643));
  EXPECT_EQ(config.bos_token_id, 151643);
  EXPECT_FALSE(config.pad_token_id);
  EXPECT_THAT(config.stop_strings, ElementsAre("END"));
  EXPECT_TRUE(config.use_static_cache);
  EXPECT_TRUE(config.disable_compile);
  EXPECT_FALSE(config.use_cache);
}

TEST_F(ConfigFolder, FallsBackToTheEosOfConfigJson) {
  const auto config =
      read(R"({"eos_token_id": 7, "bos_token_id": 1, "temperature": "x"})", "config.json");
  EXPECT_THAT(config.eos_token_ids, ElementsAre(7));
  EXPECT_EQ(config.bos_token_id, 1);
  EXPECT_TRUE(read(R"({})").eos_token_ids.empty()) << "the file itself wins";
}

TEST_F(ConfigFolder, NamesFileFieldAndValueOfAWrongType) {
  std::string code;
  EXPECT_THAT(error_of(R"({"temperature": "warm"})", &code),
              HasSubstr("generation_config.json`: temperature: expected a number, got \"warm\""));
  EXPECT_EQ(code, "generation.config.temperature");
  EXPECT_THAT(error_of(R"({"top_k": 2.5})"), HasSubstr("expected a 64-bit integer, got 2.5"));
  EXPECT_THAT(error_of(R"({"top_k": 9223372036854775808})"), HasSubstr("64-bit integer"));
  EXPECT_THAT(error_of(R"({"do_sample": 1})"), HasSubstr("expected true or false, got 1"));
  EXPECT_THAT(error_of(R"({"eos_token_id": ["</s>"]})"), HasSubstr("a token id or a list"));
  EXPECT_THAT(error_of(R"({"early_stopping": "always"})"), HasSubstr("or \"never\""));
  EXPECT_THAT(error_of(R"({"stop_strings": [1]})"), HasSubstr("a text or a list"));
  EXPECT_THAT(error_of(R"({"cache_implementation": "paged"})"), HasSubstr("\"static\""));
  EXPECT_THAT(error_of(R"([])"), HasSubstr("expected an object"));
  EXPECT_THAT(error_of(R"({"top_p": 0.9, "top_p": 0.8})", &code), HasSubstr("top_p"));
  EXPECT_EQ(code, "generation.config.duplicate-key");
}

TEST_F(ConfigFolder, RefusesOptionsThatWouldChangeTransformersOutput) {
  std::string code;
  EXPECT_THAT(error_of(R"({"suppress_tokens": [1, 2]})", &code), HasSubstr("suppress_tokens"));
  EXPECT_EQ(code, "generation.config.unsupported");
  EXPECT_THAT(error_of(R"({"guidance_scale": 1.5})"), HasSubstr("guidance_scale"));
}

TEST_F(ConfigFolder, RefusesValuesOutOfRangeNamingFieldAndRange) {
  EXPECT_THAT(error_of(R"({"temperature": 0})"), HasSubstr("temperature: expected a finite"));
  EXPECT_THAT(error_of(R"({"top_p": 1.5})"),
              HasSubstr("top_p: expected a number in (0, 1], got 1.5"));
}

TEST(GenerationConfig, ValidatesEveryRange) {
  const double nan = std::numeric_limits<double>::quiet_NaN();
  const std::vector<std::pair<std::string, GenerationConfig>> wrong = {
      {"max_new_tokens", {.max_new_tokens = 0}},
      {"max_new_tokens", {.max_new_tokens = std::numeric_limits<int64_t>::max()}},
      {"max_length", {.max_length = -4}},
      {"min_new_tokens", {.min_new_tokens = -1}},
      {"min_new_tokens", {.max_new_tokens = 3, .min_new_tokens = 4}},
      {"max_time", {.max_time_seconds = nan}},
      {"temperature", {.temperature = 0.0}},
      {"temperature", {.temperature = nan}},
      {"temperature", {.temperature = std::numeric_limits<double>::infinity()}},
      {"top_k", {.top_k = -1}},
      {"top_p", {.top_p = 0.0}},
      {"top_p", {.top_p = nan}},
      {"min_p", {.min_p = 1.01}},
      {"typical_p", {.typical_p = 0.0}},
      {"repetition_penalty", {.repetition_penalty = 0.0}},
      {"no_repeat_ngram_size", {.no_repeat_ngram_size = -1}},
      {"num_beams", {.num_beams = 0}},
      {"length_penalty", {.length_penalty = nan}},
      {"num_return_sequences", {.num_return_sequences = 2}},
      {"num_return_sequences", {.num_beams = 2, .num_return_sequences = 3}},
      {"stop_strings", {.stop_strings = {""}}},
  };
  for (const auto& [field, config] : wrong) {
    try {
      config.validate();
      ADD_FAILURE() << field << " was accepted";
    } catch (const InvalidArgument& error) {
      EXPECT_EQ(error.code(), "generation.config." + field);
      EXPECT_THAT(error.what(), HasSubstr(field + ": expected "));
    }
  }
  EXPECT_NO_THROW(GenerationConfig{}.validate());
}

TEST(GenerationConfig, NamesTheNearestOptionForAnUnknownOne) {
  GenerationConfig config;
  for (const auto& [wrong, right] : std::vector<std::pair<std::string, std::string>>{
           {"max_tokens", "max_new_tokens"},
           {"temprature", "temperature"},
           {"topk", "top_k"},
           {"eos_token_ids", "eos_token_id"},
           {"no_repeat_ngrams_size", "no_repeat_ngram_size"}}) {
    try {
      config.set(wrong, 1);
      ADD_FAILURE() << wrong << " was accepted";
    } catch (const InvalidArgument& error) {
      EXPECT_EQ(error.code(), "generation.config.unknown-option");
      EXPECT_THAT(error.what(), HasSubstr("`" + wrong + "`"));
      EXPECT_EQ(error.hint(), "the nearest name is `" + right + "`");
    }
  }
}

TEST(GenerationConfig, SetsByNameAndResetsWithNull) {
  GenerationConfig config;
  config.set("temperature", 0.5);
  config.set("top_k", 3);
  config.set("seed", std::numeric_limits<uint64_t>::max());
  EXPECT_EQ(config.temperature, 0.5);
  EXPECT_EQ(config.seed, std::numeric_limits<uint64_t>::max());
  config.set("top_k", nullptr);
  EXPECT_EQ(config.top_k, 50);
  EXPECT_THROW(config.set("seed", -1), InvalidArgument);
  EXPECT_THROW(config.set("top_k", "many"), InvalidArgument);
}

}  // namespace
}  // namespace graft::generation
