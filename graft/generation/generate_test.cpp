#include "graft/generation/generate.h"

#include <chrono>
#include <cmath>
#include <limits>
#include <random>
#include <thread>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "graft/core/error.h"
#include "graft/generation/table_model.h"

namespace graft::generation {
namespace {

using testing::HasSubstr;
using Prompts = std::vector<std::vector<int64_t>>;

const Prompts kUnequal = {{4, 9, 17}, {5, 6, 7, 8, 9, 10, 11, 30}, {12}};

template <typename Call>
std::string code_of(Call call) {
  try {
    call();
  } catch (const Error& error) {
    return error.code();
  }
  return "no error";
}

void expect_same_as_transformers(const nlohmann::json& test_case, bool use_static_cache) {
  SCOPED_TRACE(test_case["name"].get<std::string>() + (use_static_cache ? ", static" : ""));
  TableModel model;
  GenerationConfig config = config_of(test_case);
  config.use_static_cache = use_static_cache;
  const auto prompts = test_case["prompts"].get<Prompts>();
  if (test_case.contains("first_scores")) {
    config.output_scores = true;
    const auto output = generate(model, prompts, config, text_hooks(test_tokenizer()));
    std::vector<float> expected;
    for (const auto& score : test_case["first_scores"]) {
      expected.push_back(score.is_null() ? -std::numeric_limits<float>::infinity()
                                         : score.get<float>());
    }
    EXPECT_TRUE(output.scores[0][0].equal(at::tensor(expected, at::kFloat)));
    return;
  }
  const auto output = generate(model, prompts, config, text_hooks(test_tokenizer()));
  EXPECT_EQ(output.sequences, test_case["sequences"].get<Prompts>());
  if (test_case.contains("beam_scores")) {
    const auto expected = test_case["beam_scores"].get<std::vector<double>>();
    ASSERT_EQ(output.beam_scores.size(), expected.size());
    for (size_t i = 0; i < expected.size(); ++i) {
      EXPECT_NEAR(output.beam_scores[i], expected[i], 1e-5 * std::abs(expected[i])) << "row " << i;
    }
  }
}

TEST(Generate, GivesTheIdsAndScoresOfTransformers) {
  ASSERT_GT(test_cases()["cases"].size(), 50u);
  for (const auto& test_case : test_cases()["cases"]) {
    expect_same_as_transformers(test_case, false);
  }
}

TEST(Generate, GivesTheSameWithAStaticCache) {
  for (const auto& test_case : test_cases()["cases"]) {
    expect_same_as_transformers(test_case, true);
  }
}

TEST(Generate, GivesARowTheSameIdsAloneAndInAPaddedBatch) {
  TableModel model;
  const GenerationConfig config{.max_new_tokens = 30, .repetition_penalty = 1.2};
  const auto together = generate(model, kUnequal, config);
  for (size_t row = 0; row < kUnequal.size(); ++row) {
    EXPECT_EQ(generate(model, {kUnequal[row]}, config).sequences[0], together.sequences[row]);
  }
}

TEST(Generate, PassesAMaskOnlyToAPaddedBatch) {
  TableModel model;
  generate(model, {{4, 5}, {6, 7}}, {.max_new_tokens = 5, .ignore_eos = true});
  EXPECT_EQ(model.masks_seen, 0);
  EXPECT_EQ(model.num_forwards, 5);
  generate(model, {{4, 5}, {6}}, {.max_new_tokens = 5, .ignore_eos = true});
  EXPECT_EQ(model.masks_seen, 5);
}

TEST(Generate, CountsTokensAndSaysWhyEachRowEnded) {
  TableModel model;
  const auto output =
      generate(model, kUnequal, {.max_new_tokens = 24, .eos_token_ids = {3, 25, 12}});
  const auto& rows = output.sequences;
  ASSERT_EQ(output.finish_reasons.size(), 3u);
  for (size_t row = 0; row < 3; ++row) {
    const int64_t last = rows[row].back();
    const bool eos = last == 3 || last == 12 || last == 25;
    EXPECT_EQ(output.finish_reasons[row], eos ? FinishReason::kEos : FinishReason::kLength);
    EXPECT_TRUE(eos || rows[row].size() == 24u);
  }
  EXPECT_THAT(output.finish_reasons, testing::Contains(FinishReason::kEos));
  EXPECT_EQ(output.prefill_tokens, 12);
  EXPECT_EQ(output.decode_tokens,
            static_cast<int64_t>(rows[0].size() + rows[1].size() + rows[2].size()) - 3);
  EXPECT_GT(output.prefill_seconds, 0.0);
  EXPECT_GT(output.decode_seconds, 0.0);
  EXPECT_EQ(name(FinishReason::kStopString), "stop_string");
}

TEST(Generate, StreamsTokensAndWholeCharacters) {
  TableModel model;
  GenerateHooks hooks = text_hooks(test_tokenizer());
  std::vector<int64_t> ids;
  std::string text;
  FinishReason last = FinishReason::kNone;
  hooks.on_token = [&](const TokenEvent& event) {
    ids.push_back(event.token_id);
    EXPECT_LE(event.logprob, 0.0);
    EXPECT_EQ(last, FinishReason::kNone) << "an event after the end";
    text += event.text;
    last = event.finish;
  };
  const auto output =
      generate(model, {{5, 6, 7}}, {.max_new_tokens = 200, .ignore_eos = true}, hooks);
  EXPECT_EQ(ids, output.sequences[0]);
  EXPECT_EQ(last, FinishReason::kLength);
  EXPECT_EQ(text, test_tokenizer().decode(std::vector<int32_t>(ids.begin(), ids.end())));
  EXPECT_THAT(text, HasSubstr("\xC3\xA9"));
}

TEST(Generate, GivesTheLogProbabilityOfEachToken) {
  TableModel model;
  std::vector<double> logprobs;
  GenerateHooks hooks;
  hooks.on_token = [&](const TokenEvent& event) { logprobs.push_back(event.logprob); };
  for (const bool do_sample : {false, true}) {
    logprobs.clear();
    const GenerationConfig config{
        .max_new_tokens = 12, .do_sample = do_sample, .top_k = 7, .output_scores = true};
    const auto output = generate(model, {{5, 6}}, config, hooks);
    ASSERT_EQ(output.scores.size(), output.sequences[0].size());
    for (size_t i = 0; i < logprobs.size(); ++i) {
      const auto expected = output.scores[i].log_softmax(-1)[0][output.sequences[0][i]];
      EXPECT_NEAR(logprobs[i], expected.item<double>(), 1e-5);
    }
  }
}

TEST(Generate, DrawsTheSameForTheSameSeedWhateverStandsBeside) {
  TableModel model;
  GenerationConfig config{
      .max_new_tokens = 40, .do_sample = true, .top_k = 20, .seed = 11, .ignore_eos = true};
  const auto alone = generate(model, {kUnequal[0]}, config).sequences[0];
  EXPECT_EQ(generate(model, kUnequal, config).sequences[0], alone);
  EXPECT_EQ(generate(model, {kUnequal[0]}, config).sequences[0], alone);
  // Keeping the scores takes another way through the sampler.
  config.output_scores = true;
  EXPECT_EQ(generate(model, {kUnequal[0]}, config).sequences[0], alone);
  config.seed = 12;
  EXPECT_NE(generate(model, {kUnequal[0]}, config).sequences[0], alone);
}

TEST(Generate, ReturnsSeveralSamplesOfAPromptSideBySide) {
  TableModel model;
  const auto output = generate(model, kUnequal,
                               {.max_new_tokens = 20,
                                .do_sample = true,
                                .seed = 3,
                                .num_return_sequences = 4,
                                .ignore_eos = true});
  ASSERT_EQ(output.sequences.size(), 12u);
  EXPECT_NE(output.sequences[0], output.sequences[1]);
}

TEST(Generate, StopsWithinOneTokenWhenCancelled) {
  TableModel model;
  for (const int64_t num_beams : {1, 3}) {
    std::atomic<bool> cancel{false};
    int64_t steps = 0;
    model.after_forward = [&](at::Tensor&) { cancel = ++steps == 6; };
    GenerateHooks hooks;
    hooks.cancel = &cancel;
    const auto output = generate(
        model, {{4}}, {.max_new_tokens = 300, .num_beams = num_beams, .ignore_eos = true}, hooks);
    EXPECT_EQ(output.sequences[0].size(), 6u);
    EXPECT_EQ(output.finish_reasons[0], FinishReason::kCancelled);
  }
}

TEST(Generate, StopsAfterMaxTime) {
  TableModel model;
  model.after_forward = [](at::Tensor&) {
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  };
  for (const int64_t num_beams : {1, 2}) {
    const auto output = generate(model, {{4}},
                                 {.max_new_tokens = 300,
                                  .max_time_seconds = 0.03,
                                  .num_beams = num_beams,
                                  .ignore_eos = true});
    EXPECT_EQ(output.finish_reasons[0], FinishReason::kTime);
    EXPECT_LT(output.sequences[0].size(), 10u);
  }
}

TEST(Generate, StartsAnEmptyPromptWithTheBosToken) {
  TableModel model;
  const GenerationConfig config{.max_new_tokens = 8};
  EXPECT_EQ(generate(model, {{}}, config).sequences, generate(model, {{2}}, config).sequences);
  model.info_.bos_token_id = -1;
  EXPECT_EQ(code_of([&] { generate(model, {{}}, config); }), "generation.empty-prompt");
  EXPECT_EQ(code_of([&] { generate(model, Prompts{}, config); }), "generation.empty-prompt");
}

TEST(Generate, RefusesMoreTokensThanTheModelHasPositionsBeforeAnyWork) {
  TableModel model;
  model.info_.max_position_embeddings = 16;
  try {
    generate(model, kUnequal, {.max_new_tokens = 9});
    FAIL() << "no error";
  } catch (const InvalidArgument& error) {
    EXPECT_EQ(error.code(), "generation.context");
    EXPECT_THAT(error.what(), HasSubstr("at most max_position_embeddings 16, got 8 + 9 = 17"));
  }
  EXPECT_EQ(model.num_forwards, 0);
  EXPECT_EQ(generate(model, kUnequal, {.max_new_tokens = 8}).sequences[1].size(), 8u);
  // Twenty by default, but no more than there is room for.
  EXPECT_EQ(generate(model, {kUnequal[1]}, {.ignore_eos = true}).sequences[0].size(), 8u);
  EXPECT_EQ(code_of([&] { generate(model, kUnequal, {.max_length = 8}); }), "generation.context");
}

TEST(Generate, RefusesWhatItCannotDoBeforeAnyWork) {
  TableModel model;
  EXPECT_EQ(code_of([&] { generate(model, {{4, 40}}, {}); }), "generation.vocabulary");
  EXPECT_EQ(code_of([&] { generate(model, {{-1}}, {}); }), "generation.vocabulary");
  EXPECT_EQ(code_of([&] { generate(model, {{4}}, {.stop_strings = {"a"}}); }),
            "generation.stop-strings");
  GenerateHooks hooks;
  hooks.on_token = [](const TokenEvent&) {};
  EXPECT_EQ(code_of([&] { generate(model, {{4}}, {.num_beams = 2}, hooks); }),
            "generation.streaming-beams");
  EXPECT_EQ(code_of([&] { generate(model, {{4}}, {.temperature = 0.0}); }),
            "generation.config.temperature");
  EXPECT_EQ(model.num_forwards, 0);
}

TEST(Generate, ReportsLogitsThatAreNotNumbers) {
  TableModel model;
  for (const double bad :
       {std::numeric_limits<double>::quiet_NaN(), std::numeric_limits<double>::infinity()}) {
    for (const bool do_sample : {false, true}) {
      for (const int64_t num_beams : {1, 2}) {
        for (const double penalty : {1.0, 1.5}) {
          int64_t steps = 0;
          model.after_forward = [&](at::Tensor& logits) {
            if (++steps == 3) {
              logits[0][25] = bad;
            }
          };
          EXPECT_EQ(code_of([&] {
                      generate(model, {{4, 5}},
                               {.max_new_tokens = 9,
                                .do_sample = do_sample,
                                .repetition_penalty = penalty,
                                .num_beams = num_beams,
                                .ignore_eos = true});
                    }),
                    "generation.nan-logits");
          EXPECT_EQ(steps, 3);
        }
      }
    }
  }
}

TEST(Generate, LetsAnExceptionOfTheStreamThrough) {
  TableModel model;
  GenerateHooks hooks;
  hooks.on_token = [](const TokenEvent&) { throw NetworkError("test", "gone", "gone"); };
  EXPECT_EQ(code_of([&] { generate(model, {{4}}, {.max_new_tokens = 4}, hooks); }), "test.gone");
}

// Random options, right and wrong ones: a result or a typed error, nothing else.
TEST(Generate, AnswersRandomOptionsWithAResultOrATypedError) {
  TableModel model;
  std::mt19937_64 random(5);
  const std::vector<nlohmann::json> values = {-1,
                                              0,
                                              1,
                                              2,
                                              3,
                                              7,
                                              1e30,
                                              -0.5,
                                              0.3,
                                              0.99,
                                              1.0,
                                              1.7,
                                              nullptr,
                                              true,
                                              false,
                                              "a",
                                              "never",
                                              "static",
                                              std::numeric_limits<double>::quiet_NaN(),
                                              std::numeric_limits<double>::infinity(),
                                              uint64_t{1} << 63,
                                              INT64_MIN,
                                              nlohmann::json::array({3, 4}),
                                              nlohmann::json::array({"x"}),
                                              nlohmann::json::object()};
  const std::vector<std::string> names = {"max_new_tokens",
                                          "max_length",
                                          "min_new_tokens",
                                          "min_length",
                                          "do_sample",
                                          "temperature",
                                          "top_k",
                                          "top_p",
                                          "min_p",
                                          "typical_p",
                                          "seed",
                                          "repetition_penalty",
                                          "no_repeat_ngram_size",
                                          "num_beams",
                                          "length_penalty",
                                          "early_stopping",
                                          "num_return_sequences",
                                          "eos_token_id",
                                          "stop_strings",
                                          "pad_token_id",
                                          "bos_token_id",
                                          "use_cache",
                                          "cache_implementation"};
  int64_t results = 0, errors = 0;
  for (int round = 0; round < 10000; ++round) {
    try {
      GenerationConfig config{.max_new_tokens = 3};
      for (int i = 0; i <= round % 3; ++i) {
        config.set(names[random() % names.size()], values[random() % values.size()]);
      }
      generate(model, kUnequal, config, text_hooks(test_tokenizer()));
      ++results;
    } catch (const Error&) {
      ++errors;
    }
  }
  EXPECT_GT(results, 500);
  EXPECT_GT(errors, 500);
}

}  // namespace
}  // namespace graft::generation
