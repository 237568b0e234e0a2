// Attention for few rows: keys and values read once for all rows that share them. Each warp works
// through key tiles of its own with a running softmax; warps merge in shared memory, parts of the
// keys (splits) in a second kernel. Device code, no Torch.
#pragma once

#include "kernels/attention/attention_mma.cuh"
#include "kernels/attention/attention_place.cuh"

namespace graft_kernels::attention {

inline constexpr int kDecodeWarps = 4;
inline constexpr int kDecodeThreads = kDecodeWarps * 32;

// Shared memory: one tile of queries, then per warp a ring of key and value tiles. Rows are padded
// by 16 bytes, so that eight of them lie in different banks.
template <int kD>
struct DecodeLayout {
  static constexpr int kStages = 2;
  static constexpr int kPitch = kD + 8;  // elements of a row
  static constexpr int kTile = kTileKeys * kPitch;
  static constexpr int kBytes = (kTile + kDecodeWarps * kStages * 2 * kTile) * 2;
  static constexpr int kBlocksPerProcessor = kD <= 64 ? 4 : (kD <= 128 ? 3 : (kD <= 192 ? 2 : 1));
};

// Starts the copy of keys [first, first + 16) from `from`; zeros beyond the place's end and the
// head's.
template <typename T, int kD, bool kPaged>
__device__ __forceinline__ void start_tile(const DecodeProblem& problem, const Place& place,
                                           const void* from, const int64_t (&stride)[3], int first,
                                           T* to) {
  constexpr int kChunks = kD / 8;
  const int lane = threadIdx.x % 32;
  const int head_chunks = static_cast<int>(problem.base.head_dim) / 8;
#pragma unroll
  for (int step = 0; step < kTileKeys * kChunks / 32; ++step) {
    const int index = step * 32 + lane;
    const int row = index / kChunks;
    const int chunk = index % kChunks;
    const bool valid = first + row < place.end && chunk < head_chunks;
    const int64_t offset =
        valid ? key_offset<kPaged>(problem, place, stride, first + row) + chunk * 8 : 0;
    copy_async(to + row * DecodeLayout<kD>::kPitch + chunk * 8,
               static_cast<const T*>(from) + offset, valid);
  }
}

template <typename T, int kD>
__device__ __forceinline__ void load_queries(const DecodeProblem& problem, const Place& place,
                                             T* to) {
  constexpr int kChunks = kD / 8;
  const Problem& base = problem.base;
  for (int index = threadIdx.x; index < kBlockRows * kChunks; index += kDecodeThreads) {
    const int row = index / kChunks;
    const int chunk = index % kChunks;
    uint4 value = {0, 0, 0, 0};
    if (row < place.rows && chunk < base.head_dim / 8) {
      const RowView view = view_row(problem, place, row);
      value = *reinterpret_cast<const uint4*>(
          static_cast<const T*>(base.query) + place.batch * base.query_stride[0] +
          view.query * base.query_stride[1] + view.head * base.query_stride[2] + chunk * 8);
    }
    *reinterpret_cast<uint4*>(to + row * DecodeLayout<kD>::kPitch + chunk * 8) = value;
  }
}

// The running softmax of a warp: rows lane / 4 and lane / 4 + 8.
template <int kD>
struct WarpState {
  float out[kD / 8][4] = {};
  float largest[2] = {-INFINITY, -INFINITY};
  float sum[2] = {};  // of this lane's keys
};

// Zeros the values of keys that the mask hides from all rows: zero times what lies there may be NaN.
template <typename T, int kD>
__device__ __forceinline__ void clear_hidden(const float (&scores)[2][4], T* values) {
  const int lane = threadIdx.x % 32;
  unsigned seen = 0;
#pragma unroll
  for (int pair = 0; pair < 4; ++pair) {
    const int tile = pair / 2, column = pair % 2;
    const bool any = scores[tile][column] != -INFINITY || scores[tile][column + 2] != -INFINITY;
    seen |= any ? 1U << (tile * 8 + lane % 4 * 2 + column) : 0U;
  }
  seen = __reduce_or_sync(0xFFFFFFFFU, seen);
  for (int key = lane / 2; key < kTileKeys; key += 16) {
    if ((seen >> key & 1U) == 0U) {
      for (int column = lane % 2 * 8; column < kD; column += 16) {
        *reinterpret_cast<uint4*>(values + key * DecodeLayout<kD>::kPitch + column) = {0, 0, 0, 0};
      }
    }
  }
  __syncwarp();
}

template <typename T, int kD>
__device__ __forceinline__ void work_tile(const DecodeProblem& problem, const Place& place,
                                          const RowView (&views)[2], const T* queries,
                                          const T* keys, T* values, int first,
                                          WarpState<kD>& state) {
  constexpr int kPitch = DecodeLayout<kD>::kPitch;
  const int lane = threadIdx.x % 32;
  float scores[2][4] = {};
#pragma unroll
  for (int step = 0; step < kD / 16; ++step) {
    uint32_t a[4], b[4];
    load_matrices(a, queries + lane % 16 * kPitch + step * 16 + lane / 16 * 8);
    load_matrices(b, keys + (lane % 8 + lane / 16 * 8) * kPitch + step * 16 + lane / 8 % 2 * 8);
    multiply<T>(scores[0], a, b[0], b[1]);
    multiply<T>(scores[1], a, b[2], b[3]);
  }
  float largest[2] = {state.largest[0], state.largest[1]};
  const bool simple = problem.base.mask == nullptr && problem.base.softcap == 0.0F;
  const float scale_log2 = problem.base.scale * kLog2E;
#pragma unroll
  for (int index = 0; index < 8; ++index) {
    const int tile = index / 4, half = index % 4 / 2;
    float& score = scores[tile][index % 4];
    const int key = first + tile * 8 + lane % 4 * 2 + index % 2;
    const bool seen = key >= views[half].begin && key < views[half].end;
    score = simple ? (seen ? score * scale_log2 : -INFINITY)
                   : finish_score<T>(problem, place, views[half], key, score);
    largest[half] = fmaxf(largest[half], score);
  }
  if (problem.base.mask != nullptr) {
    clear_hidden<T, kD>(scores, values);
  }
  float origin[2], factor[2];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    largest[half] = fmaxf(largest[half], __shfl_xor_sync(0xFFFFFFFFU, largest[half], 1));
    largest[half] = fmaxf(largest[half], __shfl_xor_sync(0xFFFFFFFFU, largest[half], 2));
    origin[half] = origin_of(largest[half]);
    factor[half] = exp2f(state.largest[half] - origin[half]);
    state.largest[half] = largest[half];
    state.sum[half] *= factor[half];
  }
#pragma unroll
  for (int index = 0; index < 8; ++index) {
    const int half = index % 4 / 2;
    float& score = scores[index / 4][index % 4];
    score = exp2f(score - origin[half]);
    state.sum[half] += score;
  }
  const uint32_t weights[4] = {
      pack<T>(scores[0][0], scores[0][1]), pack<T>(scores[0][2], scores[0][3]),
      pack<T>(scores[1][0], scores[1][1]), pack<T>(scores[1][2], scores[1][3])};
#pragma unroll
  for (int step = 0; step < kD / 16; ++step) {
    uint32_t b[4];
    load_matrices_transposed(b, values + lane % 16 * kPitch + step * 16 + lane / 16 * 8);
#pragma unroll
    for (int part = 0; part < 2; ++part) {
      float(&out)[4] = state.out[step * 2 + part];
      out[0] *= factor[0];
      out[1] *= factor[0];
      out[2] *= factor[1];
      out[3] *= factor[1];
      multiply<T>(out, weights, b[part * 2], b[part * 2 + 1]);
    }
  }
}

