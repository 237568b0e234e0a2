#include <cstring>
#include <fstream>
#include <functional>
#include <limits>
#include <map>
#include <variant>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "graft/core/error.h"
#include "graft/io/test_allocations.h"
#include "graft/models/auto_model.h"
#include "graft/models/gguf_names.h"
#include "graft/models/test_gguf.h"

namespace graft::models {
namespace {

using testing::GgufWriter;
using testing::llama_cpp_name;
using testing::permuted;
using testing::random_weights;
using testing::TempFolder;
using testing::tiny_config;
using testing::Weights;

struct GgufCase {
  std::string architecture;
  std::string model_type;
  std::function<void(nlohmann::json&)> adjust = [](nlohmann::json&) {};
};

void PrintTo(const GgufCase& c, std::ostream* out) { *out << c.architecture; }

class GgufArchitectures : public ::testing::TestWithParam<GgufCase> {};

TEST_P(GgufArchitectures, ComputeWhatTheSafetensorsCheckpointComputes) {
  const auto& [architecture, model_type, adjust] = GetParam();
  auto config = tiny_config(model_type);
  config["rms_norm_eps"] = 1e-5F;
  config["rope_theta"] = 5000.0;
  config["tie_word_embeddings"] = model_type.starts_with("gemma");
  adjust(config);
  const TempFolder folder;
  const Weights weights = random_weights(config);
  testing::write_config(folder.path(), config);
  testing::write_weights(folder.path(), weights);

  const auto file = folder.path() / "model.gguf";
  testing::write_gguf(architecture, config, weights, file);

  const at::Tensor ids = at::arange(3, 15, at::TensorOptions().dtype(at::kLong)).view({1, 12});
  const auto expected = AutoModelForCausalLM::from_pretrained(folder.path().string());
  const auto got = AutoModelForCausalLM::from_pretrained(file.string());
  EXPECT_EQ(got->info().model_type, model_type);
  EXPECT_EQ(got->info().weights_file, file.string());
  EXPECT_EQ(got->dtype(), at::kFloat);
  const at::Tensor want = expected->forward({.input_ids = ids});
  EXPECT_LT((got->forward({.input_ids = ids}) - want).abs().max().item<double>(),
            1e-5 * want.abs().max().item<double>());
  const auto half = AutoModelForCausalLM::from_pretrained(
      folder.path().string(), {.dtype = at::kBFloat16, .gguf_file = "model.gguf"});
  EXPECT_EQ(half->dtype(), at::kBFloat16);
}

INSTANTIATE_TEST_SUITE_P(
    Known, GgufArchitectures,
    ::testing::Values(GgufCase{"llama", "llama"}, GgufCase{"qwen2", "qwen2"},
                      GgufCase{"qwen3", "qwen3"}, GgufCase{"phi3", "phi3"},
                      GgufCase{"olmo2", "olmo2"}, GgufCase{"smollm3", "smollm3"},
                      GgufCase{"gemma2", "gemma2",
                               [](nlohmann::json& config) {
                                 config["sliding_window"] = 5;
                                 config["query_pre_attn_scalar"] = 8;
                               }},
                      GgufCase{"gemma3", "gemma3_text", [](nlohmann::json& config) {
                                 config["sliding_window"] = 5;
                                 config["query_pre_attn_scalar"] = 8;
                               }}));

TEST(Gguf, ReadsLlama3RotaryFactorsFromTheirTensor) {
  auto config = tiny_config("llama");
  config["rms_norm_eps"] = 1e-5F;
  config["rope_parameters"] = {{"rope_type", "llama3"},   {"rope_theta", 10000.0},
                               {"factor", 8.0},           {"low_freq_factor", 1.0},
                               {"high_freq_factor", 4.0}, {"original_max_position_embeddings", 16}};
  const ConfigReader reader(config, "test");
  const nn::RotaryEmbedding scaled(read_decoder_config(reader, {}).rope, 8);
  config.erase("rope_parameters");
  const nn::RotaryEmbedding plain(read_decoder_config({config, "test"}, {}).rope, 8);
  const at::Tensor factors = plain.inverse_frequencies(0) / scaled.inverse_frequencies(0);

  const TempFolder folder;
  GgufWriter writer;
  writer.metadata("general.architecture", "llama");
  for (const auto& [key, value] : {std::pair<const char*, uint32_t>{"context_length", 64},
                                   {"embedding_length", 32},
                                   {"feed_forward_length", 64},
                                   {"block_count", 2},
                                   {"attention.head_count", 4},
                                   {"attention.head_count_kv", 2}}) {
    writer.metadata(std::string("llama.") + key, value);
  }
  writer.metadata("llama.attention.layer_norm_rms_epsilon", 1e-5F);
  const Weights weights = random_weights(config);
  for (const auto& [key, value] : weights) {
    const std::string name = llama_cpp_name("llama", key);
    writer.tensor(name, name.find("attn_q.") != std::string::npos   ? permuted(value, 4)
                        : name.find("attn_k.") != std::string::npos ? permuted(value, 2)
                                                                    : value);
  }
  writer.tensor("rope_freqs.weight", factors);
  writer.write(folder.path() / "model.gguf");
  config["rope_parameters"] = {{"rope_type", "llama3"},   {"rope_theta", 10000.0},
                               {"factor", 8.0},           {"low_freq_factor", 1.0},
                               {"high_freq_factor", 4.0}, {"original_max_position_embeddings", 16}};
  testing::write_config(folder.path(), config);
  testing::write_weights(folder.path(), weights);
  const at::Tensor ids = at::arange(3, 27, at::TensorOptions().dtype(at::kLong)).view({1, 24});
  const at::Tensor want =
      AutoModelForCausalLM::from_pretrained(folder.path().string())->forward({.input_ids = ids});
  const at::Tensor got =
      AutoModelForCausalLM::from_pretrained((folder.path() / "model.gguf").string())
          ->forward({.input_ids = ids});
  EXPECT_LT((got - want).abs().max().item<double>(), 1e-5 * want.abs().max().item<double>());
}

TEST(Gguf, NamesAnUnknownArchitectureAndAMissingKey) {
  const TempFolder folder;
  const std::string path = (folder.path() / "model.gguf").string();
  GgufWriter unknown;
  unknown.metadata("general.architecture", "mamba");
  unknown.write(path);
  try {
    AutoModelForCausalLM::from_pretrained(path);
    FAIL() << "expected IncompatibleError";
  } catch (const IncompatibleError& error) {
    EXPECT_THAT(error.what(), ::testing::HasSubstr("expected one of `llama`, `qwen2`"));
    EXPECT_THAT(error.what(), ::testing::HasSubstr("got `mamba`"));
  }
  GgufWriter incomplete;
  incomplete.metadata("general.architecture", "llama");
  incomplete.tensor("token_embd.weight", at::zeros({4, 4}));
  incomplete.write(path);
  try {
    AutoModelForCausalLM::from_pretrained(path);
    FAIL() << "expected FormatError";
  } catch (const FormatError& error) {
    EXPECT_THAT(error.what(), ::testing::HasSubstr("llama.context_length: expected an integer"));
  }
}

// A small Llama without weights beside the embedding, with one metadata entry changed or added.
struct HostileGguf {
  std::string text;
  std::string code = "accepted";

