#include <map>
#include <span>
#include <utility>

#include <ATen/Parallel.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include "graft/core/error.h"
#include "graft/io/dequantize.h"
#include "graft/io/gguf.h"
#include "graft/layers/packed_weight.h"
#include "graft/models/checkpoint_weights.h"
#include "graft/models/decoder_config.h"
#include "graft/models/gguf_config.h"
#include "graft/models/gguf_names.h"

namespace graft::models {

namespace {

// Rows that one task of the thread pool unpacks: enough work to be worth a task.
constexpr int64_t kElementsPerTask = 1 << 16;

// Unpacks a whole tensor into rows of T, rows spread over the threads.
template <typename T>
void unpack(const io::GgufTensor& stored, T* out) {
  const int64_t row_elements = stored.shape.back();
  const int64_t num_rows = stored.num_elements() / row_elements;
  const size_t row_bytes = stored.bytes.size() / static_cast<size_t>(num_rows);
  at::parallel_for(
      0, num_rows, kElementsPerTask / row_elements + 1, [&](int64_t begin, int64_t end) {
        const auto count = static_cast<size_t>(end - begin);
        io::dequantize(
            stored.type,
            stored.bytes.subspan(static_cast<size_t>(begin) * row_bytes, count * row_bytes),
            std::span<T>(out + begin * row_elements, count * static_cast<size_t>(row_elements)));
      });
}

at::Tensor unpacked(const io::GgufTensor& stored, at::ScalarType dtype) {
  at::Tensor out = at::empty(stored.shape, at::TensorOptions().dtype(dtype));
  if (dtype == at::kBFloat16) {
    unpack(stored, reinterpret_cast<uint16_t*>(out.data_ptr<at::BFloat16>()));
  } else {
    unpack(stored, out.data_ptr<float>());
  }
  return out;
}

// Rows from llama.cpp's order (halves of a head interleaved) to transformers' (one after the
// other).
at::Tensor unpermuted(const at::Tensor& rows, int64_t num_heads) {
  const int64_t half = rows.size(0) / num_heads / 2;
  return rows.view({num_heads, half, 2, -1}).transpose(1, 2).reshape(rows.sizes());
}

nlohmann::json scalar_metadata(const io::GgufFile& file) {
  nlohmann::json object = nlohmann::json::object();
  for (const auto& [key, value] : file.metadata()) {
    std::visit(
        [&object, &name = key](const auto& item) {
          if constexpr (!std::is_same_v<std::decay_t<decltype(item)>, io::GgufArray>) {
            object[name] = item;
          }
        },
        value);
  }
  return object;
}

// File, offset and name of a tensor, as errors say them.
std::string place_of(const io::GgufFile& file, const io::GgufTensor& tensor) {
  return fmt::format("`{}`: at offset {}: tensor `{}`", file.path().string(),
                     tensor.bytes.data() - file.file()->bytes().data(), tensor.name);
}

std::vector<double> rope_factors(const io::GgufFile& file, const char* name) {
  const io::GgufTensor* tensor = file.find(name);
  if (tensor == nullptr) {
    return {};
  }
  if (tensor->num_elements() > kHeadDimRange.max / 2) {  // one for each pair of a head's dimensions
    throw FormatError(
        "models.gguf", "rope-factors",
        fmt::format("{}: expected at most {} factors, got {}", place_of(file, *tensor),
                    kHeadDimRange.max / 2, tensor->num_elements()));
  }
  std::vector<float> values(static_cast<size_t>(tensor->num_elements()));
  io::dequantize(tensor->type, tensor->bytes, std::span<float>(values));
  return {values.begin(), values.end()};
}

class GgufWeights final : public WeightSource {
 public:
  GgufWeights(io::GgufFile file, const GgufArchitecture& architecture, int64_t num_heads,
              int64_t num_kv_heads)
      : file_(std::move(file)), num_heads_(num_heads), num_kv_heads_(num_kv_heads) {
    for (const io::GgufTensor& tensor : file_.tensors()) {
      if (is_gguf_rope_tensor(tensor.name)) {
        continue;
      }
      auto target = map_gguf_tensor(architecture, tensor.name);
      // An unknown tensor keeps its name and shows up as surplus in the loader's report.
      std::string key = target ? target->key : tensor.name;
      stored_.emplace(std::move(key), Stored{&tensor, target.value_or(GgufTarget{})});
    }
  }

