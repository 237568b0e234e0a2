// The ids and texts that the `tokenizers` library gives, for fourteen pipelines
// (tools/tokenizer_parity.py data).
#include <cstdlib>
#include <fstream>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include <gtest/gtest.h>

#include "graft/io/gguf.h"
#include "graft/text/tokenizer.h"
#include "graft/text/unicode.h"

namespace graft::text {
namespace {

const std::string kData = std::string(GRAFT_TEST_DATA) + "/text/";

std::vector<std::string> read_lines(const std::string& path) {
  std::ifstream file(path);
  EXPECT_TRUE(file.good()) << path;
  std::vector<std::string> lines;
  for (std::string line; std::getline(file, line);) {
    lines.push_back(line);
  }
  return lines;
}

std::string from_hex(const std::string& hex) {
  std::string bytes;
  for (size_t i = 0; i + 1 < hex.size(); i += 2) {
    bytes += static_cast<char>(std::stoi(hex.substr(i, 2), nullptr, 16));
  }
  return bytes;
}

struct Case {
  std::string text;
  std::vector<int32_t> ids;
  std::string decoded;
};

std::vector<Case> read_cases(const std::string& family) {
  const auto texts = read_lines(kData + "tokenizer_cases.txt");
  const auto expected = read_lines(kData + family + "/expected.txt");
  EXPECT_EQ(texts.size(), expected.size());
  std::vector<Case> cases;
  for (size_t i = 0; i < texts.size() && i < expected.size(); ++i) {
    const size_t tab = expected[i].find('\t');
    Case one{from_hex(texts[i]), {}, from_hex(expected[i].substr(tab + 1))};
    std::istringstream ids(expected[i].substr(0, tab));
    for (int32_t id; ids >> id;) {
      one.ids.push_back(id);
    }
    cases.push_back(std::move(one));
  }
  return cases;
}

void check(const Tokenizer& tokenizer, const std::vector<Case>& cases) {
  ASSERT_GT(cases.size(), 100U);
  for (const Case& one : cases) {
    EXPECT_EQ(tokenizer.encode(one.text), one.ids) << "text: " << one.text;
    EXPECT_EQ(tokenizer.decode(one.ids, false), one.decoded) << "text: " << one.text;
  }
}

class TokenizerParity : public testing::TestWithParam<const char*> {
 protected:
  TokenizerParity() : tokenizer_(Tokenizer::from_folder(kData + GetParam())) {}
  Tokenizer tokenizer_;
};

TEST_P(TokenizerParity, IdsAndTextsAreThoseOfTheLibrary) {
  check(tokenizer_, read_cases(GetParam()));
}

TEST_P(TokenizerParity, AStreamGivesWholeCharactersAndTheSameText) {
  for (const Case& one : read_cases(GetParam())) {
    DecodeStream stream(tokenizer_, false);
    std::string text;
    for (const int32_t id : one.ids) {
      const std::string piece = stream.push(id);
      EXPECT_EQ(valid_utf8_prefix(piece), piece.size());
      text += piece;
    }
    EXPECT_EQ(text + stream.finish(), tokenizer_.decode(one.ids, false)) << one.text;
  }
}

TEST_P(TokenizerParity, ThreadsGetTheSameIds) {
  const auto cases = read_cases(GetParam());
  std::vector<int> wrong(4);
  std::vector<std::thread> threads;
  for (int& count : wrong) {
    threads.emplace_back([&] {
      for (const Case& one : cases) {
        count += tokenizer_.encode(one.text) != one.ids ? 1 : 0;
      }
    });
  }
  for (auto& thread : threads) {
    thread.join();
  }
  EXPECT_EQ(wrong, std::vector<int>(4));
}

INSTANTIATE_TEST_SUITE_P(Families, TokenizerParity,
                         testing::Values("gpt2", "roberta", "llama3", "qwen2", "deepseek", "llama2",
                                         "mistral", "gemma", "t5", "xlnet", "bert", "clip",
                                         "wordlevel"),
                         [](const auto& info) { return std::string(info.param); });

TEST(TokenizerGguf, SmolLm2GivesTheIdsOfTheLibrary) {
  const char* model = std::getenv("GRAFT_DEMO_MODEL");
  if (model == nullptr) {
    GTEST_SKIP() << "GRAFT_DEMO_MODEL is not set";
  }
  const Tokenizer tokenizer = Tokenizer::from_gguf(io::GgufFile::open(model));
  check(tokenizer, read_cases("smollm2_gguf"));
}

}  // namespace
}  // namespace graft::text
