#include "graft/models/weights.h"

#include <array>
#include <map>
#include <set>
#include <string_view>
#include <utility>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "graft/core/error.h"
#include "graft/models/decoder.h"

namespace graft::models {

namespace {

constexpr size_t kMaxListed = 20;
constexpr std::string_view kHeadKey = "lm_head.weight";

// Which config keys a weight's shape comes from; `{0}.weight` is the end of its name.
constexpr std::array<std::pair<std::string_view, std::string_view>, 12> kShapeKeys = {{
    {"embed_tokens.weight", "[vocab_size, hidden_size]"},
    {"lm_head.weight", "[vocab_size, hidden_size]"},
    {"q_proj.weight", "[num_attention_heads * head_dim, hidden_size]"},
    {"k_proj.weight", "[num_key_value_heads * head_dim, hidden_size]"},
    {"v_proj.weight", "[num_key_value_heads * head_dim, hidden_size]"},
    {"o_proj.weight", "[hidden_size, num_attention_heads * head_dim]"},
    {"gate_proj.weight", "[intermediate_size, hidden_size]"},
    {"gate_up_proj.weight", "[2 * intermediate_size, hidden_size]"},
    {"up_proj.weight", "[intermediate_size, hidden_size]"},
    {"down_proj.weight", "[hidden_size, intermediate_size]"},
    {"layernorm.weight", "[hidden_size]"},
    {"model.norm.weight", "[hidden_size]"},
}};

std::string_view shape_keys(std::string_view key) {
  for (const auto& [suffix, keys] : kShapeKeys) {
    if (key.ends_with(suffix)) {
      return keys;
    }
  }
  return "the config";
}

// Tables that old checkpoints stored beside their weights; they are computed, not loaded.
bool is_computed(std::string_view key) { return key.ends_with("rotary_emb.inv_freq"); }

class MismatchReport {
 public:
  void missing(const std::string& key) { add(missing_, "missing: ", key); }
  void surplus(const std::string& key) { add(surplus_, "not in the model: ", key); }
  void shape(const nn::WeightSlot& slot, const std::vector<int64_t>& found) {
    add(shapes_, "",
        fmt::format("{}: expected shape {} = {}, got {}", slot.key, slot.shape,
                    shape_keys(slot.key), found));
  }
  void throw_if_any(const std::string& where) const {
    const size_t count = missing_.count + surplus_.count + shapes_.count;
    if (count == 0) {
      return;
    }
    std::string text = fmt::format(
        "`{}`: expected the weights that the config describes, got {} "
        "differences",
        where, count);
    for (const List* list : {&shapes_, &missing_, &surplus_}) {
      text += list->text;
      if (list->count > kMaxListed) {
        text += fmt::format("\n  … and {} more of that kind", list->count - kMaxListed);
      }
    }
    throw FormatError("models.weights", "mismatch", text,
                      "config.json and the weight files must be of one model");
  }

 private:
  struct List {
    std::string text;
    size_t count = 0;
  };
  static void add(List& list, std::string_view prefix, const std::string& line) {
    if (++list.count <= kMaxListed) {
      list.text += fmt::format("\n  {}{}", prefix, line);
    }
  }
  List missing_;
  List surplus_;
  List shapes_;
};

// The weights to fill; throws when file and model disagree.
std::vector<nn::WeightSlot> match(DecoderForCausalLM& model, const WeightSource& source) {
  std::map<std::string, std::vector<int64_t>> stored;
  for (StoredTensor& tensor : source.list()) {
    stored.emplace(std::move(tensor.key), std::move(tensor.shape));
  }
  MismatchReport report;
  std::vector<nn::WeightSlot> wanted;
  std::set<std::string> known;
  for (nn::WeightSlot& slot : nn::list_weights(model)) {
    known.insert(slot.key);
    if (model.tied() && slot.key == kHeadKey) {
      continue;
    }
    const auto found = stored.find(slot.key);
    if (found == stored.end()) {
      report.missing(slot.key);
    } else if (found->second != slot.shape) {
      report.shape(slot, found->second);
    }
    wanted.push_back(std::move(slot));
  }
  for (const auto& [key, shape] : stored) {
    if (!known.contains(key) && !is_computed(key)) {
      report.surplus(key);
    }
  }
  report.throw_if_any(source.where());
  return wanted;
}

}  // namespace

namespace {

// Whether the weight stays in its blocks, and is in its place now.
bool assign_packed(const nn::WeightSlot& slot, WeightSource& source, at::Device device) {
  if (!slot.owner->takes_packed(slot.name)) {
    return false;
  }
  auto packed = source.load_packed(slot.key, device);
  if (packed == nullptr) {
    return false;
  }
  slot.owner->assign_packed(slot.name, std::move(packed));
  return true;
}

void assign_values(const nn::WeightSlot& slot, WeightSource& source, const WeightOptions& options) {
  at::Tensor value = source.load(slot.key, options.dtype, options.device);
  if (options.trainable) {
    value = value.clone().set_requires_grad(true);
  }
  slot.owner->assign_weight(slot.name, std::move(value));
}

}  // namespace

void load_weights(DecoderForCausalLM& model, WeightSource& source, const WeightOptions& options) {
  const std::vector<nn::WeightSlot> wanted = match(model, source);
  int64_t done = 0;
  for (const nn::WeightSlot& slot : wanted) {
    if (!options.packed || !assign_packed(slot, source, options.device)) {
      assign_values(slot, source, options);
    }
    if (options.progress) {
      options.progress(++done, static_cast<int64_t>(wanted.size()));
    }
  }
}

}  // namespace graft::models
