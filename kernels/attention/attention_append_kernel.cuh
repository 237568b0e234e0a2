// New tokens of a cache: where they go, what they look like turned by their positions, and a kernel that
// stores them for the kernels that do not do it themselves. Device code, no Torch.
#pragma once

#include <climits>
#include <cstdint>

#include "kernels/attention/attention_place.cuh"

namespace graft_kernels::attention {

inline constexpr int kAppendThreads = 256;

// Place of the batch entry's first new token; before the cache's end where the entry takes none.
__device__ __forceinline__ int first_new_key(const DecodeProblem& problem, int64_t batch) {
  const int64_t length =
      problem.lengths == nullptr ? problem.base.keys : int64_t{problem.lengths[batch]};
  return length > problem.base.keys ? INT_MAX : static_cast<int>(length - problem.base.queries);
}

// Rows of the tables for token s of an entry whose first new key is `first_new`; absent: not turned.
template <typename S>
struct Turn {
  const S* cos = nullptr;
  const S* sin = nullptr;
};

template <typename S>
__device__ __forceinline__ Turn<S> find_turn(const DecodeProblem& problem, int64_t batch,
                                             int first_new, int token) {
  const Append& append = problem.append;
  int64_t position = int64_t{first_new} + token;
  if (append.positions != nullptr) {
    position = int64_t{append.positions[batch]} - problem.base.queries + 1 + token;
  }
  if (append.cos == nullptr || first_new == INT_MAX || position < 0 ||
      position >= append.table_rows) {
    return {};
  }
  return {static_cast<const S*>(append.cos) + position * append.table_stride[0],
          static_cast<const S*>(append.sin) + position * append.table_stride[1]};
}

// Element `at` of a head, turned. Products and sum are rounded to the tables' type, as separate operations
// leave them.
template <typename T, typename S>
__device__ __forceinline__ T turn_element(const DecodeProblem& problem, const Turn<S>& turn,
                                          const T* head, int at) {
  const int size = problem.append.rotary_dim, half = size / 2;
  if (turn.cos == nullptr || at >= size) {
    return head[at];
  }
  const bool interleaved = problem.append.interleaved;
  const bool is_first = interleaved ? at % 2 == 0 : at < half;
  const int other = interleaved ? at ^ 1 : (is_first ? at + half : at - half);
  const float own = round_to<S>(__fmul_rn(to_float(head[at]), to_float(turn.cos[at])));
  const float across = round_to<S>(__fmul_rn(to_float(head[other]), to_float(turn.sin[at])));
  return from_float<T>(round_to<S>(__fadd_rn(own, is_first ? -across : across)));
}

// Calls body(S{}) with the type of the tables beside heads of type T.
template <typename T, typename Body>
__device__ __forceinline__ void with_table_type(const Append& append, const Body& body) {
  if (append.float_tables) {
    body(float{});
  } else {
    body(T{});
  }
}

// The queries turned into `queries` [B, S, Hq, D], the new keys turned into the cache, and the new values.
// A block per batch entry, token and head of any of the three.
template <typename T, bool kPaged>
__global__ void __launch_bounds__(kAppendThreads)
    attention_append_kernel(const __grid_constant__ DecodeProblem problem, T* queries) {
  const Problem& base = problem.base;
  const Append& append = problem.append;
  allow_next_kernel();
  wait_for_kernel_before();
  const unsigned key_heads = static_cast<unsigned>(base.key_heads);
  const unsigned query_heads = key_heads * static_cast<unsigned>(base.groups);
  const unsigned heads = query_heads + 2 * key_heads;
  const unsigned row = blockIdx.x / heads, head = blockIdx.x - row * heads;
  const int token = static_cast<int>(row % static_cast<unsigned>(base.queries));
  Place place = {};
  place.batch = row / static_cast<unsigned>(base.queries);
  const int first_new = first_new_key(problem, place.batch);
  const T* from;
  T* to;
  const bool is_value = head >= query_heads + key_heads;
  if (head < query_heads) {
    from = static_cast<const T*>(base.query) + place.batch * base.query_stride[0] +
           token * base.query_stride[1] + head * base.query_stride[2];
    to = queries + (static_cast<int64_t>(row) * query_heads + head) * base.head_dim;
  } else {
    place.head = (head - query_heads) % key_heads;
    const int key = first_new == INT_MAX ? -1 : first_new + token;
    if (key < 0) {
      return;
    }
    const int64_t(&stride)[3] = is_value ? append.value_stride : append.key_stride;
    from = static_cast<const T*>(is_value ? append.value : append.key) + place.batch * stride[0] +
           token * stride[1] + place.head * stride[2];
    to = static_cast<T*>(is_value ? append.values : append.keys) +
         key_offset<kPaged>(problem, place, is_value ? base.value_stride : base.key_stride, key);
  }
  with_table_type<T>(append, [&](auto type) {
    using S = decltype(type);
    const Turn<S> turn =
        is_value ? Turn<S>{} : find_turn<S>(problem, place.batch, first_new, token);
    for (int at = threadIdx.x; at < base.head_dim; at += kAppendThreads) {
      to[at] = turn_element<T, S>(problem, turn, from, at);
    }
  });
}

}  // namespace graft_kernels::attention
