// For tests: the checkpoints of tests/data/models and what transformers computes with them
// (tests/data/models/README.md names the keys).
#pragma once

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include <ATen/ATen.h>

#include "graft/io/safetensors.h"
#include "graft/models/auto_model.h"

namespace graft::models::testing {

// The folders, in the order of their names.
inline std::vector<std::string> reference_folders() {
  std::vector<std::string> folders;
  for (const auto& entry :
       std::filesystem::directory_iterator(std::filesystem::path(GRAFT_TEST_DATA) / "models")) {
    if (entry.is_directory()) {
      folders.push_back(entry.path().filename().string());
    }
  }
  std::sort(folders.begin(), folders.end());
  return folders;
}

class ReferenceModel {
 public:
  explicit ReferenceModel(const std::string& folder)
      : path_(std::filesystem::path(GRAFT_TEST_DATA) / "models" / folder),
        file_(io::SafetensorsFile::open(path_ / "reference.safetensors")) {}

  std::shared_ptr<CausalLM> load(const LoadOptions& options) const {
    return AutoModelForCausalLM::from_pretrained(path_.string(), options);
  }

  bool has(const std::string& key) const { return file_.find(key) != nullptr; }

  // A copy of one recorded tensor.
  at::Tensor operator[](const std::string& key) const {
    const io::TensorView* view = file_.find(key);
    if (view == nullptr) {
      throw std::out_of_range(path_.string() + ": no " + key);
    }
    const auto dtype = view->dtype == io::ScalarType::kF32    ? at::kFloat
                       : view->dtype == io::ScalarType::kBF16 ? at::kBFloat16
                                                              : at::kLong;
    return at::from_blob(const_cast<std::byte*>(view->bytes.data()), view->shape, dtype).clone();
  }

  // Names of the recorded tensors that begin with `prefix`, without it.
  std::vector<std::string> names_under(const std::string& prefix) const {
    std::vector<std::string> names;
    for (const io::TensorView& tensor : file_.tensors()) {
      if (tensor.name.starts_with(prefix)) {
        names.push_back(tensor.name.substr(prefix.size()));
      }
    }
    return names;
  }

 private:
  std::filesystem::path path_;
  io::SafetensorsFile file_;
};

// Whether libtorch sums here in the order of the processor that recorded the references: one layer's
// attention, from recorded inputs through plain ATen, gives the recorded bits. MKL picks its kernels by
// model of processor, so that the instruction set alone does not tell.
inline bool sums_as_recorded() {
  static const bool same = [] {
    const ReferenceModel llama("llama");
    const auto weights = io::SafetensorsFile::open(std::filesystem::path(GRAFT_TEST_DATA) /
                                                   "models" / "llama" / "model.safetensors");
    const auto weight = [&](const std::string& name) {
      const io::TensorView& view = *weights.find("model.layers.0.self_attn." + name + ".weight");
      return at::from_blob(const_cast<std::byte*>(view.bytes.data()), view.shape, at::kFloat)
          .clone();
    };
    const std::string layer = "prefill.layers.0.";
    const at::Tensor x = llama[layer + "input_layernorm"];
    const at::Tensor query = llama[layer + "self_attn.q_rope"],
                     narrow = llama[layer + "self_attn.k_rope"];
    const int64_t length = query.size(2), head_dim = query.size(3), kv_heads = narrow.size(1);
    const auto widen = [&](const at::Tensor& heads) {
      return heads.repeat_interleave(query.size(1) / kv_heads, 1);
    };
    const at::Tensor value =
        at::linear(x, weight("v_proj")).view({-1, length, kv_heads, head_dim}).transpose(1, 2);
    const at::Tensor mask =
        at::full({length, length}, std::numeric_limits<float>::lowest()).triu(1);
    const at::Tensor scores = at::matmul(query, widen(narrow).transpose(2, 3)) *
                                  std::pow(static_cast<double>(head_dim), -0.5) +
                              mask;
    const at::Tensor heads = at::matmul(at::softmax(scores, -1), widen(value)).transpose(1, 2);
    return at::equal(at::linear(heads.reshape(x.sizes()), weight("o_proj")),
                     llama[layer + "self_attn"]);
  }();
  return same;
}

// The largest difference, in units of the last place that the largest expected value has in the
// expected tensor's dtype: 1 means that the largest value is off by its last bit.
inline double units_in_the_last_place(const at::Tensor& got, const at::Tensor& expected) {
  if (!got.sizes().equals(expected.sizes()) || got.scalar_type() != expected.scalar_type()) {
    return std::numeric_limits<double>::infinity();
  }
  const double largest = expected.abs().max().item<double>();
  const double epsilon = expected.scalar_type() == at::kBFloat16 ? std::ldexp(1.0, -7)
                         : expected.scalar_type() == at::kHalf
                             ? std::ldexp(1.0, -10)
                             : double{std::numeric_limits<float>::epsilon()};
  const double difference =
      (got.to(at::kDouble) - expected.to(at::kDouble)).abs().max().item<double>();
  return difference / (std::exp2(std::floor(std::log2(largest))) * epsilon);
}

}  // namespace graft::models::testing
