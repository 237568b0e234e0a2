// What a computing warpgroup of Hopper's attention does to one tile. Device code, no Torch.
#pragma once

#include "kernels/attention/sm90_attention_softmax.cuh"
#include "kernels/attention/sm90_wgmma.cuh"

namespace graft_kernels::attention::sm90 {

// Shared memory: queries, a ring of keys, one of values; boxes of 64 columns.
template <int kHead>
struct Layout {
  static constexpr int kD = kHead;
  static constexpr int kQueryTile = sm90_query_tile(kD);
  static constexpr int kKeyTile = 128;
  static constexpr int kGroups = kQueryTile / 64;  // computing warpgroups
  static constexpr int kThreads = (kGroups + 1) * 128;
  static constexpr int kStages = 2;
  static constexpr int kQueryStages = 2;
  // Queries are held in registers where there is room: scores read a third less of shared memory.
  static constexpr bool kQueriesHeld = kD == 128;
  static constexpr int kBoxes = kD / kBoxColumns;
  static constexpr int kQueryBox = kQueryTile * 128;
  static constexpr int kKeyBox = kKeyTile * 128;
  static constexpr int kQueryBytes = kQueryBox * kBoxes;
  static constexpr int kKeyBytes = kKeyBox * kBoxes;
  static constexpr int kKeys = kQueryStages * kQueryBytes;
  static constexpr int kValues = kKeys + kStages * kKeyBytes;
  static constexpr int kBytes = kValues + kStages * kKeyBytes + 1024;  // and alignment
};

// What lies `bytes` behind what is described: addresses are in the lower word.
__device__ __forceinline__ uint64_t behind(uint64_t description, int bytes) {
  return (description & 0xFFFFFFFF00000000U) | (static_cast<uint32_t>(description) + bytes / 16);
}

// The same in all lanes of a warp, and in a register from which the others are derived with one addition each.
__device__ __forceinline__ uint64_t settle(uint64_t description) {
  uint32_t low = static_cast<uint32_t>(description);
  asm volatile("" : "+r"(low));
  return (description & 0xFFFFFFFF00000000U) | __shfl_sync(0xFFFFFFFFU, low, 0);
}

// A warpgroup's 64 queries: fragments where they are held, else where they are in shared memory.
template <class L>
struct Queries {
  uint32_t rows[L::kQueriesHeld ? L::kD / 16 : 1][4];
  const unsigned char* shared;
};

// Queries' fragments of one step of 16 columns, from where a warpgroup's queries are.
template <class L>
__device__ __forceinline__ void load_fragments(uint32_t (&rows)[4], const unsigned char* from,
                                               int step) {
  const int lane = static_cast<int>(threadIdx.x) % 32,
            row = static_cast<int>(threadIdx.x) / 32 % 4 * 16 + lane % 16;
  const int chunk = (step % 4 * 2 + lane / 16) ^ (row % 8);
  load_matrices(rows, from + step / 4 * L::kQueryBox + row * 128 + chunk * 16);
}

template <class L>
__device__ __forceinline__ void load_queries(const unsigned char* from, Queries<L>& queries) {
  if constexpr (L::kQueriesHeld) {
#pragma unroll
    for (int step = 0; step < L::kD / 16; ++step) {
      load_fragments<L>(queries.rows[step], from, step);
    }
  } else {
    queries.shared = from;
  }
}

template <class L>
__device__ __forceinline__ void fence_queries(Queries<L>& queries) {
  if constexpr (L::kQueriesHeld) {
    fence_registers(queries.rows);
  }
}

// scores[64 x keys] = queries keys^T, started.
template <typename T, class L>
__device__ __forceinline__ void start_scores(float (&scores)[L::kKeyTile / 2],
                                             const Queries<L>& queries, uint64_t keys) {
  const uint64_t a = L::kQueriesHeld ? 0 : describe_rows(queries.shared);
#pragma unroll
  for (int step = 0; step < L::kD / 16; ++step) {
    const int box = step / 4, inside = step % 4 * 32;
    const uint64_t b = behind(keys, box * L::kKeyBox + inside);
    if constexpr (L::kQueriesHeld) {
      multiply_registers<T, false>(scores, queries.rows[step], b, step > 0);
    } else {
      multiply_shared<T>(scores, behind(a, box * L::kQueryBox + inside), b, step > 0);
    }
  }
}

// The same of a warp's sixteen rows, by the warp alone: for scores that are needed once more.
template <typename T, class L>
__device__ __forceinline__ void multiply_again(float (&scores)[L::kKeyTile / 2],
                                               const Queries<L>& queries,
                                               const unsigned char* keys) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  float sums[L::kKeyTile / 8][4] = {};
#pragma unroll
  for (int step = 0; step < L::kD / 16; ++step) {
    uint32_t rows[4];
    if constexpr (L::kQueriesHeld) {
#pragma unroll
      for (int index = 0; index < 4; ++index) {
        rows[index] = queries.rows[step][index];
      }
    } else {
      load_fragments<L>(rows, queries.shared, step);
    }
#pragma unroll
    for (int block = 0; block < L::kKeyTile / 8; block += 2) {
      const int key = block * 8 + lane / 16 * 8 + lane % 8;
      const int chunk = (step % 4 * 2 + lane / 8 % 2) ^ (lane % 8);
      uint32_t columns[4];
      load_matrices(columns, keys + step / 4 * L::kKeyBox + key * 128 + chunk * 16);
      multiply<T>(sums[block], rows, columns[0], columns[1]);
      multiply<T>(sums[block + 1], rows, columns[2], columns[3]);
    }
  }
#pragma unroll
  for (int index = 0; index < L::kKeyTile / 2; ++index) {
    scores[index] = sums[index / 4][index % 4];
  }
}