// Every warp's state into shared memory: values [warp][row][kD], then largest and sum [warp][row].
template <int kD>
__device__ __forceinline__ void share_state(const WarpState<kD>& state, float* values,
                                            float2* sums) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    float sum = state.sum[half];
    sum += __shfl_xor_sync(0xFFFFFFFFU, sum, 1);
    sum += __shfl_xor_sync(0xFFFFFFFFU, sum, 2);
    const int row = warp * kBlockRows + lane / 4 + half * 8;
    if (lane % 4 == 0) {
      sums[row] = {state.largest[half], sum};
    }
#pragma unroll
    for (int tile = 0; tile < kD / 8; ++tile) {
      *reinterpret_cast<float2*>(values + row * kD + tile * 8 + lane % 4 * 2) = {
          state.out[tile][half * 2], state.out[tile][half * 2 + 1]};
    }
  }
}

// Merges the warps' states of each row and writes the result, or the block's part of it.
template <typename T, int kD>
__device__ __forceinline__ void merge_warps(const DecodeProblem& problem, const Place& place,
                                            const float* values, const float2* sums) {
  const int head_dim = static_cast<int>(problem.base.head_dim);
  const int pairs = head_dim / 2;
  for (int index = threadIdx.x; index < place.rows * pairs; index += kDecodeThreads) {
    const int row = index / pairs, column = index % pairs * 2;
    float largest = -INFINITY;
#pragma unroll
    for (int warp = 0; warp < kDecodeWarps; ++warp) {
      largest = fmaxf(largest, sums[warp * kBlockRows + row].x);
    }
    float2 value = {0.0F, 0.0F};
    float sum = 0.0F;
#pragma unroll
    for (int warp = 0; warp < kDecodeWarps; ++warp) {
      const float2 own = sums[warp * kBlockRows + row];
      const float factor = exp2f(own.x - origin_of(largest));
      const float2 part =
          *reinterpret_cast<const float2*>(values + (warp * kBlockRows + row) * kD + column);
      sum += own.y * factor;
      value.x += part.x * factor;
      value.y += part.y * factor;
    }
    if (problem.splits > 1) {
      float* part = part_row(problem, place.block, place.split, row);
      *reinterpret_cast<float2*>(part + 2 + column) = value;
      if (column == 0) {
        *reinterpret_cast<float2*>(part) = {largest, sum};
      }
      continue;
    }
    const RowView view = view_row(problem, place, row);
    const RowResult result = finish_row<T>(problem, view.head, largest, sum);
    T* out = out_row<T>(problem, place.batch, view) + column;
    *reinterpret_cast<uint32_t*>(out) = pack<T>(value.x * result.factor, value.y * result.factor);
    if (column == 0) {
      store_lse(problem, place.batch, view, result.lse);
    }
  }
}

