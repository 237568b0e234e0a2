// Attention of one sequence and its gradients in plain loops over float64, with flash attention's
// rules: bottom-right causal, windows, soft cap, sinks, rows that see nothing. No Torch types, so that
// packages of both ABIs share it.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

namespace graft_tests {

using torch::headeronly::ScalarType;

inline double load(const void* data, ScalarType dtype, int64_t i) {
  switch (dtype) {
    case ScalarType::BFloat16:
      return static_cast<float>(static_cast<const torch::headeronly::BFloat16*>(data)[i]);
    case ScalarType::Half:
      return static_cast<float>(static_cast<const torch::headeronly::Half*>(data)[i]);
    case ScalarType::Double:
      return static_cast<const double*>(data)[i];
    default:
      return static_cast<const float*>(data)[i];
  }
}

inline void store(void* data, ScalarType dtype, int64_t i, double value) {
  switch (dtype) {
    case ScalarType::BFloat16:
      static_cast<torch::headeronly::BFloat16*>(data)[i] = static_cast<float>(value);
      return;
    case ScalarType::Half:
      static_cast<torch::headeronly::Half*>(data)[i] = static_cast<float>(value);
      return;
    case ScalarType::Double:
      static_cast<double*>(data)[i] = value;
      return;
    default:
      static_cast<float*>(data)[i] = static_cast<float>(value);
  }
}

// Heads of one sequence: element (token, head, d) at token * strides[0] + head * strides[1] + d.
struct Heads {
  void* data = nullptr;
  ScalarType dtype = ScalarType::Float;
  int64_t start = 0;
  int64_t token_stride = 0;
  int64_t head_stride = 0;

  int64_t at(int64_t token, int64_t head) const {
    return start + token * token_stride + head * head_stride;
  }
  double get(int64_t token, int64_t head, int64_t d) const {
    return load(data, dtype, at(token, head) + d);
  }
  void set(int64_t token, int64_t head, int64_t d, double value) const {
    store(data, dtype, at(token, head) + d, value);
  }
};

struct Rules {
  double scale = 1.0;
  double softcap = 0.0;
  int64_t left = -1;
  int64_t right = -1;
  std::vector<double> sinks;  // empty: none
  double empty_lse = -std::numeric_limits<double>::infinity();
};

struct Sequence {
  Heads query, key, value;
  int64_t queries = 0, keys = 0, heads = 0, key_heads = 0, dim = 0;

  int64_t key_head(int64_t head) const { return head / (heads / key_heads); }
  bool sees(const Rules& rules, int64_t q, int64_t k) const {
    const int64_t place = q + keys - queries;
    return (rules.right < 0 || k <= place + rules.right) &&
           (rules.left < 0 || k >= place - rules.left);
  }
  double dot(int64_t q, int64_t k, int64_t head) const {
    double sum = 0.0;
    for (int64_t d = 0; d < dim; ++d) {
      sum += query.get(q, head, d) * key.get(k, key_head(head), d);
    }
    return sum;
  }
  double score(const Rules& rules, int64_t q, int64_t k, int64_t head) const {
    const double raw = dot(q, k, head) * rules.scale;
    return rules.softcap > 0.0 ? rules.softcap * std::tanh(raw / rules.softcap) : raw;
  }
};

// lse: of (head, query) at head * lse_stride + query.
inline void attend(const Sequence& s, const Rules& rules, const Heads& out, float* lse,
                   int64_t lse_stride) {
  std::vector<double> weights(static_cast<size_t>(s.keys));
  for (int64_t head = 0; head < s.heads; ++head) {
    for (int64_t q = 0; q < s.queries; ++q) {
      double largest = rules.sinks.empty() ? -std::numeric_limits<double>::infinity()
                                           : rules.sinks[static_cast<size_t>(head)];
      for (int64_t k = 0; k < s.keys; ++k) {
        weights[k] = s.sees(rules, q, k) ? s.score(rules, q, k, head)
                                         : -std::numeric_limits<double>::infinity();
        largest = std::max(largest, weights[k]);
      }
      double sum =
          rules.sinks.empty() ? 0.0 : std::exp(rules.sinks[static_cast<size_t>(head)] - largest);
      for (double& weight : weights) {
        weight = std::isinf(largest) ? 0.0 : std::exp(weight - largest);
        sum += weight;
      }
      for (int64_t d = 0; d < s.dim; ++d) {
        double value = 0.0;
        for (int64_t k = 0; k < s.keys; ++k) {
          value += weights[k] * s.value.get(k, s.key_head(head), d);
        }
        out.set(q, head, d, sum > 0.0 ? value / sum : 0.0);
      }
      lse[head * lse_stride + q] =
          static_cast<float>(sum > 0.0 ? largest + std::log(sum) : rules.empty_lse);
    }
  }
}

// Writes the gradients of query, key and value.
inline void attend_backward(const Sequence& s, const Rules& rules, const Heads& grad_out,
                            const Heads& out, const float* lse, int64_t lse_stride,
                            const Heads& grad_query, const Heads& grad_key,
                            const Heads& grad_value) {
  std::vector<double> key_sums(static_cast<size_t>(s.keys * s.key_heads * s.dim));
  std::vector<double> value_sums(key_sums.size());
  std::vector<double> query_sums(static_cast<size_t>(s.queries * s.heads * s.dim));
  for (int64_t head = 0; head < s.heads; ++head) {
    for (int64_t q = 0; q < s.queries; ++q) {
      double delta = 0.0;
      for (int64_t d = 0; d < s.dim; ++d) {
        delta += grad_out.get(q, head, d) * out.get(q, head, d);
      }
      for (int64_t k = 0; k < s.keys; ++k) {
        if (!s.sees(rules, q, k)) {
          continue;
        }
        const double score = s.score(rules, q, k, head);
        const double weight = std::exp(score - lse[head * lse_stride + q]);
        double grad_weight = 0.0;
        const int64_t at_key = (k * s.key_heads + s.key_head(head)) * s.dim;
        for (int64_t d = 0; d < s.dim; ++d) {
          grad_weight += grad_out.get(q, head, d) * s.value.get(k, s.key_head(head), d);
          value_sums[at_key + d] += weight * grad_out.get(q, head, d);
        }
        double grad_score = weight * (grad_weight - delta) * rules.scale;
        if (rules.softcap > 0.0) {
          grad_score *= 1.0 - (score / rules.softcap) * (score / rules.softcap);
        }
        for (int64_t d = 0; d < s.dim; ++d) {
          query_sums[(q * s.heads + head) * s.dim + d] +=
              grad_score * s.key.get(k, s.key_head(head), d);
          key_sums[at_key + d] += grad_score * s.query.get(q, head, d);
        }
      }
    }
  }
  const auto write = [&](const Heads& target, const std::vector<double>& sums, int64_t tokens,
                         int64_t heads) {
    for (int64_t token = 0; token < tokens; ++token) {
      for (int64_t head = 0; head < heads; ++head) {
        for (int64_t d = 0; d < s.dim; ++d) {
          target.set(token, head, d, sums[(token * heads + head) * s.dim + d]);
        }
      }
    }
  };
  write(grad_query, query_sums, s.queries, s.heads);
  write(grad_key, key_sums, s.keys, s.key_heads);
  write(grad_value, value_sums, s.keys, s.key_heads);
}

}  // namespace graft_tests