// out[64 x D] += weights[64 x keys] values, started.
template <typename T, class L>
__device__ __forceinline__ void start_values(float (&out)[L::kD / 2],
                                             const uint32_t (&weights)[L::kKeyTile / 16][4],
                                             uint64_t values) {
#pragma unroll
  for (int step = 0; step < L::kKeyTile / 16; ++step) {
    multiply_registers<T>(out, weights[step], behind(values, step * 2048));
  }
}

// Values behind a packed sequence's last key become zeros: they are another's, and zero times what lies
// there may be NaN. By all computing warpgroups.
template <class L>
__device__ __forceinline__ void clear_values(unsigned char* values, int from, int barrier) {
  constexpr int kComputing = L::kGroups * 128, kChunks = L::kD / 8;
  const int thread = static_cast<int>(threadIdx.x) - 128;
  for (int index = thread; index < (L::kKeyTile - from) * kChunks; index += kComputing) {
    const int row = from + index / kChunks, chunk = index % kChunks;
    *reinterpret_cast<uint4*>(values + chunk / 8 * L::kKeyBox + row * 128 + chunk % 8 * 16) = {
        0, 0, 0, 0};
  }
  publish_shared();
  sync_named(barrier, kComputing);
}

template <typename T>
__device__ __forceinline__ float load_sink(const Sinks& sinks, int head) {
  return sinks.is_float ? static_cast<const float*>(sinks.values)[head]
                        : to_float(static_cast<const T*>(sinks.values)[head]);
}

// Word p of lane q of each four becomes word q of lane p.
__device__ __forceinline__ void turn_words(uint32_t (&words)[4]) {
  const bool odd = threadIdx.x % 2 != 0, high = threadIdx.x % 4 / 2 != 0;
#pragma unroll
  for (int pair = 0; pair < 4; pair += 2) {
    const uint32_t other = __shfl_xor_sync(0xFFFFFFFFU, odd ? words[pair] : words[pair + 1], 1);
    words[pair] = odd ? other : words[pair];
    words[pair + 1] = odd ? words[pair + 1] : other;
  }
#pragma unroll
  for (int index = 0; index < 2; ++index) {
    const uint32_t other = __shfl_xor_sync(0xFFFFFFFFU, high ? words[index] : words[index + 2], 2);
    words[index] = high ? other : words[index];
    words[index + 2] = high ? words[index + 2] : other;
  }
}

// What a row's results must take, once its sink has its share; its log-sum-exp is written.
template <typename T>
__device__ __forceinline__ float close_row(const DecodeProblem& problem, const Task& task,
                                           int query, float largest, float sum) {
  const Problem& base = problem.base;
  sum += __shfl_xor_sync(0xFFFFFFFFU, sum, 1);
  sum += __shfl_xor_sync(0xFFFFFFFFU, sum, 2);
  float scaled = 1.0F, origin = origin_of(largest) * base.scale;
  if (problem.sinks.values != nullptr) {
    const float sink = load_sink<T>(problem.sinks, task.head);
    const float together = origin_of(fmaxf(largest * base.scale, sink));
    scaled = sum == 0.0F ? 0.0F : exp2f((origin - together) * kLog2E);
    sum = sum * scaled + exp2f((sink - together) * kLog2E);
    origin = together;
  }
  if (problem.lse != nullptr && threadIdx.x % 4 == 0 && query < task.queries) {
    problem.lse[(task.batch * base.key_heads * base.groups + task.head) * base.queries +
                task.query + query] = sum == 0.0F ? -INFINITY : origin + logf(sum);
  }
  return sum == 0.0F ? 0.0F : scaled / sum;
}

// Results of a warpgroup, 64 bytes of a row together.
template <typename T, class L>
__device__ __forceinline__ void store_out(const DecodeProblem& problem, const Task& task, int group,
                                          const float (&out)[L::kD / 2], const RowState& state) {
  const Problem& base = problem.base;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32 % 4;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int query = task.first_query + group * 64 + warp * 16 + lane / 4 + half * 8;
    const float factor = close_row<T>(problem, task, query, state.largest[half], state.sum[half]);
    T* row = static_cast<T*>(base.out) + task.batch * base.out_stride[0] +
             static_cast<int64_t>(task.query + query) * base.out_stride[1] +
             task.head * base.out_stride[2];
#pragma unroll
    for (int four = 0; four < L::kD / 32; ++four) {
      uint32_t words[4];
#pragma unroll
      for (int tile = 0; tile < 4; ++tile) {
        const int at = (four * 4 + tile) * 4 + half * 2;
        words[tile] = pack<T>(out[at] * factor, out[at + 1] * factor);
      }
      turn_words(words);
      if (query < task.queries) {
        reinterpret_cast<uint4*>(row)[four * 4 + lane % 4] = {words[0], words[1], words[2],
                                                              words[3]};
      }
    }
  }
}

}  // namespace graft_kernels::attention::sm90
