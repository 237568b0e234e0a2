// For tests: a language model made of tables (tools/make_generation_test_data.py holds the same in
// Python). Logits depend on the last token, on the sum of all tokens and on the position; the
// tokens before the last one are read from a real cache, so that a cache row, mask or position in
// the wrong place changes the result.
#pragma once

#include <filesystem>
#include <fstream>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "graft/generation/generate.h"
#include "graft/io/safetensors.h"
#include "graft/nn/contiguous_kv_cache.h"
#include "graft/text/tokenizer.h"

namespace graft::generation {

inline std::filesystem::path test_data() {
  return std::filesystem::path(GRAFT_TEST_DATA) / "generation";
}

// A copy of a tensor of a safetensors file (float32 or int64).
inline at::Tensor read_tensor(const io::SafetensorsFile& file, const std::string& name) {
  const io::TensorView* view = file.find(name);
  const auto dtype = view->dtype == io::ScalarType::kF32 ? at::kFloat : at::kLong;
  return at::from_blob(const_cast<std::byte*>(view->bytes.data()), view->shape, dtype).clone();
}

class TableModel final : public models::CausalLM {
 public:
  TableModel() {
    const auto file = io::SafetensorsFile::open(test_data() / "table_model.safetensors");
    tables_ = read_tensor(file, "tables");
    info_.vocab_size = tables_.size(1);
    info_.max_position_embeddings = 512;
    info_.pad_token_id = 1;
    info_.bos_token_id = 2;
    info_.eos_token_ids = {3};
  }

  at::Tensor forward(const models::ForwardInput& input) override {
    ++num_forwards;
    masks_seen += input.attention_mask.defined() ? 1 : 0;
    const int64_t vocab_size = info_.vocab_size;
    at::Tensor all_ids = input.input_ids;
    if (input.cache != nullptr) {
      const at::Tensor kept = input.input_ids.to(at::kFloat).unsqueeze(1).unsqueeze(-1);
      all_ids = input.cache->update(0, kept, kept).first.squeeze(-1).squeeze(1).to(at::kLong);
      input.cache->advance(input.input_ids.size(1));
    }
    const at::Tensor mask =
        input.attention_mask.defined() ? input.attention_mask : at::ones_like(all_ids);
    const at::Tensor position = input.position_ids.defined()
                                    ? input.position_ids.select(1, -1)
                                    : at::full({all_ids.size(0)}, all_ids.size(1) - 1, at::kLong);
    const at::Tensor total = (all_ids * mask).sum(-1).remainder(vocab_size);
    at::Tensor logits = tables_[0].index_select(0, input.input_ids.select(1, -1)) +
                        tables_[1].index_select(0, total) +
                        tables_[2].index_select(0, position.remainder(vocab_size));
    if (after_forward) {
      after_forward(logits);
    }
    return logits.unsqueeze(1);
  }

  std::unique_ptr<nn::KvCache> make_cache(int64_t batch_size, int64_t max_length) const override {
    if (max_length == 0) {
      return std::make_unique<nn::DynamicKvCache>(1);
    }
    return std::make_unique<nn::StaticKvCache>(nn::KvCacheShape{1, batch_size, 1, 1}, max_length,
                                               at::TensorOptions().dtype(at::kFloat));
  }

  void set_attn_implementation(const std::string&) override {}
  const std::string& attn_implementation() const override { return attention_; }
  const models::CausalLMInfo& info() const override { return info_; }
  at::Device device() const override { return at::kCPU; }
  at::ScalarType dtype() const override { return at::kFloat; }

  std::string attention_ = "none";
  models::CausalLMInfo info_;
  at::Tensor tables_;  // [3, V, V]: by last token, by sum of all tokens, by position
  int64_t num_forwards = 0;
  int64_t masks_seen = 0;
  std::function<void(at::Tensor& logits)> after_forward;
};

inline const nlohmann::json& test_cases() {
  static const nlohmann::json cases =
      nlohmann::json::parse(std::ifstream(test_data() / "cases.json"));
  return cases;
}

inline const text::Tokenizer& test_tokenizer() {
  static const auto tokenizer = text::Tokenizer::from_file(test_data() / "tokenizer.json");
  return tokenizer;
}

// The options of a case in cases.json, by their names in transformers.
inline GenerationConfig config_of(const nlohmann::json& test_case) {
  GenerationConfig config;
  for (const auto& [name, value] : test_case["options"].items()) {
    if (name == "eos_token_id" && value.is_null()) {
      config.ignore_eos = true;
    } else {
      config.set(name, value);
    }
  }
  return config;
}

}  // namespace graft::generation
