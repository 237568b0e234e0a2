// Any bytes as config.json: every number that is taken lies in its range, so that products of two of them
// are far from overflow before anything is allocated.
#include <string_view>

#include "graft/core/error.h"
#include "graft/io/json.h"
#include "graft/models/decoder_config.h"

namespace {

using namespace graft::models;

void require(bool holds) {
  if (!holds) {
    __builtin_trap();
  }
}

bool lies_in(int64_t value, const IntRange& range) {
  return value >= range.min && value <= range.max;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  try {
    const ConfigReader reader(graft::io::parse_json(text, "fuzz", "config.json"), "config.json");
    auto config = read_decoder_config(reader, {});
    read_layer_types(reader, config.num_layers, [](int64_t) { return false; });
    config.sliding_window = read_sliding_window(reader, 0);
    read_upper_window(reader, config);
    read_softcap(reader, "attn_logit_softcapping", 0.0);
    refuse_bidirectional(reader);
    require(lies_in(config.hidden_size, kWidthRange) && lies_in(config.num_layers, kLayersRange));
    require(lies_in(config.num_heads, kHeadsRange) && lies_in(config.head_dim, kHeadDimRange));
    require(lies_in(config.intermediate_size, kInnerWidthRange));
    require(config.num_heads % config.num_kv_heads == 0);
    require(config.rms_norm_eps >= 0.0 && config.rope.theta > 0.0);
  } catch (const graft::Error&) {
  }
  return 0;
}
