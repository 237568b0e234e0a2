#include "graft/nn/rotary.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <utility>

#include <fmt/format.h>

#include "graft/core/error.h"

namespace graft::nn {

namespace {

constexpr std::array<std::pair<std::string_view, RopeType>, 7> kRopeTypes = {{
    {"default", RopeType::kDefault},
    {"linear", RopeType::kLinear},
    {"dynamic", RopeType::kDynamic},
    {"llama3", RopeType::kLlama3},
    {"yarn", RopeType::kYarn},
    {"longrope", RopeType::kLongRope},
    {"su", RopeType::kLongRope},  // the name in early phi3 configs
}};

// arange(0, dim, 2) / dim in float32, the exponents of theta.
at::Tensor exponents(int64_t dim) {
  return at::arange(0, dim, 2, at::TensorOptions().dtype(at::kLong)).to(at::kFloat) / dim;
}

at::Tensor default_frequencies(double theta, int64_t dim) {
  return at::reciprocal(at::pow(at::Scalar(theta), exponents(dim)));
}

at::Tensor dynamic_frequencies(const RopeParameters& p, int64_t dim, int64_t length) {
  if (length <= p.max_position_embeddings) {
    return default_frequencies(p.theta, dim);
  }
  // Float32 tensors throughout: the order and width in which transformers computes them.
  const at::Tensor seq =
      at::scalar_tensor(at::Scalar(length), at::TensorOptions().dtype(at::kLong));
  const at::Tensor stretched = seq * p.factor / p.max_position_embeddings - (p.factor - 1.0);
  const at::Tensor base =
      at::pow(stretched, static_cast<double>(dim) / static_cast<double>(dim - 2)) * p.theta;
  return at::reciprocal(at::pow(base, exponents(dim)));
}

at::Tensor llama3_frequencies(const RopeParameters& p, int64_t dim) {
  const at::Tensor inv_freq = default_frequencies(p.theta, dim);
  const double old_length = static_cast<double>(p.original_max_position_embeddings);
  const double low_wavelength = old_length / p.low_freq_factor;
  const double high_wavelength = old_length / p.high_freq_factor;
  const at::Tensor wavelength = at::reciprocal(inv_freq) * (2.0 * M_PI);
  const at::Tensor scaled = at::where(wavelength.gt(low_wavelength), inv_freq / p.factor, inv_freq);
  const at::Tensor smooth = (at::reciprocal(wavelength) * old_length - p.low_freq_factor) /
                            (p.high_freq_factor - p.low_freq_factor);
  const at::Tensor smoothed = (1.0 - smooth) * scaled / p.factor + smooth * scaled;
  const at::Tensor medium =
      wavelength.ge(high_wavelength).logical_and(wavelength.le(low_wavelength));
  return at::where(medium, smoothed, scaled);
}

double correction_dim(const RopeParameters& p, double rotations, int64_t dim) {
  const double old_length = static_cast<double>(p.original_max_position_embeddings);
  return static_cast<double>(dim) * std::log(old_length / (rotations * 2.0 * M_PI)) /
         (2.0 * std::log(p.theta));
}

at::Tensor yarn_frequencies(const RopeParameters& p, int64_t dim) {
  double low = correction_dim(p, p.beta_fast, dim);
  double high = correction_dim(p, p.beta_slow, dim);
  if (p.truncate) {
    low = std::floor(low);
    high = std::ceil(high);
  }
  low = std::max(low, 0.0);
  high = std::min(high, static_cast<double>(dim - 1));
  if (low == high) {
    high += 0.001;  // prevents a division by zero
  }
  const at::Tensor theta_powers = at::pow(at::Scalar(p.theta), exponents(dim));
  const at::Tensor extrapolated = at::reciprocal(theta_powers);
  const at::Tensor interpolated = at::reciprocal(theta_powers * p.factor);
  const at::Tensor ramp =
      ((at::arange(dim / 2, at::TensorOptions().dtype(at::kFloat)) - low) / (high - low))
          .clamp(0, 1);
  const at::Tensor keep = 1.0 - ramp;
  return interpolated * (1.0 - keep) + extrapolated * keep;
}

at::Tensor longrope_frequencies(const RopeParameters& p, int64_t dim, int64_t length) {
  const auto& factors =
      length > p.original_max_position_embeddings ? p.long_factor : p.short_factor;
  const at::Tensor scale =
      at::tensor(at::ArrayRef<double>(factors), at::TensorOptions().dtype(at::kFloat));
  return at::reciprocal(scale * at::pow(at::Scalar(p.theta), exponents(dim)));
}

double yarn_mscale(double scale, double mscale) {
  return scale <= 1.0 ? 1.0 : 0.1 * mscale * std::log(scale) + 1.0;
}

double attention_scaling_of(const RopeParameters& p) {
  if (p.type != RopeType::kYarn && p.type != RopeType::kLongRope) {
    return 1.0;
  }
  if (p.attention_factor > 0.0) {
    return p.attention_factor;
  }
  if (p.type == RopeType::kYarn) {
    return p.mscale != 0.0 && p.mscale_all_dim != 0.0
               ? yarn_mscale(p.factor, p.mscale) / yarn_mscale(p.factor, p.mscale_all_dim)
               : yarn_mscale(p.factor, 1.0);
  }
  const double old_length = static_cast<double>(p.original_max_position_embeddings);
  return p.factor <= 1.0 ? 1.0 : std::sqrt(1.0 + std::log(p.factor) / std::log(old_length));
}

}  // namespace

RopeType parse_rope_type(const std::string& name) {
  std::string known;
  for (const auto& [spelling, type] : kRopeTypes) {
    if (spelling == name) {
      return type;
    }
    known += fmt::format("{}`{}`", known.empty() ? "" : ", ", spelling);
  }
  throw FormatError("models.config", "rope-type",
                    fmt::format("rope_type: expected one of {}, got `{}`", known, name));
}

RotaryEmbedding::RotaryEmbedding(RopeParameters parameters, int64_t head_dim)
    : parameters_(std::move(parameters)),
      rotary_dim_(
          static_cast<int64_t>(static_cast<double>(head_dim) * parameters_.partial_rotary_factor)),
      attention_scaling_(attention_scaling_of(parameters_)) {
  if (!needs_length()) {
    static_inv_freq_ = inverse_frequencies(0);
  }
}

bool RotaryEmbedding::needs_length() const {
  return parameters_.type == RopeType::kDynamic || parameters_.type == RopeType::kLongRope;
}

at::Tensor RotaryEmbedding::inverse_frequencies(int64_t length) const {
  switch (parameters_.type) {
    case RopeType::kDefault:
      return default_frequencies(parameters_.theta, rotary_dim_);
    case RopeType::kLinear:
      return default_frequencies(parameters_.theta, rotary_dim_) / parameters_.factor;
    case RopeType::kDynamic:
      return dynamic_frequencies(parameters_, rotary_dim_, length);
    case RopeType::kLlama3:
      return llama3_frequencies(parameters_, rotary_dim_);
    case RopeType::kYarn:
      return yarn_frequencies(parameters_, rotary_dim_);
    case RopeType::kLongRope:
      return longrope_frequencies(parameters_, rotary_dim_, length);
  }
  return {};
}

RotaryTables RotaryEmbedding::tables(const at::Tensor& position_ids, int64_t length,
                                     at::ScalarType dtype) const {
  at::Tensor inv_freq = needs_length() ? inverse_frequencies(length) : static_inv_freq_;
  if (inv_freq.device() != position_ids.device()) {
    inv_freq = inv_freq.to(position_ids.device());
    if (!needs_length()) {
      static_inv_freq_ = inv_freq;
    }
  }
  const at::Tensor freqs = position_ids.to(at::kFloat).unsqueeze(-1) * inv_freq;
  at::Tensor cos = freqs.cos();
  at::Tensor sin = freqs.sin();
  if (attention_scaling_ != 1.0) {
    cos = cos * attention_scaling_;
    sin = sin * attention_scaling_;
  }
  cos = cos.to(dtype);
  sin = sin.to(dtype);
  return {at::cat({cos, cos}, -1), at::cat({sin, sin}, -1), at::cat({sin.neg(), sin}, -1)};
}

}  // namespace graft::nn
