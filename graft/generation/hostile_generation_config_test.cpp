// Hostile generation_config.json files: every refusal is typed, names file and field, and comes
// before memory is taken for what the file claims.
#include <filesystem>
#include <fstream>
#include <string>

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include "graft/core/error.h"
#include "graft/generation/generation_config.h"
#include "graft/io/test_allocations.h"

namespace graft::generation {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;

class HostileGenerationConfig : public ::testing::Test {
 protected:
  void SetUp() override {
    folder_ = fs::path(::testing::TempDir()) / ("graft-generation-" + std::to_string(getpid()));
    fs::create_directories(folder_);
  }
  void TearDown() override { fs::remove_all(folder_); }

  void refuses(const std::string& text, const std::string& code, const std::string& expected,
               const char* name = "generation_config.json") {
    std::ofstream(folder_ / name, std::ios::binary) << text;
    refuses_file(code, expected, name);
  }
  void refuses_file(const std::string& code, const std::string& expected,
                    const char* name = "generation_config.json") {
    std::string got = "accepted", said;
    const uint64_t allocated = io::test_support::bytes_allocated_by([&] {
      try {
        GenerationConfig::from_folder(folder_);
      } catch (const Error& error) {
        got = error.code();
        said = error.what();
      }
    });
    EXPECT_EQ(got, code) << said;
    EXPECT_THAT(said, HasSubstr(std::string("/") + name + "`: "));
    EXPECT_THAT(said, HasSubstr(expected));
    EXPECT_LT(said.size(), 1000);
    EXPECT_LT(allocated, 1 << 20) << said;
  }

  fs::path folder_;
};

TEST_F(HostileGenerationConfig, RefusesNumbersThatAreOutOfRange) {
  const auto field = [&](const std::string& key, const std::string& value) {
    refuses("{\"" + key + "\":" + value + "}", "generation.config." + key,
            "`: " + key + ": expected");
  };
  for (const char* key : {"max_new_tokens", "max_length", "num_beams", "num_return_sequences"}) {
    for (const char* value : {"0", "-1", "9223372036854775807", "9223372036854775808",
                              "18446744073709551616", "2.5", "\"5\"", "[5]", "{}", "true"}) {
      field(key, value);
    }
  }
  for (const char* key : {"min_length", "min_new_tokens", "top_k", "no_repeat_ngram_size"}) {
    for (const char* value : {"-1", "9223372036854775808", "0.5", "\"1\""}) {
      field(key, value);
    }
  }
  for (const char* key : {"temperature", "top_p", "typical_p", "repetition_penalty"}) {
    for (const char* value : {"0", "-1", "\"warm\"", "[]", "true"}) {
      field(key, value);
    }
  }
  field("eos_token_id", "[1,[2]]");
  field("eos_token_id", "\"</s>\"");
  field("do_sample", "1");
  field("stop_strings", "[1]");
  field("cache_implementation", "\"endless\"");
  refuses(R"({"temperature":1e999})", "generation.config.json", "`: at byte ");
  refuses(R"({"top_p":NaN})", "generation.config.json", "`: at byte ");
}

TEST_F(HostileGenerationConfig, RefusesWhatIsNoObjectRepeatsOrNestsTooDeep) {
  refuses(R"({"top_k":1,"top_k":2})", "generation.config.duplicate-key", "got `top_k` twice");
  for (const char* text : {"", "{", "{} {}", "\xEF\xBB\xBF{}", "{\"a\":\"\xff\"}"}) {
    refuses(text, "generation.config.json", "`: at byte ");
  }
  for (const char* text : {"[]", "1", "null", "\"text\""}) {
    refuses(text, "generation.config.type", "expected an object");
  }
  refuses("{\"x\":" + std::string(10'000, '[') + std::string(10'000, ']') + "}",
          "generation.config.json-limits", "expected at most 64 levels of nesting");
  refuses(std::string(5 << 20, ' '), "generation.config.json-limits", "bytes of JSON");
  fs::resize_file(folder_ / "generation_config.json", uint64_t{1} << 40);  // sparse
  refuses_file("generation.config.json-limits", "bytes of JSON");
}

TEST_F(HostileGenerationConfig, RefusesIdsOfAConfigThatStandsInForIt) {
  refuses(R"({"eos_token_id":"x"})", "generation.config.eos_token_id", "eos_token_id: expected",
          "config.json");
  refuses(R"({"bos_token_id":1,"bos_token_id":2})", "generation.config.duplicate-key",
          "got `bos_token_id` twice", "config.json");
}

TEST_F(HostileGenerationConfig, LooksForNothingElsewhere) {
  fs::create_symlink("/etc/passwd", folder_ / "generation_config.json");
  refuses_file("generation.config.json", "`: at byte ");
  fs::remove(folder_ / "generation_config.json");
  fs::create_directory(folder_ / "generation_config.json");
  EXPECT_THROW(GenerationConfig::from_folder(folder_), NotFound);
  fs::remove(folder_ / "generation_config.json");
  // Keys that ask for code are none of the options: nothing is loaded, and the rest is read.
  std::ofstream(folder_ / "generation_config.json")
      << R"({"trust_remote_code":true,"custom_generate":"evil/repo","auto_map":{},"top_k":7})";
  EXPECT_EQ(GenerationConfig::from_folder(folder_).top_k, 7);
}

}  // namespace
}  // namespace graft::generation
