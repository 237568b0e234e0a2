// Logits processors against transformers' own results, and the sampler against what it promises.
#include <cmath>
#include <limits>
#include <random>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "graft/core/error.h"
#include "graft/generation/logits_processors.h"
#include "graft/generation/sampler.h"
#include "graft/generation/stopping.h"
#include "graft/generation/table_model.h"

namespace graft::generation {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

Sequences rows_of(const at::Tensor& ids) {
  Sequences rows;
  for (int64_t row = 0; row < ids.size(0); ++row) {
    const int64_t* first = ids[row].const_data_ptr<int64_t>();
    rows.emplace_back(first, first + ids.size(1));
  }
  return rows;
}

at::Tensor apply(const nlohmann::json& test_case, const at::Tensor& logits, const at::Tensor& ids) {
  const std::string name = test_case["processor"];
  const double value = test_case["value"];
  const int64_t keep = test_case["min_tokens_to_keep"];
  if (name == "repetition_penalty") {
    const at::Tensor seen = at::zeros_like(logits, at::kBool).scatter(1, ids, true);
    return repetition_penalty(logits, seen, value);
  }
  if (name == "no_repeat_ngram") {
    return no_repeat_ngram(logits, rows_of(ids), static_cast<int64_t>(value));
  }
  if (name == "top_k") {
    return top_k(logits, static_cast<int64_t>(value), keep);
  }
  const auto warper = name == "top_p" ? top_p : name == "min_p" ? min_p : typical_p;
  return name == "temperature" ? temperature(logits, value) : warper(logits, value, keep);
}

TEST(LogitsProcessors, GiveTransformersResultsBitForBit) {
  const auto file = io::SafetensorsFile::open(test_data() / "processors.safetensors");
  const at::Tensor logits = read_tensor(file, "logits"), ids = read_tensor(file, "ids");
  const at::Tensor before = logits.clone();
  ASSERT_GT(test_cases()["processors"].size(), 40u);
  for (const auto& test_case : test_cases()["processors"]) {
    const at::Tensor expected = read_tensor(file, test_case["key"]);
    EXPECT_TRUE(apply(test_case, logits, ids).equal(expected)) << test_case["key"];
    EXPECT_TRUE(logits.equal(before)) << test_case["key"] << " changed its argument";
  }
}

TEST(LogitsProcessors, RememberTokensAndFollowTheirBeams) {
  const GenerationConfig config{.repetition_penalty = 2.0};
  LogitsProcessors processors(config, {3}, 0, {{4}, {5}}, 8, at::kCPU);
  processors.append(at::tensor({6, 7}, at::kLong));
  processors.reorder(at::tensor({1, 1}, at::kLong));
  processors.append(at::tensor({0, 2}, at::kLong));
  const at::Tensor out = processors.process(at::ones({2, 8}), {}, 2);
  EXPECT_TRUE(out[0].equal(at::tensor({0.5F, 1.F, 1.F, 1.F, 1.F, 0.5F, 1.F, 0.5F})));
  EXPECT_TRUE(out[1].equal(at::tensor({1.F, 1.F, 0.5F, 1.F, 1.F, 0.5F, 1.F, 0.5F})));
}

TEST(LogitsProcessors, BanEndTokensForTheFirstStepsOnly) {
  LogitsProcessors processors({}, {3, 99}, 2, {{4}}, 8, at::kCPU);
  const at::Tensor logits = at::zeros({1, 8});
  EXPECT_EQ(processors.process(logits, {}, 1)[0][3].item<float>(), -kInfinity);
  EXPECT_TRUE(processors.process(logits, {}, 2).equal(logits));
}

TEST(FindLargest, GivesTheFirstOfEqualsAndAnyNaN) {
  for (const int64_t size : {1, 15, 16, 17, 1023, 1024, 1025, 49152}) {
    at::Tensor values = at::randn({size});
    float* data = values.mutable_data_ptr<float>();
    EXPECT_EQ(find_largest(data, size).index, values.argmax().item<int64_t>());
    data[size / 2] = data[size - 1] = 100.0F;
    EXPECT_EQ(find_largest(data, size).index, size / 2);
    EXPECT_EQ(find_largest(data, size).value, 100.0F);
    data[size - 1] = kInfinity;
    EXPECT_EQ(find_largest(data, size).index, size - 1);
    data[size / 3] = std::nanf("");
    EXPECT_EQ(find_largest(data, size).index, size / 3);
    EXPECT_TRUE(std::isnan(find_largest(data, size).value));
  }
  const std::vector<float> banned(40, -kInfinity);
  EXPECT_EQ(find_largest(banned.data(), 40).value, -kInfinity);
}

// The short list and the tensor functions are two ways to the same set.
TEST(WarpedCandidates, AreWhatTheTensorFunctionsLeave) {
  std::mt19937_64 random(1);
  const std::vector<int64_t> ks = {1, 2, 20, 50, 997, 5000};
  const std::vector<double> ps = {1.0, 0.95, 0.6, 0.05};
  for (int round = 0; round < 400; ++round) {
    at::Tensor logits = at::randn({1, 997}) * 4;
    if (round % 3 == 0) {
      logits = (logits * 2).round();  // many ties
    }
    if (round % 5 == 0) {
      logits.narrow(1, 100, 400).fill_(-kInfinity);
    }
    GenerationConfig config{.temperature = round % 2 == 0 ? 1.0 : 0.7};
    config.top_k = ks[random() % ks.size()];
    // Ties at the edge of top-p fall to one side or the other by the order of the sort.
    config.top_p = round % 3 == 0 ? 1.0 : ps[random() % ps.size()];
    config.typical_p = ps[random() % ps.size()];
    if (round % 4 == 0) {
      config.min_p = 0.02;
    }
    const at::Tensor expected = warp(logits, config)[0];
    at::Tensor got = at::full({997}, -kInfinity);
    for (const auto& candidate : warped_candidates(logits.const_data_ptr<float>(), 997, config)) {
      got[candidate.id] = candidate.score;
    }
    EXPECT_TRUE(got.equal(expected)) << "round " << round;
  }
}

// Counts of draws against the probabilities they should have.
double chi_square(const std::vector<int64_t>& counts, const at::Tensor& probabilities) {
  double total = 0.0, sum = 0.0;
  for (const int64_t count : counts) {
    total += static_cast<double>(count);
  }
  for (size_t i = 0; i < counts.size(); ++i) {
    const double expected = total * probabilities[static_cast<int64_t>(i)].item<double>();
    if (expected > 0.0) {
      sum += std::pow(static_cast<double>(counts[i]) - expected, 2) / expected;
    } else {
      EXPECT_EQ(counts[i], 0) << "token " << i << " has probability 0";
    }
  }
  return sum;
}

TEST(Sampler, DrawsInProportionToTheProbabilities) {
  constexpr int64_t kRows = 64, kSteps = 400;
  const at::Tensor logits = at::tensor({1.0F, 0.0F, -1.0F, 2.0F, 0.5F, -3.0F, 1.5F, -kInfinity});
  const at::Tensor rows = logits.expand({kRows, 8}).contiguous();
  for (const bool scores : {false, true}) {
    for (const int64_t k : {0, 5}) {
      const GenerationConfig config{.do_sample = true, .temperature = 1.3, .top_k = k, .seed = 17};
      Sampler sampler(config, kRows, at::kCPU, {.scores = scores});
      const LogitsProcessors none(config, {}, 0, {}, 8, at::kCPU);
      std::vector<int64_t> counts(8);
      for (int64_t step = 0; step < kSteps; ++step) {
        Choice choice = sampler.choose(rows, none, {}, step);
        choice.wait();
        for (int64_t row = 0; row < kRows; ++row) {
          ++counts[static_cast<size_t>(choice.ids[row].item<int64_t>())];
        }
      }
      const at::Tensor expected = warp(logits.unsqueeze(0), config).softmax(-1)[0];
      // 99.9 % of right samplers stay below: 6 or 4 degrees of freedom.
      EXPECT_LT(chi_square(counts, expected), k == 0 ? 22.5 : 18.5);
    }
  }
}

// What is left and how likely it is comes from the definitions, in float64, not from warp().
TEST(Sampler, DrawsAsEachRestrictionAndTheirMixturesSay) {
  constexpr int64_t kRows = 64, kSteps = 400;
  const at::Tensor logits = at::tensor({1.0F, 0.0F, -1.0F, 2.0F, 0.5F, -3.0F, 1.5F, -2.0F});
  const at::Tensor rows = logits.expand({kRows, 8}).contiguous();
  struct Mixture {
    GenerationConfig config;
    std::vector<int64_t> left;
    double bound;  // 99.9 % of right samplers stay below
  };
  const std::vector<Mixture> mixtures = {
      // Probabilities .415 .252 .153 .093 .056 .021 .008 .003 of tokens 3 6 0 4 1 2 7 5.
      {{.top_k = 0, .top_p = 0.8}, {3, 6, 0}, 13.9},
      // Nearest to the entropy of 1.516: surprises 1.379 and 1.879.
      {{.top_k = 0, .typical_p = 0.3}, {6, 0}, 10.9},
      {{.top_k = 0, .min_p = 0.2}, {3, 6, 0, 4}, 16.3},
      {{.top_k = 3, .top_p = 0.9}, {3, 6, 0}, 13.9},
      {{.temperature = 2.0, .top_k = 5, .min_p = 0.5}, {3, 6, 0}, 13.9},
      {{.temperature = 0.5, .top_k = 0, .top_p = 0.95}, {3, 6, 0}, 13.9},
  };
  for (const Mixture& mixture : mixtures) {
    GenerationConfig config = mixture.config;
    config.do_sample = true;
    config.seed = 23;
    at::Tensor expected = at::zeros({8}, at::kDouble);
    for (const int64_t id : mixture.left) {
      expected[id] = std::exp(logits[id].item<double>() / config.temperature);
    }
    expected = expected / expected.sum();
    Sampler sampler(config, kRows, at::kCPU, {});
    const LogitsProcessors none(config, {}, 0, {}, 8, at::kCPU);
    std::vector<int64_t> counts(8);
    for (int64_t step = 0; step < kSteps; ++step) {
      Choice choice = sampler.choose(rows, none, {}, step);
      choice.wait();
      for (int64_t row = 0; row < kRows; ++row) {
        ++counts[static_cast<size_t>(choice.ids[row].item<int64_t>())];
      }
    }
    EXPECT_LT(chi_square(counts, expected), mixture.bound)
        << "top_k " << config.top_k << ", top_p " << config.top_p;
  }
}

TEST(Sampler, DoesNotRepeatItselfFromRowToRowOrStepToStep) {
  const GenerationConfig config{.do_sample = true, .top_k = 0, .seed = 1};
  Sampler sampler(config, 3, at::kCPU, {});
  const LogitsProcessors none(config, {}, 0, {}, 1000, at::kCPU);
  Sequences drawn(3);
  for (int64_t step = 0; step < 20; ++step) {
    const Choice choice = sampler.choose(at::zeros({3, 1000}), none, {}, step);
    for (size_t row = 0; row < 3; ++row) {
      drawn[row].push_back(choice.ids[static_cast<int64_t>(row)].item<int64_t>());
    }
  }
  EXPECT_NE(drawn[0], drawn[1]);
  EXPECT_NE(drawn[1], drawn[2]);
}

TEST(StopStrings, AreFoundWhereTheyEndAndNowhereElse) {
  const std::vector<std::string> strings = {"stop", "END", "."};
  StopStrings search(strings);
  EXPECT_FALSE(search.push("a st"));
  EXPECT_FALSE(search.push("o"));
  EXPECT_FALSE(search.push(""));
  EXPECT_TRUE(search.push("pping"));
  EXPECT_FALSE(search.push("E")) << "an old match must not count again";
  EXPECT_FALSE(search.push("N"));
  EXPECT_TRUE(search.push("D"));
  EXPECT_TRUE(search.push("x.y"));
  EXPECT_FALSE(search.push("topEN"));
}

TEST(TextHooks, StopAtASpecialTokensTextThatTheStreamLeavesOut) {
  TableModel model;
  GenerateHooks hooks = text_hooks(test_tokenizer());
  std::string text;
  hooks.on_token = [&](const TokenEvent& event) { text += event.text; };
  GenerationConfig config{.max_new_tokens = 60, .ignore_eos = true, .stop_strings = {"$"}};
  const auto output = generate(model, {{4, 9, 17}}, config, hooks);
  EXPECT_EQ(output.finish_reasons[0], FinishReason::kStopString);
  EXPECT_EQ(output.sequences[0].back(), 3);
  EXPECT_EQ(text.find('$'), std::string::npos);
}

}  // namespace
}  // namespace graft::generation
