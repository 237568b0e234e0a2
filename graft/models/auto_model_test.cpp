#include "graft/models/auto_model.h"

#include <fstream>
#include <sstream>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "graft/core/error.h"
#include "graft/models/test_checkpoint.h"

namespace graft::models {
namespace {

using ::testing::HasSubstr;
using testing::random_weights;
using testing::TempFolder;
using testing::tiny_config;
using testing::Weights;
using testing::write_config;
using testing::write_weights;

at::Tensor some_ids() {
  return at::arange(3, 15, at::TensorOptions().dtype(at::kLong)).view({2, 6});
}

// The file that is mapped at an address, or an empty text.
std::string mapped_file_at(const void* address) {
  std::ifstream maps("/proc/self/maps");
  const auto wanted = reinterpret_cast<uintptr_t>(address);
  for (std::string line; std::getline(maps, line);) {
    uintptr_t begin = 0, end = 0;
    char dash = 0;
    std::istringstream fields(line);
    fields >> std::hex >> begin >> dash >> end;
    if (wanted >= begin && wanted < end) {
      const size_t slash = line.find('/');
      return slash == std::string::npos ? "" : line.substr(slash);
    }
  }
  return "";
}

struct Checkpoint {
  explicit Checkpoint(const nlohmann::json& config) : weights(random_weights(config)) {
    write_config(folder.path(), config);
    write_weights(folder.path(), weights);
  }
  std::shared_ptr<CausalLM> load(const LoadOptions& options = {}) const {
    return AutoModelForCausalLM::from_pretrained(folder.path().string(), options);
  }
  TempFolder folder;
  Weights weights;
};

std::string message_of(const std::function<void()>& action) {
  try {
    action();
  } catch (const Error& error) {
    return error.what();
  }
  return "no error";
}

TEST(AutoModel, PointsIntoTheMappedFileWhereTheDtypeAllows) {
  const Checkpoint checkpoint(tiny_config("llama"));
  const auto model = checkpoint.load();
  EXPECT_EQ(model->dtype(), at::kFloat);
  EXPECT_FALSE(model->is_training());
  for (const auto& weight : model->named_parameters()) {
    EXPECT_THAT(mapped_file_at(weight.value().data_ptr()), HasSubstr("model.safetensors"))
        << weight.key();
    EXPECT_TRUE(at::equal(weight.value(), checkpoint.weights.at(weight.key())));
    EXPECT_FALSE(weight.value().requires_grad());
  }
}

// A figure of /proc/self/status in bytes.
int64_t process_bytes(const std::string& field) {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);) {
    if (line.starts_with(field + ":")) {
      return std::stoll(line.substr(field.size() + 1)) * 1024;
    }
  }
  return -1;
}

TEST(AutoModel, LoadsInTheMemoryOfItsWeights) {
  // 240 MB in float32; a new process would have to start libtorch, so the peak is set back instead.
  auto config = tiny_config("llama");
  config["vocab_size"] = 60000;
  config["hidden_size"] = 512;
  config["tie_word_embeddings"] = false;
  const Checkpoint checkpoint(config);
  int64_t weights = 0;
  for (const auto& [key, tensor] : checkpoint.weights) {
    weights += static_cast<int64_t>(tensor.nbytes());
  }
  ASSERT_GT(weights, 240000000);
  for (const bool converts : {false, true}) {
    std::ofstream("/proc/self/clear_refs") << "5";
    const int64_t before = process_bytes("VmRSS");
    ASSERT_LT(process_bytes("VmHWM"), before + (int64_t{64} << 20)) << "the peak was not set back";
    const auto model = checkpoint.load({.dtype = converts ? at::kBFloat16 : at::kFloat});
    const int64_t peak = process_bytes("VmHWM") - before;
    if (converts) {
      // Half the size, and the one tensor of the file beside it that is being read.
      EXPECT_LT(peak, weights / 2 + weights / 2 * 11 / 10 + (int64_t{50} << 20));
      EXPECT_EQ(mapped_file_at(model->parameters().front().data_ptr()).find("safetensors"),
                std::string::npos);
    } else {
      EXPECT_LT(peak, int64_t{50} << 20) << "mapped weights cost no memory before they are read";
    }
  }
}

