// What the computing warps of the attention of few rows on Hopper do: queries, new tokens, and the running
// softmax over 16 keys. Device code, no Torch.
#pragma once

#include "kernels/attention/attention_decode_sm90_ring.cuh"
#include "kernels/attention/attention_mma.cuh"

namespace graft_kernels::attention::sm90 {

// Queries turned by their positions.
template <typename T, typename Ring>
__device__ __forceinline__ void turn_queries(const DecodeProblem& problem, const Place& place,
                                             int first_new, T* to) {
  constexpr int kD = Ring::kD;
  const Problem& base = problem.base;
  with_table_type<T>(problem.append, [&](auto type) {
    using S = decltype(type);
    for (int index = threadIdx.x; index < Ring::kRows * kD; index += Ring::kThreads - 32) {
      const int row = index / kD, column = index % kD;
      T value = from_float<T>(0.0F);
      if (row < place.rows && column < base.head_dim) {
        const RowView view = view_row(problem, place, row);
        const T* head = static_cast<const T*>(base.query) + place.batch * base.query_stride[0] +
                        view.query * base.query_stride[1] + view.head * base.query_stride[2];
        const Turn<S> turn =
            find_turn<S>(problem, place.batch, first_new, static_cast<int>(view.query));
        value = turn_element<T, S>(problem, turn, head, column);
      }
      to[row * Ring::kQueryPitch + column] = value;
    }
  });
}

// The block's queries on their way to shared memory: asked for before anything else that is far away.
template <typename T, typename Ring>
struct QueriesAhead {
  static constexpr int kChunks = Ring::kD / 8;
  static constexpr int kStep = Ring::kThreads - 32;
  static constexpr int kOwn = (Ring::kRows * kChunks + kStep - 1) / kStep;
  uint4 held[kOwn];

  __device__ __forceinline__ void ask(const DecodeProblem& problem, const Place& place) {
    const Problem& base = problem.base;
    const unsigned groups = static_cast<unsigned>(base.groups);
#pragma unroll
    for (int own = 0; own < kOwn; ++own) {
      const int index = threadIdx.x + own * kStep;
      const int row = index / kChunks, chunk = index % kChunks;
      held[own] = {0, 0, 0, 0};
      if (row < place.rows && chunk < base.head_dim / 8) {
        const unsigned at = place.row + row, query = at / groups;
        held[own] = *reinterpret_cast<const uint4*>(
            static_cast<const T*>(base.query) + place.batch * base.query_stride[0] +
            query * base.query_stride[1] +
            (place.head * groups + (at - query * groups)) * base.query_stride[2] + chunk * 8);
      }
    }
  }
  __device__ __forceinline__ void store(T* to) const {
#pragma unroll
    for (int own = 0; own < kOwn; ++own) {
      const int index = threadIdx.x + own * kStep;
      if (kOwn * kStep == Ring::kRows * kChunks || index < Ring::kRows * kChunks) {
        *reinterpret_cast<uint4*>(to + index / kChunks * Ring::kQueryPitch + index % kChunks * 8) =
            held[own];
      }
    }
  }
};

// A warp's running softmax over its keys: rows lane / 4 and lane / 4 + 8 of its tile of rows.
template <int kD>
struct RowsState {
  float out[kD / 8][4] = {};
  float largest[2] = {-INFINITY, -INFINITY};  // in units of log2
  float sum[2] = {};                          // of this lane's keys
};

// Rows of queries as the products take them; long heads are read again for every tile.
template <typename T, int kD>
struct QueryRows {
  static constexpr bool kHeld = kD <= 128;
  const T* from;  // this lane's row and half
  uint32_t held[kHeld ? kD / 16 : 1][4];

