// What the attention of every family does between its projections: heads, rotation, cache.

#include "graft/models/decoder.h"

namespace graft::models {

at::Tensor split_heads(const at::Tensor& x, int64_t head_dim) {
  return x.view({x.size(0), x.size(1), x.size(2) / head_dim, head_dim});
}

ProjectedHeads project_heads(const at::Tensor& x, const nn::Linear& q_proj,
                             const nn::Linear& k_proj, const nn::Linear& v_proj, int64_t head_dim) {
  const auto projected = nn::join_forward(x, {&q_proj, &k_proj, &v_proj});
  return {split_heads(projected[0], head_dim), split_heads(projected[1], head_dim),
          split_heads(projected[2], head_dim)};
}

namespace {

// query [B, S, Hq, D], key and value [B, S, Hkv, D], all rotated.
at::Tensor attend_with_cache(const AttentionPlace& place, const at::Tensor& query,
                             const at::Tensor& key, const at::Tensor& value,
                             const nn::AttentionMask& mask, const ForwardContext& context) {
  at::Tensor keys = key.transpose(1, 2);
  at::Tensor values = value.transpose(1, 2);
  if (context.cache != nullptr) {
    std::tie(keys, values) = context.cache->update(place.layer_idx, keys, values);
  }
  const int64_t length = query.size(1);
  if (!context.last_query_only || length == 1) {
    return nn::attend(place.kernel, query, keys, values, mask, place.options);
  }
  // The last query sees every key, so a mask that is only causal falls away.
  nn::AttentionMask last = mask;
  last.causal = false;
  if (mask.additive.defined()) {
    last.additive = mask.additive.narrow(2, length - 1, 1);
  }
  return nn::attend(place.kernel, query.narrow(1, length - 1, 1), keys, values, last,
                    place.options);
}

// One token a row whose place the device knows.
at::Tensor attend_in_step(const AttentionPlace& place, const ProjectedHeads& heads,
                          const layers::RotaryTables& tables, const nn::AttentionMask& mask,
                          const ForwardContext& context) {
  const auto [keys, values] = context.cache->storage(place.layer_idx);
  at::Tensor query = heads.query;
  if (place.rotary != nullptr) {
    query = (*place.rotary)
                ->append_forward(heads.query, heads.key, heads.value, tables, context.steps->place,
                                 keys, values);
  } else {
    layers::append_to_cache(heads.key, heads.value, context.steps->place, keys, values);
  }
  return nn::attend(place.kernel, query, keys, values, mask, place.options);
}

}  // namespace

at::Tensor rotate_and_attend(const AttentionPlace& place, const ProjectedHeads& heads,
                             const layers::RotaryTables& tables, const nn::AttentionMask& mask,
                             const ForwardContext& context) {
  if (context.steps != nullptr) {
    return attend_in_step(place, heads, tables, mask, context);
  }
  if (place.rotary == nullptr) {
    return attend_with_cache(place, heads.query, heads.key, heads.value, mask, context);
  }
  const auto [query, key] = (*place.rotary)->forward(heads.query, heads.key, tables);
  return attend_with_cache(place, query, key, heads.value, mask, context);
}

}  // namespace graft::models