TEST(AutoModel, ConvertsToTheDtypeThatIsAskedFor) {
  const Checkpoint checkpoint(tiny_config("llama"));
  const auto model = checkpoint.load({.dtype = at::kBFloat16});
  EXPECT_EQ(model->dtype(), at::kBFloat16);
  EXPECT_TRUE(at::equal(model->named_parameters()["model.norm.weight"],
                        checkpoint.weights.at("model.norm.weight").to(at::kBFloat16)));
  EXPECT_EQ(model->forward({.input_ids = some_ids()}).scalar_type(), at::kBFloat16);
}

TEST(AutoModel, TakesTheDtypeOfTheConfigBeforeThatOfTheFile) {
  auto config = tiny_config("llama");
  config["torch_dtype"] = "float16";
  EXPECT_EQ(Checkpoint(config).load()->dtype(), at::kHalf);
}

TEST(AutoModel, TiesTheHeadAndCountsItOnce) {
  auto config = tiny_config("llama");
  config["tie_word_embeddings"] = true;
  const Checkpoint checkpoint(config);
  const auto model = checkpoint.load();
  auto parameters = model->named_parameters();
  EXPECT_TRUE(parameters["lm_head.weight"].is_same(parameters["model.embed_tokens.weight"]));
  int64_t count = 0;
  for (const auto& [key, tensor] : checkpoint.weights) {
    count += tensor.numel();
  }
  EXPECT_EQ(model->info().num_parameters, count);
  EXPECT_EQ(model->info().folder, checkpoint.folder.path().string());
}

TEST(AutoModel, ReportsEveryMismatchOfConfigAndWeightsAtOnce) {
  const auto config = tiny_config("llama");
  const TempFolder folder;
  Weights weights = random_weights(config);
  weights.erase("model.layers.1.mlp.up_proj.weight");
  weights["model.layers.0.self_attn.q_proj.weight"] = at::zeros({16, 32});
  weights["model.layers.7.mlp.up_proj.weight"] = at::zeros({4});
  weights["model.layers.0.self_attn.rotary_emb.inv_freq"] = at::zeros({4});  // computed, ignored
  write_config(folder.path(), config);
  write_weights(folder.path(), weights);
  const std::string message =
      message_of([&] { AutoModelForCausalLM::from_pretrained(folder.path().string()); });
  EXPECT_EQ(message, "[models.weights] `" + folder.path().string() +
                         "`: expected the weights that the config describes, got 3 differences\n"
                         "  model.layers.0.self_attn.q_proj.weight: expected shape [32, 32] = "
                         "[num_attention_heads * head_dim, hidden_size], got [16, 32]\n"
                         "  missing: model.layers.1.mlp.up_proj.weight\n"
                         "  not in the model: model.layers.7.mlp.up_proj.weight\n"
                         "hint: config.json and the weight files must be of one model");
}

TEST(AutoModel, NamesWhatIsMissing) {
  const TempFolder folder;
  const std::string path = folder.path().string();
  EXPECT_THAT(message_of([&] { AutoModelForCausalLM::from_pretrained(path + "/none"); }),
              HasSubstr("expected a folder, a .gguf file or a repository id"));
  EXPECT_THAT(message_of([&] { AutoModelForCausalLM::from_pretrained(path); }),
              HasSubstr("expected a config.json, got none\nhint: for a GGUF model"));
  EXPECT_THAT(
      message_of([&] { AutoModelForCausalLM::from_pretrained(path, {.gguf_file = "a.gguf"}); }),
      HasSubstr("gguf_file: expected a file"));
  setenv("HF_HUB_CACHE", path.c_str(), 1);
  EXPECT_THAT(message_of([&] { AutoModelForCausalLM::from_pretrained("some-org/some-model"); }),
              HasSubstr("hint: run `graft download some-org/some-model`"));
  unsetenv("HF_HUB_CACHE");
}

