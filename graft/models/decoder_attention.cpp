// What the attention of every family does between its projections: heads, norms, rotation, cache.

#include "graft/layers/gradient.h"
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

// The kernel that norms and rotates at once, where it may be called. Without gradients: where one is wanted the norms and
// the rotation work one after another.
const layers::QkNormRotary::Kernel* joined_kernel(const AttentionPlace& place,
                                                  const ProjectedHeads& heads) {
  if (place.norms == nullptr || place.rotary == nullptr ||
      !place.norms->joined.module().swapped() ||
      layers::needs_gradient({&heads.query, &heads.key, &heads.value, &place.norms->query.weight,
                              &place.norms->key.weight})) {
    return nullptr;
  }
  return place.norms->joined.operator->();
}

layers::QkNormRotary::Norms weights_of(const HeadNorms& norms) {
  return {norms.query.weight, norms.key.weight, norms.query.eps()};
}

ProjectedHeads normed(const AttentionPlace& place, const ProjectedHeads& heads) {
  if (place.norms == nullptr) {
    return heads;
  }
  return {place.norms->query.forward(heads.query), place.norms->key.forward(heads.key),
          heads.value};
}

// One token a row whose place the device knows.
at::Tensor attend_in_step(const AttentionPlace& place, const ProjectedHeads& heads,
                          const layers::RotaryTables& tables, const nn::AttentionMask& mask,
                          const ForwardContext& context) {
  const auto [keys, values] = context.cache->storage(place.layer_idx);
  const layers::StepPlace& step = context.steps->place;
  at::Tensor query;
  if (const auto* kernel = joined_kernel(place, heads)) {
    query = kernel->append_forward(heads.query, heads.key, heads.value, weights_of(*place.norms),
                                   tables, step, keys, values);
  } else {
    const ProjectedHeads own = normed(place, heads);
    query = own.query;
    if (place.rotary != nullptr) {
      query = (*place.rotary)
                  ->append_forward(own.query, own.key, own.value, tables, step, keys, values);
    } else {
      layers::append_to_cache(own.key, own.value, step, keys, values);
    }
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
  if (const auto* kernel = joined_kernel(place, heads)) {
    const auto [query, key] =
        kernel->forward(heads.query, heads.key, weights_of(*place.norms), tables);
    return attend_with_cache(place, query, key, heads.value, mask, context);
  }
  const ProjectedHeads own = normed(place, heads);
  if (place.rotary == nullptr) {
    return attend_with_cache(place, own.query, own.key, own.value, mask, context);
  }
  const auto [query, key] = (*place.rotary)->forward(own.query, own.key, tables);
  return attend_with_cache(place, query, key, own.value, mask, context);
}

}  // namespace graft::models