  HostileGguf(const std::string& key, const GgufWriter::Value& value,
              const std::string& tensor = "", const at::Tensor& data = {}) {
    std::map<std::string, GgufWriter::Value> metadata = {
        {"general.architecture", "llama"},
        {"llama.context_length", 64U},
        {"llama.embedding_length", 32U},
        {"llama.feed_forward_length", 64U},
        {"llama.block_count", 2U},
        {"llama.attention.head_count", 4U},
        {"llama.attention.head_count_kv", 2U},
        {"llama.attention.layer_norm_rms_epsilon", 1e-5F}};
    metadata[key] = value;
    GgufWriter writer;
    for (const auto& [name, item] : metadata) {
      writer.metadata(name, item);
    }
    if (tensor != "token_embd.weight") {
      writer.tensor("token_embd.weight", at::zeros({4, 32}));
    }
    if (!tensor.empty()) {
      writer.tensor(tensor, data);
    }
    const TempFolder folder;
    writer.write(folder.path() / "hostile.gguf");
    const uint64_t allocated = io::test_support::bytes_allocated_by([&] {
      try {
        AutoModelForCausalLM::from_pretrained((folder.path() / "hostile.gguf").string());
      } catch (const Error& error) {
        code = error.code();
        text = error.what();
      }
    });
    EXPECT_LT(allocated, 1 << 20) << text;
    EXPECT_THAT(text, ::testing::HasSubstr("/hostile.gguf`: "));
  }
};

TEST(Gguf, RefusesHostileMetadataNamingKeyAndOffset) {
  const auto refuses = [](const std::string& name, const GgufWriter::Value& value) {
    const HostileGguf hostile("llama." + name, value);
    EXPECT_EQ(hostile.code, "models.config.value") << name;
    EXPECT_THAT(hostile.text,
                ::testing::ContainsRegex("`: at offset [0-9]+: llama." + name + ": expected "));
  };
  for (const char* key : {"context_length", "embedding_length", "feed_forward_length",
                          "block_count", "attention.head_count", "attention.head_count_kv"}) {
    refuses(key, 0U);
    refuses(key, UINT32_MAX);
    refuses(key, -4.0F);
    refuses(key, 2.5F);
    refuses(key, "many");
  }
  refuses("block_count", 1'000'000'000U);
  refuses("attention.head_count_kv", 3U);
  refuses("attention.head_count", 6U);
  refuses("attention.key_length", 1U);
  refuses("attention.key_length", 7U);
  refuses("rope.dimension_count", 1U << 20);
  refuses("rope.dimension_count", 16U);
  refuses("rope.freq_base", 0.0F);
  refuses("rope.freq_base", std::numeric_limits<float>::quiet_NaN());
  refuses("attention.layer_norm_rms_epsilon", -1.0F);
  const HostileGguf architecture("general.architecture", std::string(10'000, 'x') + "\x1b[31m");
  EXPECT_EQ(architecture.code, "models.gguf.architecture");
  EXPECT_LT(architecture.text.size(), 1000);
}

TEST(Gguf, RefusesTensorsThatTheConfigIsMadeOfNamingThemAndTheirOffset) {
  const HostileGguf factors("llama.block_count", 2U, "rope_freqs.weight", at::ones({5000}));
  EXPECT_EQ(factors.code, "models.gguf.rope-factors");
  EXPECT_THAT(factors.text,
              ::testing::ContainsRegex("at offset [0-9]+: tensor `rope_freqs.weight`: expected at "
                                       "most 4096 factors, got 5000"));
  const HostileGguf embedding("llama.block_count", 2U, "token_embd.weight", at::ones({8}));
  EXPECT_EQ(embedding.code, "models.gguf.embedding");
  EXPECT_THAT(
      embedding.text,
      ::testing::ContainsRegex("at offset [0-9]+: tensor `token_embd.weight`: expected a matrix"));
  const HostileGguf none("llama.block_count", 2U, "blk.0.attn_norm.weight", at::ones({32}));
  EXPECT_EQ(none.code, "models.weights.mismatch");
}

}  // namespace
}  // namespace graft::models
