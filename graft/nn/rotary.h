// Rotary position embedding: frequency tables of every `rope_type`, as layers::Rotary applies them.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include <ATen/ATen.h>

#include "graft/layers/contract.h"

namespace graft::nn {

// `kDynamic` and `kLongRope` depend on the longest position of the running forward pass.
enum class RopeType { kDefault, kLinear, kDynamic, kLlama3, kYarn, kLongRope };

// Reads `rope_type`. Throws FormatError for an unknown one, listing the known ones.
RopeType parse_rope_type(const std::string& name);

// `rope_parameters` of a config, with every default filled in. Names as in transformers.
struct RopeParameters {
  RopeType type = RopeType::kDefault;
  double theta = 10000.0;
  double partial_rotary_factor = 1.0;
  double factor = 1.0;
  int64_t max_position_embeddings = 0;
  int64_t original_max_position_embeddings = 0;
  double attention_factor = 0.0;  // 0: derived from factor
  double low_freq_factor = 1.0;   // llama3
  double high_freq_factor = 4.0;
  double beta_fast = 32.0;  // yarn
  double beta_slow = 1.0;
  double mscale = 0.0;  // 0: absent
  double mscale_all_dim = 0.0;
  bool truncate = true;
  std::vector<double> short_factor;  // longrope
  std::vector<double> long_factor;
};

using layers::RotaryTables;

class RotaryEmbedding {
 public:
  RotaryEmbedding() = default;
  RotaryEmbedding(RopeParameters parameters, int64_t head_dim);

  // Computes the tables in float32 and casts them to `dtype`.
  //
  // position_ids  [B or 1, S]  int64   on the device where the tables shall be
  // length                             longest position + 1, read by kDynamic and kLongRope alone
  RotaryTables tables(const at::Tensor& position_ids, int64_t length, at::ScalarType dtype) const;

  // Whether the tables depend on the longest position.
  bool needs_length() const;
  // Rotated dimensions of a head.
  int64_t rotary_dim() const { return rotary_dim_; }
  // Frequencies for sequences of `length`, [R / 2] float32 on the CPU.
  at::Tensor inverse_frequencies(int64_t length) const;
  // Factor on cos and sin.
  double attention_scaling() const { return attention_scaling_; }

 private:
  RopeParameters parameters_;
  int64_t rotary_dim_ = 0;
  double attention_scaling_ = 1.0;
  mutable at::Tensor static_inv_freq_;  // on the device last asked for; unused if needs_length()
};

}  // namespace graft::nn