// 16-bit heads of up to kD elements, a multiple of eight, on tensor cores.
template <typename T, int kD, bool kPaged>
__global__ void __launch_bounds__(kDecodeThreads, DecodeLayout<kD>::kBlocksPerProcessor)
    attention_decode_mma_kernel(const __grid_constant__ DecodeProblem problem) {
  using Layout = DecodeLayout<kD>;
  extern __shared__ __align__(16) unsigned char shared[];
  __shared__ float2 sums[kDecodeWarps * kBlockRows];
  allow_next_kernel();
  wait_for_kernel_before();
  const Problem& base = problem.base;
  const Place place = place_of(problem);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  T* queries = reinterpret_cast<T*>(shared);
  T* ring = queries + Layout::kTile + warp * Layout::kStages * 2 * Layout::kTile;
  const auto start = [&](int first, int stage) {
    if (first < place.end) {
      T* to = ring + stage * 2 * Layout::kTile;
      start_tile<T, kD, kPaged>(problem, place, base.key, base.key_stride, first, to);
      start_tile<T, kD, kPaged>(problem, place, base.value, base.value_stride, first,
                                to + Layout::kTile);
    }
    commit_copies();
  };
  constexpr int kStep = kDecodeWarps * kTileKeys;
  int first = place.begin + warp * kTileKeys;
  start(first, 0);
  load_queries<T, kD>(problem, place, queries);
  __syncthreads();
  RowView views[2] = {view_row(problem, place, lane / 4), view_row(problem, place, lane / 4 + 8)};
  views[0].end = min(views[0].end, place.end);
  views[1].end = min(views[1].end, place.end);
  WarpState<kD> state;
  for (int stage = 0; first < place.end; first += kStep, stage ^= 1) {
    start(first + kStep, stage ^ 1);
    wait_copies<1>();
    __syncwarp();
    T* keys = ring + stage * 2 * Layout::kTile;
    work_tile<T, kD>(problem, place, views, queries, keys, keys + Layout::kTile, first, state);
    __syncwarp();
  }
  wait_copies<0>();
  __syncthreads();
  float* values = reinterpret_cast<float*>(shared + Layout::kTile * 2);
  share_state<kD>(state, values, sums);
  __syncthreads();
  merge_warps<T, kD>(problem, place, values, sums);
}

}  // namespace graft_kernels::attention
