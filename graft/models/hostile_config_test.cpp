// Hostile config.json, GGUF metadata and weight files, through the door that users take. Every
// refusal is typed, names file and field, and comes before memory is taken for what the file claims.
#include <fstream>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "graft/core/error.h"
#include "graft/io/test_allocations.h"
#include "graft/models/auto_model.h"
#include "graft/models/test_checkpoint.h"

namespace graft::models {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;
using ::testing::HasSubstr;
using ::testing::Not;
using testing::random_weights;
using testing::tiny_config;

class HostileConfig : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {  // what libtorch and the first model allocate once
    const testing::TempFolder folder;
    testing::write_config(folder.path(), tiny_config("llama"));
    testing::write_weights(folder.path(), random_weights(tiny_config("llama")));
    AutoModelForCausalLM::from_pretrained(folder.path().string());
  }
  void SetUp() override {
    testing::write_weights(folder_.path(), random_weights(tiny_config("llama")));
  }

  void write(const std::string& name, const std::string& text) {
    std::ofstream(folder_.path() / name, std::ios::binary) << text;
  }

  // The code that loading ends with; the text stays in text_.
  std::string code_of_load(const std::string& path, uint64_t max_bytes = 1 << 20) {
    std::string code = "accepted";
    const uint64_t allocated = io::test_support::bytes_allocated_by([&] {
      try {
        AutoModelForCausalLM::from_pretrained(path);
      } catch (const Error& error) {
        code = error.code();
        text_ = error.what();
      }
    });
    if (code != "accepted") {
      EXPECT_LT(allocated, max_bytes) << text_;
      EXPECT_LT(text_.size(), 5000);  // differences are listed up to a limit
    }
    return code;
  }

  // Refuses `config` with that code and a text that names config.json and `expected`.
  void refuses(const std::string& config, const std::string& code, const std::string& expected,
               uint64_t max_bytes = 1 << 20) {
    write("config.json", config);
    EXPECT_EQ(code_of_load(folder_.path().string(), max_bytes), code) << config.substr(0, 200);
    EXPECT_THAT(text_, HasSubstr("/config.json"));
    EXPECT_THAT(text_, HasSubstr(expected));
  }

  // tiny_config with one more member, as text: what a JSON library would not write.
  static std::string with(const std::string& member) {
    json config = tiny_config("llama");
    config.erase(member.substr(1, member.find('"', 1) - 1));
    std::string text = config.dump();
    text.back() = ',';
    return text + member + "}";
  }

  testing::TempFolder folder_;
  std::string text_;
};

TEST_F(HostileConfig, RefusesNumbersThatAreOutOfRange) {
  for (const char* key :
       {"hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
        "num_key_value_heads", "head_dim", "vocab_size", "max_position_embeddings"}) {
    const std::string name = "\"" + std::string(key) + "\":";
    for (const char* value :
         {"0", "-1", "-64", "9223372036854775807", "9223372036854775808", "18446744073709551616",
          "1e18", "1e308", "2.5", "\"64\"", "[64]", "{}", "true"}) {
      refuses(with(name + value), "models.config.value", "`: " + std::string(key) + ": expected");
    }
    refuses(with(name + "1e999"), "models.config.json", "`: at byte ");
    refuses(with(name + "-1e999"), "models.config.json", "`: at byte ");
    refuses(with(name + "NaN"), "models.config.json", "`: at byte ");
  }
  for (const char* value : {"0", "-1", "1e300", "\"x\"", "[]"}) {
    refuses(with(std::string("\"rope_theta\":") + value), "models.config.value", "rope_theta: ");
    if (std::string(value) != "0") {
      refuses(with(std::string("\"rms_norm_eps\":") + value), "models.config.value",
              "rms_norm_eps: expected a number in [0, 1]");
    }
  }
}

TEST_F(HostileConfig, RefusesWhatCannotBeComputedOrIsNotKnown) {
  refuses(with(R"("head_dim":2,"rope_parameters":{"rope_type":"dynamic","factor":2.0,)"
               R"("rope_theta":10000.0})"),
          "models.config.value",
          "head_dim: expected an even number of rotated dimensions, 4 or more");
  refuses(with(R"("model_type":"llamb")"), "models.auto_model.model-type",
          "model_type: expected one of `llama`");
}

TEST_F(HostileConfig, LoopsOfLinksAreNamed) {
  for (const char* name : {"config.json", "generation_config.json"}) {
    fs::remove(folder_.path() / name);
    fs::create_symlink(name, folder_.path() / name);
  }
  EXPECT_EQ(code_of_load(folder_.path().string()), "core.file.status");
  EXPECT_THAT(text_, HasSubstr("/config.json"));
  EXPECT_EQ(code_of_load((folder_.path() / "config.json").string()), "core.file.status");
}

