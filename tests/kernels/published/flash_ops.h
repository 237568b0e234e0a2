// What the test packages of flash attention share: dense and packed calls over tensors of either ABI.
// Checks what the published kernels check, so that a host that maps an argument wrongly is noticed.
#pragma once

#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "flash_loops.h"

namespace graft_tests {

inline void require(bool holds, const char* what) {
  if (!holds) {
    throw std::runtime_error(std::string("[flash] expected ") + what);
  }
}

// A tensor of another shape on the first one's device, in memory of its own.
template <typename Tensor>
Tensor make(const Tensor& like, std::vector<int64_t> sizes, ScalarType dtype);

template <typename Tensor>
const int32_t* starts_of(const Tensor& x) {
  require(x.scalar_type() == ScalarType::Int && x.stride(0) == 1, "dense int32 starts");
  return static_cast<const int32_t*>(x.const_data_ptr());
}

// [B, S, H, D] or packed [N, H, D].
template <typename Tensor>
Heads heads_of(const Tensor& x, int64_t sequence, int64_t token) {
  const int64_t dims = x.dim();
  require(x.stride(dims - 1) == 1, "heads with dense elements");
  require(x.size(dims - 1) % 8 == 0 && x.size(dims - 1) <= 256, "a head size % 8 == 0, <= 256");
  require(x.scalar_type() == ScalarType::Half || x.scalar_type() == ScalarType::BFloat16,
          "float16 or bfloat16");
  Heads heads;
  heads.data = const_cast<void*>(x.const_data_ptr());
  heads.dtype = x.scalar_type();
  heads.start = (dims == 4 ? sequence * x.stride(0) : 0) + token * x.stride(dims - 3);
  heads.token_stride = x.stride(dims - 3);
  heads.head_stride = x.stride(dims - 2);
  return heads;
}

// One call of flash attention. `query_starts` and `key_starts` absent: dense. `lengths`: keys to use.
template <typename Tensor>
struct Call {
  Tensor query, key, value;
  std::optional<Tensor> query_starts, key_starts, lengths, rows;
  Rules rules;

  bool packed() const { return query_starts.has_value(); }
  int64_t sequences() const { return packed() ? query_starts->size(0) - 1 : query.size(0); }
  int64_t dim() const { return query.size(query.dim() - 1); }
  int64_t heads() const { return query.size(query.dim() - 2); }
  int64_t key_heads() const { return key.size(key.dim() - 2); }

  Sequence sequence(int64_t i) const {
    Sequence s;
    s.heads = heads();
    s.key_heads = key_heads();
    s.dim = dim();
    int64_t first_query = 0, first_key = 0;
    s.queries = packed() ? 0 : query.size(1);
    s.keys = packed() ? 0 : key.size(1);
    if (packed()) {
      first_query = starts_of(*query_starts)[i];
      first_key = starts_of(*key_starts)[i];
      s.queries = starts_of(*query_starts)[i + 1] - first_query;
      s.keys = starts_of(*key_starts)[i + 1] - first_key;
    }
    if (lengths) {
      s.keys = starts_of(*lengths)[i];
    }
    const int64_t row = rows ? starts_of(*rows)[i] : i;
    s.query = heads_of(query, i, first_query);
    s.key = heads_of(key, row, first_key);
    s.value = heads_of(value, row, first_key);
    return s;
  }
  int64_t first_query(int64_t i) const { return packed() ? starts_of(*query_starts)[i] : 0; }
  int64_t lse_stride() const { return packed() ? query.size(0) : query.size(1); }
  float* lse_of(const Tensor& lse, int64_t i) const {
    auto* data = static_cast<float*>(const_cast<void*>(lse.const_data_ptr()));
    return data + (packed() ? first_query(i) : i * heads() * query.size(1));
  }

  std::pair<Tensor, Tensor> forward() const {
    std::vector<int64_t> sizes, lse_sizes;
    for (int64_t d = 0; d < query.dim(); ++d) {
      sizes.push_back(query.size(d));
    }
    lse_sizes = packed() ? std::vector<int64_t>{heads(), query.size(0)}
                         : std::vector<int64_t>{query.size(0), heads(), query.size(1)};
    Tensor out = make(query, sizes, query.scalar_type());
    Tensor lse = make(query, lse_sizes, ScalarType::Float);
    for (int64_t i = 0; i < sequences(); ++i) {
      attend(sequence(i), rules, heads_of(out, i, first_query(i)), lse_of(lse, i), lse_stride());
    }
    return {out, lse};
  }

  void backward(const Tensor& grad_out, const Tensor& out, const Tensor& lse,
                const Tensor& grad_query, const Tensor& grad_key, const Tensor& grad_value) const {
    for (int64_t i = 0; i < sequences(); ++i) {
      const int64_t q = first_query(i), k = packed() ? starts_of(*key_starts)[i] : 0;
      attend_backward(sequence(i), rules, heads_of(grad_out, i, q), heads_of(out, i, q),
                      lse_of(lse, i), lse_stride(), heads_of(grad_query, i, q),
                      heads_of(grad_key, i, k), heads_of(grad_value, i, k));
    }
  }
};

// Copies new keys or values behind what a cache holds.
template <typename Tensor>
void append(const Tensor& cache, const Tensor& added, const std::optional<Tensor>& lengths,
            const std::optional<Tensor>& rows) {
  for (int64_t i = 0; i < added.size(0); ++i) {
    const int64_t row = rows ? starts_of(*rows)[i] : i;
    const int64_t held = lengths ? starts_of(*lengths)[i] : 0;
    require(held + added.size(1) <= cache.size(1), "room in the cache");
    const Heads to = heads_of(cache, row, held), from = heads_of(added, i, 0);
    for (int64_t t = 0; t < added.size(1); ++t) {
      for (int64_t head = 0; head < added.size(2); ++head) {
        for (int64_t d = 0; d < added.size(3); ++d) {
          to.set(t, head, d, from.get(t, head, d));
        }
      }
    }
  }
}

// The lengths after an append.
template <typename Tensor>
std::optional<Tensor> grown(const Tensor& like, const std::optional<Tensor>& lengths,
                            int64_t added) {
  if (!lengths) {
    return std::nullopt;
  }
  Tensor sum = make(like, {lengths->size(0)}, ScalarType::Int);
  for (int64_t i = 0; i < lengths->size(0); ++i) {
    static_cast<int32_t*>(const_cast<void*>(sum.const_data_ptr()))[i] =
        starts_of(*lengths)[i] + static_cast<int32_t>(added);
  }
  return sum;
}

}  // namespace graft_tests