TEST(AutoModel, RefusesUnknownTypesListingTheKnownOnes) {
  const TempFolder folder;
  write_config(folder.path(), tiny_config("llama"));
  write_weights(folder.path(), random_weights(tiny_config("llama")));
  auto config = tiny_config("llama");
  config["model_type"] = "lama";
  write_config(folder.path(), config);
  const auto load = [&] { AutoModelForCausalLM::from_pretrained(folder.path().string()); };
  EXPECT_EQ(message_of(load),
            "[models.auto_model] `" + (folder.path() / "config.json").string() +
                "`: model_type: expected one of `llama`, `mistral`, `qwen2`, `qwen3`, "
                "`gemma2`, `gemma3_text`, `phi3`, `olmo2`, `smollm3`, got `lama`");
  config = tiny_config("llama");
  config["hidden_act"] = "swoosh";
  write_config(folder.path(), config);
  EXPECT_THAT(message_of(load), HasSubstr("hidden_act: expected one of `silu`"));
}

TEST(AutoModel, GivesGradientsToEveryWeightWhenTrainable) {
  auto config = tiny_config("qwen3");
  config["tie_word_embeddings"] = true;
  const Checkpoint checkpoint(config);
  const auto model = checkpoint.load({.trainable = true});
  model->train();
  model->forward({.input_ids = some_ids()}).square().sum().backward();
  for (const auto& weight : model->named_parameters()) {
    ASSERT_TRUE(weight.value().grad().defined()) << weight.key();
    EXPECT_GT(weight.value().grad().abs().sum().item<float>(), 0.0F) << weight.key();
    EXPECT_EQ(mapped_file_at(weight.value().data_ptr()).find("safetensors"), std::string::npos);
  }
}

TEST(AutoModel, IgnoresCodeThatAConfigNames) {
  auto config = tiny_config("llama");
  const Checkpoint plain(config);
  const at::Tensor expected = plain.load()->forward({.input_ids = some_ids()});
  config["auto_map"] = {{"AutoModelForCausalLM", "evil/repo--modeling.Model"}};
  config["_attn_implementation_internal"] = "evil/attention";
  config["kernel_config"] = {{"RMSNorm", "evil/norm:Norm"}};
  write_config(plain.folder.path(), config);
  EXPECT_TRUE(at::equal(plain.load()->forward({.input_ids = some_ids()}), expected));
}

TEST(AutoModel, RefusesInputsThatDoNotFit) {
  const Checkpoint checkpoint(tiny_config("llama"));
  const auto model = checkpoint.load();
  EXPECT_THAT(message_of([&] {
                model->forward({.input_ids = at::zeros({2, 3})});
              }),
              HasSubstr("input_ids: expected int64 of shape [B, S], not empty, got Float [2, 3]"));
  EXPECT_THAT(
      message_of([&] {
        model->forward({.input_ids = some_ids(), .attention_mask = at::ones({2, 5})});
      }),
      HasSubstr("attention_mask: expected shape [2, 6] (batch, past and new tokens), got [2, 5]"));
}

TEST(AutoModel, KeepsTheBitsOfTheLastPositionsWhenOnlyTheyAreAskedFor) {
  for (const char* family : {"llama", "gemma2", "olmo2"}) {
    const Checkpoint checkpoint(tiny_config(family));
    const auto model = checkpoint.load();
    const at::Tensor all = model->forward({.input_ids = some_ids()});
    const at::Tensor last = model->forward({.input_ids = some_ids(), .logits_to_keep = 2});
    EXPECT_TRUE(at::allclose(last, all.slice(1, 4, 6), 1e-5, 1e-6)) << family;
  }
}

}  // namespace
}  // namespace graft::models