  __device__ __forceinline__ void read(const T* queries, int pitch, int lane) {
    from = queries + lane % 16 * pitch + lane / 16 * 8;
    if constexpr (kHeld) {
#pragma unroll
      for (int step = 0; step < kD / 16; ++step) {
        load_matrices(held[step], from + step * 16);
      }
    }
  }
  __device__ __forceinline__ void get(int step, uint32_t (&to)[4]) const {
    if constexpr (kHeld) {
#pragma unroll
      for (int word = 0; word < 4; ++word) {
        to[word] = held[step][word];
      }
    } else {
      load_matrices(to, from + step * 16);
    }
  }
};

// Calls store(token, element, new key turned, new value) for the head's elements of tokens [begin, end), spread
// over `threads` threads.
template <typename T, typename Store>
__device__ __forceinline__ void for_new_elements(const DecodeProblem& problem, const Place& place,
                                                 int first_new, int begin, int end, int thread,
                                                 int threads, const Store& store) {
  const Append& append = problem.append;
  const int size = static_cast<int>(problem.base.head_dim);
  with_table_type<T>(append, [&](auto type) {
    using S = decltype(type);
#pragma unroll 1
    for (int token = begin; token < end; ++token) {
      const T* key = static_cast<const T*>(append.key) + place.batch * append.key_stride[0] +
                     token * append.key_stride[1] + place.head * append.key_stride[2];
      const T* value = static_cast<const T*>(append.value) + place.batch * append.value_stride[0] +
                       token * append.value_stride[1] + place.head * append.value_stride[2];
      const Turn<S> turn = find_turn<S>(problem, place.batch, first_new, token);
#pragma unroll 1
      for (int at = thread; at < size; at += threads) {
        store(token, at, turn_element<T, S>(problem, turn, key, at), value[at]);
      }
    }
  });
}

// Into the cache, by the block that has the head's first rows and first part.
template <typename T, bool kPaged>
__device__ __forceinline__ void store_new(const DecodeProblem& problem, const Place& place,
                                          int first_new, int threads) {
  const int queries = static_cast<int>(problem.base.queries);
  for_new_elements<T>(
      problem, place, first_new, max(-first_new, 0), first_new == INT_MAX ? 0 : queries,
      static_cast<int>(threadIdx.x), threads, [&](int token, int at, T key, T value) {
        static_cast<T*>(problem.append.keys)
            [key_offset<kPaged>(problem, place, problem.base.key_stride, first_new + token) + at] =
                key;
        static_cast<T*>(
            problem.append.values)[key_offset<kPaged>(problem, place, problem.base.value_stride,
                                                      first_new + token) +
                                   at] = value;
      });
}

// Into the tile that was copied before they were there: 16 keys from `first`, by one warp.
template <typename T>
__device__ __forceinline__ void patch_new(const DecodeProblem& problem, const Place& place,
                                          int first_new, int first, const TileRows& rows,
                                          unsigned char* keys, unsigned char* values) {
  const int begin = max(first - first_new, max(-first_new, 0));
  const int end = min(first + 16 - first_new, static_cast<int>(problem.base.queries));
  for_new_elements<T>(problem, place, first_new, begin, end, static_cast<int>(threadIdx.x) % 32, 32,
                      [&](int token, int at, T key, T value) {
                        const int byte = rows.element(first_new + token - first, at);
                        *reinterpret_cast<T*>(keys + byte) = key;
                        *reinterpret_cast<T*>(values + byte) = value;
                      });
}

// Values of keys that no row sees become zeros: zero times what lies there may be NaN. 16 keys, by one
// warp.
template <int kD>
__device__ __forceinline__ void clear_unseen(const Place& place, int first, const TileRows& rows,
                                             unsigned char* values) {
  const int lane = threadIdx.x % 32;
  constexpr int kChunks = kD / 8;
#pragma unroll 1
  for (int index = lane; index < 16 * kChunks; index += 32) {
    const int row = index / kChunks, chunk = index % kChunks;
    if (first + row < place.begin || first + row >= place.end) {
      *reinterpret_cast<uint4*>(values + rows.element(row, chunk * 8)) = {0, 0, 0, 0};
    }
  }
}

// Within 2^-22 of tanh, in a few instructions: those of tanhf() would fill the loop over tiles.
__device__ __forceinline__ float tanh_short(float value) {
  return 1.0F - __fdividef(2.0F, 1.0F + exp2_fast(value * (2.0F * kLog2E)));
}

// Scores of 16 keys, in units of log2. `whole`: every row sees every one of them.
template <typename T>
__device__ __forceinline__ void finish_scores(const DecodeProblem& problem, const Place& place,
                                              const RowView (&views)[2], int first, bool whole,
                                              float (&scores)[2][4]) {
  const Problem& base = problem.base;
  const int key = first + static_cast<int>(threadIdx.x) % 4 * 2;
#pragma unroll
  for (int index = 0; index < 8; ++index) {
    float& score = scores[index / 4][index % 4];
    score *= base.scale;
    if (base.softcap > 0.0F) {
      score = base.softcap * tanh_short(__fdividef(score, base.softcap));
    }
    score *= kLog2E;
  }
  if (whole) {
    return;
  }
#pragma unroll
  for (int index = 0; index < 8; ++index) {
    const RowView& view = views[index % 4 / 2];
    const int at = key + index / 4 * 8 + index % 2;
    if (at < max(view.begin, place.begin) || at >= min(view.end, place.end)) {
      scores[index / 4][index % 4] = -INFINITY;
    }
  }
}

// 16 keys, whose rows of keys and values begin at `keys` and `values` of their boxes.
template <typename T, int kD>
__device__ __forceinline__ void work_keys16(const DecodeProblem& problem, const Place& place,
                                            const RowView (&views)[2], bool whole,
                                            const QueryRows<T, kD>& queries, const TileRows& rows,
                                            const unsigned char* keys, const unsigned char* values,
                                            int first, RowsState<kD>& state) {
  const int lane = threadIdx.x % 32;
  const int swizzle = lane % 8;
  float scores[2][4] = {};
  {
    float odd[2][4] = {};  // every other step, so that half as many products wait for one another
    const unsigned char* row = keys + lane % 8 * 128 + lane / 16 * rows.eight_rows;
    const int chunk = (lane / 8 % 2 ^ swizzle) * 16;
#pragma unroll
    for (int step = 0; step < kD / 16; ++step) {
      uint32_t a[4], b[4];
      queries.get(step, a);
      load_matrices(b, row + step / 4 * rows.box_columns + (chunk ^ (step % 4 * 32)));
      float(&sums)[2][4] = step % 2 == 0 ? scores : odd;
      multiply<T>(sums[0], a, b[0], b[1]);
      multiply<T>(sums[1], a, b[2], b[3]);
    }
#pragma unroll
    for (int index = 0; index < 8; ++index) {
      scores[index / 4][index % 4] += odd[index / 4][index % 4];
    }
  }
  finish_scores<T>(problem, place, views, first, whole, scores);
  float largest[2], origin[2], factor[2];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    largest[half] = fmaxf(fmaxf(scores[0][half * 2], scores[0][half * 2 + 1]),
                          fmaxf(scores[1][half * 2], scores[1][half * 2 + 1]));
    largest[half] = fmaxf(largest[half], __shfl_xor_sync(0xFFFFFFFFU, largest[half], 1));
    largest[half] = fmaxf(largest[half], __shfl_xor_sync(0xFFFFFFFFU, largest[half], 2));
    largest[half] = fmaxf(largest[half], state.largest[half]);
    origin[half] = origin_of(largest[half]);
    factor[half] = exp2_fast(state.largest[half] - origin[half]);
    state.largest[half] = largest[half];
    state.sum[half] *= factor[half];
  }
#pragma unroll
  for (int index = 0; index < 8; ++index) {
    const int half = index % 4 / 2;
    float& score = scores[index / 4][index % 4];
    score = exp2_fast(score - origin[half]);
    state.sum[half] += score;
  }
  const uint32_t weights[4] = {
      pack<T>(scores[0][0], scores[0][1]), pack<T>(scores[0][2], scores[0][3]),
      pack<T>(scores[1][0], scores[1][1]), pack<T>(scores[1][2], scores[1][3])};
  if (__any_sync(0xFFFFFFFFU, factor[0] != 1.0F || factor[1] != 1.0F)) {
#pragma unroll
    for (int tile = 0; tile < kD / 8; ++tile) {
      state.out[tile][0] *= factor[0];
      state.out[tile][1] *= factor[0];
      state.out[tile][2] *= factor[1];
      state.out[tile][3] *= factor[1];
    }
  }
  const unsigned char* row = values + lane % 8 * 128 + lane % 16 / 8 * rows.eight_rows;
  const int chunk = (lane / 16 ^ swizzle) * 16;
#pragma unroll
  for (int step = 0; step < kD / 16; ++step) {
    uint32_t b[4];
    load_matrices_transposed(b, row + step / 4 * rows.box_columns + (chunk ^ (step % 4 * 32)));
    multiply<T>(state.out[step * 2], weights, b[0], b[1]);
    multiply<T>(state.out[step * 2 + 1], weights, b[2], b[3]);
  }
}

}  // namespace graft_kernels::attention::sm90