  std::vector<StoredTensor> list() const override {
    std::vector<StoredTensor> tensors;
    for (const auto& [key, stored] : stored_) {
      tensors.push_back({key, stored.tensor->shape});
    }
    return tensors;
  }

  at::Tensor load(const std::string& key, at::ScalarType dtype, at::Device device) override {
    const Stored& stored = stored_.at(key);
    if (device.is_meta()) {  // shape and dtype alone
      return at::empty(stored.tensor->shape, at::TensorOptions().dtype(dtype).device(device));
    }
    const bool exact = dtype == at::kFloat || (dtype == at::kBFloat16 && !stored.target.shifted);
    at::Tensor value = unpacked(*stored.tensor, exact ? dtype : at::kFloat);
    file_.file()->release(stored.tensor->bytes);
    if (stored.target.permuted != GgufTarget::Heads::kNone) {
      const bool query = stored.target.permuted == GgufTarget::Heads::kQuery;
      value = unpermuted(value, query ? num_heads_ : num_kv_heads_);
    }
    if (stored.target.shifted) {
      value = value - 1.0;
    }
    return value.to(at::TensorOptions().dtype(dtype).device(device));
  }

  std::shared_ptr<const layers::PackedWeight> load_packed(const std::string& key,
                                                          at::Device device) override {
    const Stored& stored = stored_.at(key);
    const io::GgufTensor& tensor = *stored.tensor;
    if (tensor.shape.size() != 2 || stored.target.shifted ||
        !layers::PackedWeight::is_packed(tensor.type)) {
      return nullptr;
    }
    const int64_t heads = stored.target.permuted == GgufTarget::Heads::kNone    ? 0
                          : stored.target.permuted == GgufTarget::Heads::kQuery ? num_heads_
                                                                                : num_kv_heads_;
    return std::make_shared<layers::PackedWeight>(layers::PackedWeight::Source{
        .type = tensor.type,
        .rows = tensor.shape[0],
        .columns = tensor.shape[1],
        .bytes = tensor.bytes,
        .owner = file_.file(),
        .release = [file = file_.file(), bytes = tensor.bytes] { file->release(bytes); },
        .device = device,
        .interleaved_heads = heads});
  }

  at::ScalarType stored_dtype() const override { return at::kFloat; }
  std::string where() const override { return file_.path().string(); }

 private:
  struct Stored {
    const io::GgufTensor* tensor;
    GgufTarget target;
  };
  io::GgufFile file_;
  int64_t num_heads_;
  int64_t num_kv_heads_;
  std::map<std::string, Stored> stored_;
};

}  // namespace

GgufModel open_gguf(const std::filesystem::path& path) {
  io::GgufFile file = io::GgufFile::open(path);
  const ConfigReader metadata(
      scalar_metadata(file), path.string(), [&file](const std::string& key) {
        return file.has(key) ? fmt::format("at offset {}: ", file.offset_of(key)) : "";
      });
  const GgufArchitecture& architecture =
      *metadata.parsed("general.architecture", "",
                       [](const std::string& name) { return &find_gguf_architecture(name); });
  const io::GgufTensor* embedding = file.find("token_embd.weight");
  if (embedding == nullptr) {
    throw FormatError("models.gguf", "embedding",
                      fmt::format("`{}`: tensor `token_embd.weight`: expected a matrix, got none",
                                  path.string()));
  }
  if (embedding->shape.size() != 2) {
    throw FormatError("models.gguf", "embedding",
                      fmt::format("{}: expected a matrix, got shape {}", place_of(file, *embedding),
                                  embedding->shape));
  }
  GgufModel model;
  model.config = gguf_config(architecture, metadata,
                             {.has_output = file.find("output.weight") != nullptr,
                              .vocab_size = embedding->shape[0],
                              .rope_freqs = rope_factors(file, "rope_freqs.weight"),
                              .rope_factors_short = rope_factors(file, "rope_factors_short.weight"),
                              .rope_factors_long = rope_factors(file, "rope_factors_long.weight")});
  const auto num_heads = model.config.at("num_attention_heads").get<int64_t>();
  const auto num_kv_heads = model.config.at("num_key_value_heads").get<int64_t>();
  model.weights =
      std::make_unique<GgufWeights>(std::move(file), architecture, num_heads, num_kv_heads);
  return model;
}

}  // namespace graft::models