TEST_F(HostileConfig, RefusesKeysThatRepeatAndTextsThatAreNoJson) {
  refuses(R"({"hidden_size":32,"hidden_size":64})", "models.config.duplicate-key",
          "at byte 31: expected unique keys, got `hidden_size` twice");
  refuses(R"({"rope_parameters":{"factor":1,"factor":2}})", "models.config.duplicate-key",
          "got `factor` twice");
  for (const std::string text : {"", "{", "\xEF\xBB\xBF{}", "{} {}", "{\"a\":\"\xff\"}", "nul",
                                 "{\"model_type\":\"\\ud800\"}"}) {
    refuses(text, "models.config.json", "`: at byte ");
  }
  refuses(std::string("{}\0{}", 5), "models.config.json", "`: at byte 2: ");
  for (const char* text : {"[]", "1", "null", "\"text\""}) {
    refuses(text, "models.config.not-an-object", "expected a JSON object, got");
  }
}

TEST_F(HostileConfig, RefusesNestingAndSizesBeforeATreeStands) {
  for (const size_t depth : {10'000, 100'000}) {
    refuses(with("\"x\":" + std::string(depth, '[') + std::string(depth, ']')),
            "models.config.json-limits", "expected at most 64 levels of nesting");
    std::string objects;
    for (size_t i = 0; i < depth; ++i) {
      objects += "{\"a\":";
    }
    refuses(objects, "models.config.json-limits", "expected at most 64 levels of nesting");
  }
  refuses(std::string(11 << 20, ' '), "models.config.json-limits",
          "at byte 0: expected at most 10485760 bytes of JSON");
  fs::resize_file(folder_.path() / "config.json", uint64_t{1} << 40);  // sparse
  EXPECT_EQ(code_of_load(folder_.path().string()), "models.config.json-limits");
}

