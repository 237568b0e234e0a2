// Ids that transformers generates with the reference models: greedy search and beams over prompts
// of unequal length, with both caches and without one, in both attention implementations.
#include <algorithm>
#include <filesystem>

#include <ATen/Parallel.h>
#include <gtest/gtest.h>

#include "graft/core/error.h"
#include "graft/generation/generate.h"
#include "graft/layers/kernelize.h"
#include "graft/models/test_reference.h"

namespace graft::generation {
namespace {

using models::testing::reference_folders;
using models::testing::ReferenceModel;
using Ids = std::vector<std::vector<int64_t>>;

constexpr int64_t kNewTokens = 16;

Ids rows_of(const at::Tensor& ids) {
  Ids rows;
  for (int64_t row = 0; row < ids.size(0); ++row) {
    const int64_t* first = ids[row].const_data_ptr<int64_t>();
    rows.emplace_back(first, first + ids.size(1));
  }
  return rows;
}

// The recorded prompts without their padding.
Ids prompts_of(const ReferenceModel& reference) {
  const at::Tensor mask = reference["prompt.attention_mask"];
  Ids prompts = rows_of(reference["prompt.input_ids"]);
  for (size_t row = 0; row < prompts.size(); ++row) {
    const auto length = mask[static_cast<int64_t>(row)].sum().item<int64_t>();
    prompts[row].erase(prompts[row].begin(), prompts[row].end() - length);
  }
  return prompts;
}

// The new ids alone: what stands behind the prompts' common width, up to and with the end token.
Ids new_ids(const ReferenceModel& reference, const std::string& key, int64_t eos) {
  Ids rows = rows_of(reference[key]);
  const auto width = reference["prompt.input_ids"].size(1);
  for (auto& row : rows) {
    row.erase(row.begin(), row.begin() + width);
    const auto end = std::find(row.begin(), row.end(), eos);
    if (end != row.end()) {
      row.erase(end + 1, row.end());
    }
  }
  return rows;
}

struct Search {
  std::string key;
  int64_t num_beams = 1;
  bool ends = true;
  EarlyStopping early_stopping = EarlyStopping::kFalse;
  double length_penalty = 1.0;
};

const std::vector<Search> kSearches = {
    {"greedy.ids", 1, false},
    {"greedy_eos.ids"},
    {"beam_no_eos.ids", 3, false},
    {"beam.ids", 3},
    {"beam_early.ids", 3, true, EarlyStopping::kTrue},
    {"beam_never.ids", 3, true, EarlyStopping::kNever},
    {"beam_penalty.ids", 3, true, EarlyStopping::kFalse, -1.0},
};

enum class Cache { kDynamic, kStatic, kNone };

class GeneratedIds : public ::testing::TestWithParam<std::string> {
 protected:
  GeneratedIds() : reference_(GetParam()) { at::set_num_threads(1); }

  void expect_recorded(models::CausalLM& model, const std::string& what) {
    const auto eos = reference_["eos_token_id"].item<int64_t>();
    const Ids prompts = prompts_of(reference_);
    std::vector<Cache> caches = {Cache::kDynamic, Cache::kStatic};
    if (GetParam() != "llama_dynamic_rope") {
      // Dynamic rope turns every key anew as the text grows; transformers, which recorded with a
      // cache, and graft both keep what is cached, so without a cache the ids are others.
      caches.push_back(Cache::kNone);
    }
    for (const Cache cache : caches) {
      for (const Search& search : kSearches) {
        GenerationConfig config{.max_new_tokens = kNewTokens};
        config.num_beams = search.num_beams;
        config.length_penalty = search.length_penalty;
        config.early_stopping = search.early_stopping;
        config.eos_token_ids = {eos};
        config.ignore_eos = !search.ends;
        config.use_cache = cache != Cache::kNone;
        config.use_static_cache = cache == Cache::kStatic;
        EXPECT_EQ(generation::generate(model, prompts, config).sequences,
                  new_ids(reference_, search.key, search.ends ? eos : -1))
            << what << ", " << search.key << ", cache " << static_cast<int>(cache);
      }
    }
  }

  ReferenceModel reference_;
};

// Dynamic rope stretches with the text; every other rope ends with the context.
TEST(GeneratedIdsBeyondTheContext, AreRefusedUnlessTheRopeStretches) {
  const ReferenceModel stretching("llama_dynamic_rope");
  EXPECT_EQ(stretching.load({})->info().max_position_embeddings, 0);
  const ReferenceModel reference("llama");
  const auto model = reference.load({});
  const int64_t context = model->info().max_position_embeddings;
  try {
    generation::generate(*model, prompts_of(reference), {.max_new_tokens = context});
    FAIL() << "no error";
  } catch (const InvalidArgument& error) {
    EXPECT_EQ(error.code(), "generation.context");
  }
}

TEST_P(GeneratedIds, AreThoseOfTransformers) {
  for (const char* attention : {"eager", "sdpa"}) {
    const auto model = reference_.load({.dtype = at::kFloat, .attn_implementation = attention});
    expect_recorded(*model, attention);
  }
}

TEST_P(GeneratedIds, StayTheSameWithKernels) {
  if (!std::filesystem::is_directory(std::filesystem::path(GRAFT_BINARY_DIR) /
                                     "share/graft/hub/graft-kernels")) {
    GTEST_SKIP() << "this build has no kernel packages";
  }
  const auto model = reference_.load({.dtype = at::kFloat});
  EXPECT_FALSE(layers::kernelize(*model).swapped().empty());
  expect_recorded(*model, "kernels");
}

INSTANTIATE_TEST_SUITE_P(Models, GeneratedIds, ::testing::ValuesIn(reference_folders()),
                         [](const auto& info) { return info.param; });

}  // namespace
}  // namespace graft::generation
