// Rows of the ops with a norm.
#pragma once

#include <string>

#include "kernels/common/bench_harness.h"

namespace graft_kernels::rotary {

struct NormShape {
  int64_t batch, length, query_heads, key_heads, head_dim;
  int64_t variant = 0;
  bool interleaved = false;
};

inline std::string norm_variant_text(const NormShape& shape) {
  return std::string(shape.interleaved ? "interleaved" : "half_split") +
         (shape.variant == 3 ? ", zero-centered" : "") + ", query and key";
}

inline std::string norm_shape_text(const NormShape& shape) {
  return "B" + std::to_string(shape.batch) + " S" + std::to_string(shape.length) + " " +
         std::to_string(shape.query_heads) + "+" + std::to_string(shape.key_heads) + " heads of " +
         std::to_string(shape.head_dim);
}

// Norms and rotation in one launch, beside our own ops one after another and eager evaluation.
inline void bench_norm(testing::Harness& harness, at::ScalarType dtype, const NormShape& shape) {
  using testing::Package;
  constexpr double kEps = 1e-6;
  const Package& package = Package::for_device("rotary", harness.device());
  const Package& norms = Package::for_device("rms-norm", harness.device());
  const at::TensorOptions options = at::TensorOptions(harness.device()).dtype(dtype);
  const auto heads = [&](int64_t count) {
    return at::randn({shape.batch, shape.length, count, shape.head_dim}, options);
  };
  const at::Tensor query = heads(shape.query_heads), key = heads(shape.key_heads);
  const at::Tensor query_weight = at::randn({shape.head_dim}, options),
                   key_weight = at::randn({shape.head_dim}, options);
  const at::Tensor cos = at::randn({1, shape.length, shape.head_dim}, options),
                   sin = at::randn({1, shape.length, shape.head_dim}, options);
  const at::Tensor query_out = at::empty_like(query), key_out = at::empty_like(key),
                   query_normed = at::empty_like(query), key_normed = at::empty_like(key);
  const auto eager_of = [&](const at::Tensor& x, const at::Tensor& weight) {
    const at::Tensor wide = x.to(at::kFloat);
    const at::Tensor norm = wide * at::rsqrt(wide.pow(2).mean(-1, true) + kEps);
    const at::Tensor normed = shape.variant == 3 ? (norm * (1.0 + weight.to(at::kFloat))).to(dtype)
                                                 : weight * norm.to(dtype);
    const int64_t half = x.size(-1) / 2;
    const at::Tensor turned =
        shape.interleaved
            ? at::stack({-normed.slice(-1, 1, x.size(-1), 2), normed.slice(-1, 0, x.size(-1), 2)},
                        -1)
                  .flatten(-2)
            : at::cat({-normed.narrow(-1, half, half), normed.narrow(-1, 0, half)}, -1);
    return normed * cos.unsqueeze(2) + turned * sin.unsqueeze(2);
  };
  const auto one_after_another = [&] {
    norms("rms_norm_out", query_normed, query, query_weight, kEps, shape.variant);
    norms("rms_norm_out", key_normed, key, key_weight, kEps, shape.variant);
    package("rotary_out", query_out, key_out, query_normed, key_normed, cos, sin, shape.interleaved,
            false);
  };
  testing::Row row;
  row.op = "norm_rotary";
  row.variant = norm_variant_text(shape);
  row.dtype = c10::toString(dtype);
  row.shape = norm_shape_text(shape);
  row.bytes = (2 * (query.numel() + key.numel()) + 2 * cos.numel()) *
              static_cast<int64_t>(query.element_size());
  row.work = [&] {
    package("norm_rotary_out", query_out, key_out, query, key, query_weight, key_weight, cos, sin,
            kEps, shape.variant, shape.interleaved);
  };
  row.peers = {{"rms_norm, rms_norm, rotary", one_after_another}, {"eager", [&] {
                                                                     eager_of(query, query_weight);
                                                                     eager_of(key, key_weight);
                                                                   }}};
  row.difference = [&] {
    one_after_another();
    const at::Tensor query_wanted = query_out.clone(), key_wanted = key_out.clone();
    row.work();
    return testing::is_same_bits(query_out, query_wanted) &&
                   testing::is_same_bits(key_out, key_wanted)
               ? 0.0
               : 1.0;
  };
  row.tolerance = 0;
  harness.run(row);
}

// One token a row into a cache of 4,096 places.
inline void bench_norm_append(testing::Harness& harness, at::ScalarType dtype,
                              const NormShape& shape) {
  using testing::Package;
  constexpr double kEps = 1e-6;
  constexpr int64_t kPlaces = 4096;
  const Package& package = Package::for_device("rotary", harness.device());
  const Package& norms = Package::for_device("rms-norm", harness.device());
  const at::TensorOptions options = at::TensorOptions(harness.device()).dtype(dtype);
  const int64_t batch = shape.batch, head_dim = shape.head_dim;
  const at::Tensor query = at::randn({batch, 1, shape.query_heads, head_dim}, options),
                   key = at::randn({batch, 1, shape.key_heads, head_dim}, options),
                   value = at::randn_like(key), weight = at::randn({head_dim}, options);
  const at::Tensor cos = at::randn({kPlaces, head_dim}, options),
                   sin = at::randn({kPlaces, head_dim}, options);
  const at::Tensor keys = at::zeros({batch, shape.key_heads, kPlaces, head_dim}, options),
                   values = at::zeros_like(keys);
  const at::Tensor lengths = at::full({batch}, 1234, options.dtype(at::kInt)),
                   positions = at::full({batch}, 1233, options.dtype(at::kInt));
  const at::Tensor query_out = at::empty_like(query), query_normed = at::empty_like(query),
                   key_normed = at::empty_like(key);
  const auto one_after_another = [&] {
    norms("rms_norm_out", query_normed, query, weight, kEps, shape.variant);
    norms("rms_norm_out", key_normed, key, weight, kEps, shape.variant);
    package("rotary_append_out", query_out, keys, values, query_normed, key_normed, value, cos, sin,
            lengths, positions, shape.interleaved);
  };
  testing::Row row;
  row.op = "norm_rotary_append";
  row.variant = norm_variant_text(shape);
  row.dtype = c10::toString(dtype);
  row.shape = norm_shape_text(shape);
  row.bytes = (2 * query.numel() + 4 * key.numel() + 2 * batch * head_dim) *
              static_cast<int64_t>(query.element_size());
  row.work = [&] {
    package("norm_rotary_append_out", query_out, keys, values, query, key, value, weight, weight,
            cos, sin, lengths, positions, kEps, shape.variant, shape.interleaved);
  };
  row.peers = {{"rms_norm, rms_norm, rotary_append", one_after_another}};
  row.difference = [&] {
    one_after_another();
    const at::Tensor wanted = query_out.clone(), wanted_keys = keys.clone();
    keys.zero_();
    row.work();
    return testing::is_same_bits(query_out, wanted) && testing::is_same_bits(keys, wanted_keys)
               ? 0.0
               : 1.0;
  };
  row.tolerance = 0;
  harness.run(row);
}

}  // namespace graft_kernels::rotary
