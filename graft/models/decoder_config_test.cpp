#include "graft/models/decoder_config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "graft/core/error.h"
#include "graft/models/test_checkpoint.h"

namespace graft::models {
namespace {

using nlohmann::json;
using ::testing::HasSubstr;
using testing::tiny_config;

DecoderConfig read(const json& config) { return read_decoder_config({config, "config.json"}, {}); }

std::string message_of(const json& config) {
  try {
    read(config);
  } catch (const Error& error) {
    return error.what();
  }
  return "no error";
}

TEST(DecoderConfig, ReadsWhatTransformersWrites) {
  auto config = tiny_config("llama");
  config["rope_parameters"] = {{"rope_type", "llama3"}, {"rope_theta", 5e5},
                               {"factor", 8},           {"low_freq_factor", 1},
                               {"high_freq_factor", 4}, {"original_max_position_embeddings", 16}};
  config["eos_token_id"] = {2, 5};
  config["bos_token_id"] = 1;
  config["dtype"] = "bfloat16";
  const DecoderConfig got = read(config);
  EXPECT_EQ(got.rope.type, nn::RopeType::kLlama3);
  EXPECT_EQ(got.rope.theta, 5e5);
  EXPECT_EQ(got.rope.original_max_position_embeddings, 16);
  EXPECT_THAT(got.eos_token_ids, ::testing::ElementsAre(2, 5));
  EXPECT_EQ(got.bos_token_id, 1);
  EXPECT_EQ(got.pad_token_id, -1);
  EXPECT_EQ(got.dtype, at::kBFloat16);
}

TEST(DecoderConfig, ReadsTheOldSpellingOfRope) {
  auto config = tiny_config("llama");
  config["rope_theta"] = 123.0;
  config["rope_scaling"] = {{"type", "linear"}, {"factor", 2.0}};
  config["torch_dtype"] = "float16";
  const DecoderConfig got = read(config);
  EXPECT_EQ(got.rope.type, nn::RopeType::kLinear);
  EXPECT_EQ(got.rope.theta, 123.0);
  EXPECT_EQ(got.rope.factor, 2.0);
  EXPECT_EQ(got.dtype, at::kHalf);
}

TEST(DecoderConfig, DerivesHeadSizeAndKeyHeads) {
  auto config = tiny_config("llama");
  config.erase("head_dim");
  config["num_key_value_heads"] = nullptr;
  const DecoderConfig got = read(config);
  EXPECT_EQ(got.head_dim, 8);
  EXPECT_EQ(got.num_kv_heads, 4);
}

struct Hostile {
  const char* key;
  const char* value;  // JSON
  const char* blamed = nullptr;
};

TEST(DecoderConfig, RefusesWhatIsOutOfRangeBeforeAnythingIsAllocated) {
  const Hostile cases[] = {
      {"hidden_size", "0"},
      {"hidden_size", "-64"},
      {"hidden_size", "\"64\""},
      {"hidden_size", "64.5"},
      {"hidden_size", "18446744073709551615"},
      {"num_attention_heads", "0"},
      {"num_attention_heads", "5", "num_key_value_heads"},
      {"num_key_value_heads", "3"},
      {"num_hidden_layers", "-1"},
      {"num_hidden_layers", "1000000000"},
      {"vocab_size", "2147483648"},
      {"vocab_size", "null"},
      {"intermediate_size", "[]"},
      {"head_dim", "0"},
      {"head_dim", "7"},
      {"rms_norm_eps", "-1e-6"},
      {"rms_norm_eps", "\"1e-6\""},
      {"rope_theta", "0"},
      {"rope_theta", "-1"},
      {"partial_rotary_factor", "0"},
      {"partial_rotary_factor", "2"},
      {"max_position_embeddings", "0"},
      {"tie_word_embeddings", "1"},
      {"eos_token_id", "\"2\""},
      {"eos_token_id", "[2, -7]"},
      {"torch_dtype", "\"int8\""},
  };
  for (const Hostile& c : cases) {
    auto config = tiny_config("llama");
    config[c.key] = json::parse(c.value);
    EXPECT_THAT(message_of(config),
                HasSubstr(std::string("[models.config] `config.json`: ") +
                          (c.blamed != nullptr ? c.blamed : c.key) + ": expected"))
        << c.key << " = " << c.value;
  }
}

TEST(DecoderConfig, RefusesRopeThatIsIncomplete) {
  for (const auto& [rope, key] : {
           std::pair<json, const char*>{{{"rope_type", "linear"}}, "factor"},
           {{{"rope_type", "linear"}, {"factor", 0}}, "factor"},
           {{{"rope_type", "llama3"}, {"factor", 8}}, "low_freq_factor"},
           {{{"rope_type", "llama3"},
             {"factor", 8},
             {"low_freq_factor", 4},
             {"high_freq_factor", 4}},
            "high_freq_factor"},
           {{{"rope_type", "longrope"}, {"short_factor", {1, 1}}}, "short_factor"},
           {{{"rope_type", "longrope"}, {"short_factor", {1, 1, 1, 1}}}, "long_factor"},
       }) {
    auto config = tiny_config("llama");
    config["rope_parameters"] = rope;
    EXPECT_THAT(message_of(config), HasSubstr(std::string("#rope_parameters`: ") + key))
        << rope.dump();
  }
  auto config = tiny_config("llama");
  config["rope_scaling"] = {{"type", "spiral"}};
  EXPECT_THAT(message_of(config), HasSubstr("rope_type: expected one of `default`"));
}

TEST(DecoderConfig, RefusesQuantizedCheckpoints) {
  auto config = tiny_config("llama");
  config["quantization_config"] = {{"quant_method", "gptq"}};
  EXPECT_THAT(message_of(config), HasSubstr("quantization_config: expected none, got one"));
}

TEST(DecoderConfig, KnowsTheThreeStatesOfASlidingWindow) {
  const auto window = [](const json& config) { return read_sliding_window({config, "c"}, 4096); };
  EXPECT_EQ(window(json::object()), 4096);
  EXPECT_EQ(window({{"sliding_window", nullptr}}), 0);
  EXPECT_EQ(window({{"sliding_window", 7}}), 7);
  EXPECT_THROW(window({{"sliding_window", 0}}), FormatError);
}

TEST(DecoderConfig, RefusesLayerTypesThatDoNotFit) {
  const ConfigReader reader({{"layer_types", {"full_attention", "sliding_attention"}}}, "c");
  const auto never = [](int64_t) { return false; };
  EXPECT_THAT(read_layer_types(reader, 2, never),
              ::testing::ElementsAre(LayerType::kFull, LayerType::kSliding));
  EXPECT_THROW(read_layer_types(reader, 3, never), FormatError);
  const ConfigReader unknown({{"layer_types", {"linear_attention"}}}, "c");
  EXPECT_THROW(read_layer_types(unknown, 1, never), FormatError);
}

}  // namespace
}  // namespace graft::models