TEST_F(HostileConfig, RefusesWrongTypesAndUnknownNames) {
  refuses(with(R"("tie_word_embeddings":"yes")"), "models.config.value", "tie_word_embeddings: ");
  refuses(with(R"("hidden_act":5)"), "models.config.value", "hidden_act: expected a string");
  refuses(with(R"("hidden_act":"swoosh")"), "models.config.activation",
          "`: hidden_act: expected one of");
  refuses(with(R"("rope_scaling":[])"), "models.config.not-an-object",
          "config.json#rope_scaling`: expected a JSON object");
  refuses(with(R"("rope_scaling":{"type":"spiral"})"), "models.config.rope-type",
          "config.json#rope_scaling`: rope_type: expected one of");
  refuses(with("\"rope_scaling\":{\"type\":\"" + std::string(100'000, 'x') + "\"}"),
          "models.config.rope-type", "…`", 4 << 20);
  refuses(with(R"("eos_token_id":[1,[2]])"), "models.config.value", "eos_token_id: expected");
  refuses(with(R"("model_type":7)"), "models.config.value", "model_type: expected a string");
  refuses(with(R"("torch_dtype":"int4")"), "models.config.value", "torch_dtype: expected one of");
  refuses(with(R"("quantization_config":{})"), "models.config.quantized", "quantization_config: ");
}

// A config's sizes reach no allocation: the weights are listed first, without memory.
TEST_F(HostileConfig, TakesNoMemoryForTheModelThatAConfigClaims) {
  json config = tiny_config("llama");
  config["vocab_size"] = 1 << 24;
  config["hidden_size"] = 1 << 20;
  config["intermediate_size"] = 1 << 22;
  config["max_position_embeddings"] = 1 << 30;
  write("config.json", config.dump());
  EXPECT_EQ(code_of_load(folder_.path().string()), "models.weights.mismatch");
  EXPECT_THAT(text_, HasSubstr("model.embed_tokens.weight: expected shape [16777216, 1048576] = "
                               "[vocab_size, hidden_size], got [32, 32]"));
  config = tiny_config("llama");
  config["num_hidden_layers"] = 1024;  // modules without weights, some kilobytes a layer
  write("config.json", config.dump());
  EXPECT_EQ(code_of_load(folder_.path().string(), 64 << 20), "models.weights.mismatch");
  EXPECT_THAT(text_, HasSubstr("missing: model.layers.2."));
}

TEST_F(HostileConfig, SaysThatCodeWhichAFileNamesIsIgnoredAndLoadsNone) {
  for (const char* member :
       {R"("auto_map":{"AutoModelForCausalLM":"modeling_evil.Model"})",
        R"("trust_remote_code":true)", R"("_attn_implementation_internal":"evil/attention")",
        R"("_attn_implementation":"evil/attention@main")",
        R"("attn_implementation":"evil/attention")",
        R"("kernel_config":{"RMSNorm":"evil/norm:Norm"})", R"("use_kernels":true)",
        R"("custom_pipelines":{"x":{"impl":"evil.py"}})"}) {
    write("config.json", with(member));
    write("modeling_evil.py", "raise SystemExit");
    const std::string key = std::string(member).substr(1, std::string(member).find('"', 1) - 1);
    ::testing::internal::CaptureStderr();
    const auto model = AutoModelForCausalLM::from_pretrained(folder_.path().string());
    EXPECT_THAT(::testing::internal::GetCapturedStderr(),
                HasSubstr("config.json`: `" + key +
                          "` is ignored: a config cannot choose code or kernels"));
    // No code file of the folder was opened, and no foreign library is in the process.
    std::ifstream maps("/proc/self/maps");
    const std::string mapped{std::istreambuf_iterator<char>(maps), {}};
    EXPECT_THAT(mapped, Not(HasSubstr("evil")));
    EXPECT_THAT(mapped, Not(HasSubstr("libpython")));
  }
}

TEST_F(HostileConfig, RefusesShardsOutsideTheFolderMissingOrInTwoPlaces) {
  write("config.json", tiny_config("llama").dump());
  fs::rename(folder_.path() / "model.safetensors", folder_.path() / "a.safetensors");
  const auto refuses_shard = [&](const std::string& shard, const std::string& expected) {
    write("model.safetensors.index.json",
          R"({"weight_map":{"model.norm.weight":")" + shard + "\"}}");
    EXPECT_EQ(code_of_load(folder_.path().string()), "io.checkpoint.index") << shard;
    EXPECT_THAT(text_, HasSubstr("/model.safetensors.index.json`: weight_map: " + expected));
    EXPECT_THAT(text_, Not(HasSubstr("root:")));
  };
  const std::string plain = "`model.norm.weight`: expected a file name in this folder, got ";
  refuses_shard("../../etc/passwd", plain + "\"../../etc/passwd\"");
  refuses_shard("/etc/passwd", plain + "\"/etc/passwd\"");
  refuses_shard("..", plain);
  refuses_shard("sub/a.safetensors", plain);
  refuses_shard("none.safetensors", "expected shard `none.safetensors` beside the index, got none");
  fs::create_symlink("/nonexistent/passwd", folder_.path() / "dangling.safetensors");
  refuses_shard("dangling.safetensors", "expected shard `dangling.safetensors` beside the index");

  fs::create_symlink("/etc/passwd", folder_.path() / "link.safetensors");
  write("model.safetensors.index.json", R"({"weight_map":{"x":"link.safetensors"}})");
  EXPECT_EQ(code_of_load(folder_.path().string()), "io.safetensors.header-length");
  EXPECT_THAT(text_, HasSubstr("/link.safetensors`: at offset 0: header length: "));
  EXPECT_THAT(text_, Not(HasSubstr("root:")));

  fs::copy(folder_.path() / "a.safetensors", folder_.path() / "b.safetensors");
  write("model.safetensors.index.json",
        R"({"weight_map":{"model.norm.weight":"a.safetensors","x":"b.safetensors"}})");
  EXPECT_EQ(code_of_load(folder_.path().string()), "io.checkpoint.index");
  EXPECT_THAT(text_, HasSubstr("`lm_head.weight` stands in a.safetensors and in b.safetensors"));
}

TEST_F(HostileConfig, NamesTheTensorOfATypeThatNoWeightHas) {
  write("config.json", tiny_config("llama").dump());
  const auto weights = random_weights(tiny_config("llama"));
  std::vector<io::TensorView> views;
  const std::vector<std::byte> zeros(1 << 16);
  for (const auto& [key, tensor] : weights) {
    const size_t bytes = key == "model.norm.weight" ? tensor.numel() * 8 : tensor.nbytes();
    views.push_back({key, key == "model.norm.weight" ? io::ScalarType::kI64 : io::ScalarType::kF32,
                     tensor.sizes().vec(), std::span(zeros).first(bytes)});
  }
  io::write_safetensors(folder_.path() / "model.safetensors", views);
  EXPECT_EQ(code_of_load(folder_.path().string()), "models.weights.dtype");
  EXPECT_THAT(text_, ::testing::ContainsRegex("/model.safetensors`: at offset [0-9]+: tensor "
                                              "`model.norm.weight`: expected dtype .*, got I64"));
}

}  // namespace
}  // namespace graft::models
