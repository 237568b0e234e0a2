// Attention of many queries on Hopper: one warpgroup brings tiles with the bulk tensor copy engine, two
// compute 64 queries each on wgmma. The scores of the next tile are computed while the softmax of
// the present one is, and the two warpgroups take turns, so that one's softmax hides behind the
// other's products. Device code, no Torch.
#pragma once

#include "kernels/attention/attention_mma.cuh"
#include "kernels/attention/attention_place.cuh"
#include "kernels/attention/sm90_attention_task.cuh"
#include "kernels/attention/sm90_wgmma.cuh"

namespace graft_kernels::attention::sm90 {

inline constexpr int kStages = 2;
inline constexpr int kThreads = 384;
inline constexpr int kComputeWarps = 8;

// Shared memory: queries, a ring of keys, one of values, results; boxes of 64 columns.
template <int kD>
struct Layout {
  static constexpr int kBoxes = kD / kBoxColumns;
  static constexpr int kQueryBox = kQueryTile * kBoxColumns * 2;
  static constexpr int kKeyBox = kKeyTile * kBoxColumns * 2;
  static constexpr int kQueryBytes = kQueryBox * kBoxes;
  static constexpr int kKeyBytes = kKeyBox * kBoxes;
  static constexpr int kKeys = kQueryBytes;
  static constexpr int kValues = kKeys + kStages * kKeyBytes;
  static constexpr int kOut = kValues + kStages * kKeyBytes;
  static constexpr int kBytes = kOut + kQueryBytes + 1024;  // and alignment
};

struct Barriers {
  uint64_t queries;
  uint64_t queries_free;
  uint64_t keys[kStages];
  uint64_t values[kStages];
  uint64_t keys_free[kStages];
  uint64_t values_free[kStages];
  uint64_t task[kStages];
  uint64_t task_free[kStages];
};

template <int kD>
__device__ __forceinline__ void copy_tile(unsigned char* to, const CUtensorMap* map,
                                          uint64_t* barrier, int row, int head, int batch,
                                          int box_bytes) {
#pragma unroll
  for (int box = 0; box < Layout<kD>::kBoxes; ++box) {
    copy_box(to + box * box_bytes, map, barrier, box * kBoxColumns, row, head, batch);
  }
}

// Stage and phase of the n-th use of a ring.
struct Slot {
  int stage;
  int phase;
  __device__ explicit Slot(int use) : stage(use % kStages), phase(use / kStages % 2) {}
};

// The one thread that takes tasks and starts every copy. Keys run one tile ahead of values, and the
// next task's ahead of its queries.
template <int kD>
__device__ __forceinline__ void produce(const DecodeProblem& problem, const Order& order,
                                        const CUtensorMap* query_map, const CUtensorMap* key_map,
                                        const CUtensorMap* value_map, unsigned char* shared,
                                        Barriers& barriers, int (&numbers)[kStages]) {
  using L = Layout<kD>;
  int used = 0;
  int number = static_cast<int>(blockIdx.x);
  for (int count = 0;; ++count) {
    const Slot own(count);
    wait(&barriers.task_free[own.stage], own.phase ^ 1);
    numbers[own.stage] = number;
    arrive(&barriers.task[own.stage]);
    if (number >= order.tasks) {
      return;
    }
    const Task task = task_of(problem, order, number);
    number = order.taken == nullptr ? order.tasks
                                    : static_cast<int>(gridDim.x) + atomicAdd(order.taken, 1);
    for (int step = 0; step < max(task.tiles, 1); ++step) {
      const Slot slot(used);
      const int row = task.key + (task.first_tile + task.tiles - 1 - step) * kKeyTile;
      if (task.tiles > 0) {
        wait(&barriers.keys_free[slot.stage], slot.phase ^ 1);
        arrive_expecting(&barriers.keys[slot.stage], L::kKeyBytes);
        copy_tile<kD>(shared + L::kKeys + slot.stage * L::kKeyBytes, key_map,
                      &barriers.keys[slot.stage], row, task.key_head, task.batch, L::kKeyBox);
      }
      if (step == 0) {
        wait(&barriers.queries_free, count % 2 ^ 1);
        arrive_expecting(&barriers.queries, L::kQueryBytes);
        copy_tile<kD>(shared, query_map, &barriers.queries, task.query + task.first_query,
                      task.head, task.batch, L::kQueryBox);
      }
      if (task.tiles > 0) {
        wait(&barriers.values_free[slot.stage], slot.phase ^ 1);
        arrive_expecting(&barriers.values[slot.stage], L::kKeyBytes);
        copy_tile<kD>(shared + L::kValues + slot.stage * L::kKeyBytes, value_map,
                      &barriers.values[slot.stage], row, task.key_head, task.batch, L::kKeyBox);
        ++used;
      }
    }
  }
}

// scores[64x128] = queries keys^T, started.
template <typename T, int kD>
__device__ __forceinline__ void start_scores(float (&scores)[64], const unsigned char* queries,
                                             const unsigned char* keys) {
  using L = Layout<kD>;
  const uint64_t a = describe_rows(queries), b = describe_rows(keys);
#pragma unroll
  for (int step = 0; step < kD / 16; ++step) {
    const int box = step / 4, inside = step % 4 * 32;
    multiply_shared<T>(scores, a + (box * L::kQueryBox + inside) / 16,
                       b + (box * L::kKeyBox + inside) / 16, step > 0);
  }
}

// out[64xkD] += weights[64x128] values, started.
template <typename T, int kD>
__device__ __forceinline__ void start_values(float (&out)[kD / 2], const uint32_t (&weights)[8][4],
                                             const unsigned char* values) {
  const uint64_t b = describe_columns(values, Layout<kD>::kKeyBox);
#pragma unroll
  for (int step = 0; step < kKeyTile / 16; ++step) {
    multiply_registers<T>(out, weights[step], b + step * 2048 / 16);
  }
}

// A thread's two rows: lane / 4 and lane / 4 + 8 of its warp's sixteen.
struct RowState {
  float largest[2] = {-INFINITY, -INFINITY};  // of the products, unscaled
  float sum[2] = {};                          // of this thread's columns
};

// Hides keys that the rows may not see.
__device__ __forceinline__ void hide(float (&scores)[64], int first_key, const int (&end)[2]) {
  const int column = first_key + static_cast<int>(threadIdx.x) % 4 * 2;
#pragma unroll
  for (int index = 0; index < 64; ++index) {
    if (column + index / 4 * 8 + index % 2 >= end[index % 4 / 2]) {
      scores[index] = -INFINITY;
    }
  }
}

// Hides keys before those that the rows may see.
__device__ __forceinline__ void hide_before(float (&scores)[64], int first_key,
                                            const int (&begin)[2]) {
  const int column = first_key + static_cast<int>(threadIdx.x) % 4 * 2;
#pragma unroll
  for (int index = 0; index < 64; ++index) {
    if (column + index / 4 * 8 + index % 2 < begin[index % 4 / 2]) {
      scores[index] = -INFINITY;
    }
  }
}

// Values behind a packed sequence's last key become zeros: they are another's, and zero times what lies
// there may be NaN. By both warpgroups.
template <int kD>
__device__ __forceinline__ void clear_values(unsigned char* values, int from) {
  constexpr int kBarrier = 3;
  const int thread = static_cast<int>(threadIdx.x) - 128, chunks = kD / 8;
  for (int index = thread; index < (kKeyTile - from) * chunks; index += 256) {
    const int row = from + index / chunks, chunk = index % chunks;
    *reinterpret_cast<uint4*>(values + chunk / 8 * Layout<kD>::kKeyBox + row * 128 +
                              chunk % 8 * 16) = {0, 0, 0, 0};
  }
  publish_shared();
  sync_named(kBarrier, 256);
}

// Scores become weights relative to the new largest; the factors that earlier sums must take.
__device__ __forceinline__ void softmax(float (&scores)[64], RowState& state, float scale_log2,
                                        float (&factor)[2]) {
  float largest[2] = {state.largest[0], state.largest[1]};
#pragma unroll
  for (int index = 0; index < 64; ++index) {
    largest[index % 4 / 2] = fmaxf(largest[index % 4 / 2], scores[index]);
  }
  float origin[2];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    largest[half] = fmaxf(largest[half], __shfl_xor_sync(0xFFFFFFFFU, largest[half], 1));
    largest[half] = fmaxf(largest[half], __shfl_xor_sync(0xFFFFFFFFU, largest[half], 2));
    origin[half] = origin_of(largest[half]) * scale_log2;
    factor[half] = exp2_fast(state.largest[half] * scale_log2 - origin[half]);
    state.largest[half] = largest[half];
    state.sum[half] *= factor[half];
  }
#pragma unroll
  for (int index = 0; index < 64; ++index) {
    const int half = index % 4 / 2;
    scores[index] = exp2_fast(fmaf(scores[index], scale_log2, -origin[half]));
    state.sum[half] += scores[index];
  }
}

template <typename T>
__device__ __forceinline__ void round_weights(const float (&scores)[64],
                                              uint32_t (&weights)[8][4]) {
#pragma unroll
  for (int step = 0; step < 8; ++step) {
#pragma unroll
    for (int word = 0; word < 4; ++word) {
      weights[step][word] = pack<T>(scores[step * 8 + word * 2], scores[step * 8 + word * 2 + 1]);
    }
  }
}

__device__ __forceinline__ void free_stage(uint64_t* barrier) {
  if (threadIdx.x % 32 == 0) {
    arrive(barrier);
  }
}

// Turns of the two computing warpgroups: products are started by one at a time.
struct Turns {
  static constexpr int kFirst = 1;  // number of the hardware's barrier
  static constexpr int kBoth = 256;
  int own;
  __device__ void begin(int tiles) const {
    if (own == 1 && tiles > 1) {
      arrive_named(kFirst, kBoth);
    }
  }
  __device__ void take() const { sync_named(kFirst + own, kBoth); }
  // The last step's hand-over to the first warpgroup would wait for nobody.
  __device__ void pass(bool last) const {
    if (own == 0 || !last) {
      arrive_named(kFirst + 1 - own, kBoth);
    }
  }
};

template <typename T>
__device__ __forceinline__ float load_sink(const Sinks& sinks, int head) {
  return sinks.is_float ? static_cast<const float*>(sinks.values)[head]
                        : to_float(static_cast<const T*>(sinks.values)[head]);
}

// Result of a warpgroup through shared memory, so that whole rows are written.
template <typename T, int kD>
__device__ __forceinline__ void store_out(const DecodeProblem& problem, const Task& task, int group,
                                          unsigned char* staged, const float (&out)[kD / 2],
                                          RowState& state) {
  using L = Layout<kD>;
  const Problem& base = problem.base;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32 % 4;
  __syncwarp();  // the rows of the task before are out
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    float sum = state.sum[half];
    sum += __shfl_xor_sync(0xFFFFFFFFU, sum, 1);
    sum += __shfl_xor_sync(0xFFFFFFFFU, sum, 2);
    float scaled = 1.0F, origin = origin_of(state.largest[half]) * base.scale;
    if (problem.sinks.values != nullptr) {
      const float sink = load_sink<T>(problem.sinks, task.head);
      const float together = origin_of(fmaxf(state.largest[half] * base.scale, sink));
      scaled = sum == 0.0F ? 0.0F : exp2f((origin - together) * kLog2E);
      sum = sum * scaled + exp2f((sink - together) * kLog2E);
      origin = together;
    }
    const float factor = sum == 0.0F ? 0.0F : scaled / sum;
    const int row = warp * 16 + lane / 4 + half * 8;
    const int64_t query = task.first_query + group * 64 + row;
    if (problem.lse != nullptr && lane % 4 == 0 && query < task.queries) {
      problem.lse[(task.batch * base.key_heads * base.groups + task.head) * base.queries +
                  task.query + query] = sum == 0.0F ? -INFINITY : origin + logf(sum);
    }
#pragma unroll
    for (int tile = 0; tile < kD / 8; ++tile) {
      const uint32_t word =
          pack<T>(out[tile * 4 + half * 2] * factor, out[tile * 4 + half * 2 + 1] * factor);
      const int chunk = (tile % 8) ^ (row % 8);
      *reinterpret_cast<uint32_t*>(staged + tile / 8 * L::kQueryBox + row * 128 + chunk * 16 +
                                   lane % 4 * 4) = word;
    }
  }
  __syncwarp();
  constexpr int kChunks = kD / 8;
#pragma unroll
  for (int index = lane; index < 16 * kChunks; index += 32) {
    const int row = warp * 16 + index / kChunks, column = index % kChunks;
    const int64_t query = task.first_query + group * 64 + row;
    const int chunk = (column % 8) ^ (row % 8);
    const uint4 value = *reinterpret_cast<const uint4*>(staged + column / 8 * L::kQueryBox +
                                                        row * 128 + chunk * 16);
    if (query < task.queries) {
      T* to = static_cast<T*>(base.out) + task.batch * base.out_stride[0] +
              (task.query + query) * base.out_stride[1] + task.head * base.out_stride[2];
      reinterpret_cast<uint4*>(to)[column] = value;
    }
  }
}

// One warpgroup's 64 queries against all tiles of a task; `used` tiles came before.
template <typename T, int kD>
__device__ __forceinline__ void work_task(const DecodeProblem& problem, const Task& task, int group,
                                          int used, int count, bool packed, unsigned char* shared,
                                          Barriers& barriers) {
  using L = Layout<kD>;
  unsigned char* queries = shared + group * 64 * 128;
  const Turns turns{group};
  const float scale_log2 = problem.base.scale * kLog2E;
  const int warp_row = static_cast<int>(threadIdx.x) / 32 % 4 * 16;
  const int row = task.first_query + group * 64 + warp_row + static_cast<int>(threadIdx.x) % 32 / 4;
  const int end[2] = {task_end(problem, task, row), task_end(problem, task, row + 8)};
  const int all_see = task_end(problem, task, task.first_query + group * 64);
  const int begin[2] = {task_begin(problem, task, row), task_begin(problem, task, row + 8)};
  const int all_begin = task_begin(problem, task, task.first_query + group * 64 + 63);
  float out[kD / 2] = {};
  RowState state;
  wait(&barriers.queries, count % 2);
  if (task.tiles == 0) {
    free_stage(&barriers.queries_free);
  } else {
    float scores[64] = {}, factor[2];
    uint32_t weights[8][4];
    turns.begin(task.tiles);
    const Slot first(used);
    wait(&barriers.keys[first.stage], first.phase);
    fence_registers(scores);
    fence_products();
    start_scores<T, kD>(scores, queries, shared + L::kKeys + first.stage * L::kKeyBytes);
    commit_products();
    wait_products<0>();
    fence_registers(scores);
    free_stage(&barriers.keys_free[first.stage]);
    const int last_first = (task.first_tile + task.tiles - 1) * kKeyTile;
    if (last_first + kKeyTile > all_see) {
      hide(scores, last_first, end);
    }
    if (last_first < all_begin) {
      hide_before(scores, last_first, begin);
    }
    if (packed && task.keys - last_first < kKeyTile) {
      wait(&barriers.values[first.stage], first.phase);
      clear_values<kD>(shared + L::kValues + first.stage * L::kKeyBytes, task.keys - last_first);
    }
    softmax(scores, state, scale_log2, factor);
    round_weights<T>(scores, weights);
    for (int step = 1; step < task.tiles; ++step) {
      const Slot now(used + step), before(used + step - 1);
      wait(&barriers.keys[now.stage], now.phase);
      turns.take();
      fence_registers(scores);
      fence_registers(out);
      fence_registers(weights);
      fence_products();
      start_scores<T, kD>(scores, queries, shared + L::kKeys + now.stage * L::kKeyBytes);
      commit_products();
      wait(&barriers.values[before.stage], before.phase);
      start_values<T, kD>(out, weights, shared + L::kValues + before.stage * L::kKeyBytes);
      commit_products();
      turns.pass(step == task.tiles - 1);
      wait_products<1>();
      fence_registers(scores);
      free_stage(&barriers.keys_free[now.stage]);
      const int first_key = (task.first_tile + task.tiles - 1 - step) * kKeyTile;
      if (first_key + kKeyTile > all_see) {
        hide(scores, first_key, end);
      }
      if (first_key < all_begin) {
        hide_before(scores, first_key, begin);
      }
      softmax(scores, state, scale_log2, factor);
      wait_products<0>();
      fence_registers(out);
      free_stage(&barriers.values_free[before.stage]);
      round_weights<T>(scores, weights);
#pragma unroll
      for (int index = 0; index < kD / 2; ++index) {
        out[index] *= factor[index % 4 / 2];
      }
    }
    free_stage(&barriers.queries_free);
    const Slot last(used + task.tiles - 1);
    wait(&barriers.values[last.stage], last.phase);
    fence_registers(out);
    fence_registers(weights);
    fence_products();
    start_values<T, kD>(out, weights, shared + L::kValues + last.stage * L::kKeyBytes);
    commit_products();
    wait_products<0>();
    fence_registers(out);
    free_stage(&barriers.values_free[last.stage]);
  }
  store_out<T, kD>(problem, task, group, shared + L::kOut + group * 64 * 128, out, state);
}

template <typename T, int kD>
__device__ __forceinline__ void consume(const DecodeProblem& problem, const Order& order, int group,
                                        unsigned char* shared, Barriers& barriers,
                                        const int (&numbers)[kStages]) {
  int used = 0;
  for (int count = 0;; ++count) {
    const Slot own(count);
    wait(&barriers.task[own.stage], own.phase);
    const int number = __shfl_sync(0xFFFFFFFFU, numbers[own.stage], 0);
    free_stage(&barriers.task_free[own.stage]);
    if (number >= order.tasks) {
      return;
    }
    const Task task = task_of(problem, order, number);
    work_task<T, kD>(problem, task, group, used, count, order.packed != nullptr, shared, barriers);
    used += task.tiles;
  }
}

template <typename T, int kD>
__global__ void __launch_bounds__(kThreads, 1)
    attention_fwd_sm90_kernel(const __grid_constant__ CUtensorMap query_map,
                              const __grid_constant__ CUtensorMap key_map,
                              const __grid_constant__ CUtensorMap value_map,
                              const __grid_constant__ DecodeProblem problem, const Order order) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  extern __shared__ unsigned char unaligned[];
  __shared__ Barriers barriers;
  __shared__ int numbers[kStages];
  // Swizzled tiles start at multiples of 1024 bytes.
  unsigned char* shared = unaligned + (1024 - shared_address(unaligned) % 1024) % 1024;
  if (threadIdx.x == 0) {
    init_barrier(&barriers.queries, 1);
    init_barrier(&barriers.queries_free, kComputeWarps);
    for (int stage = 0; stage < kStages; ++stage) {
      init_barrier(&barriers.keys[stage], 1);
      init_barrier(&barriers.values[stage], 1);
      init_barrier(&barriers.task[stage], 1);
      init_barrier(&barriers.keys_free[stage], kComputeWarps);
      init_barrier(&barriers.values_free[stage], kComputeWarps);
      init_barrier(&barriers.task_free[stage], kComputeWarps);
    }
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  }
  __syncthreads();
  // The same in all of a warp, which the compiler must know where products are started.
  const int group = __shfl_sync(0xFFFFFFFFU, static_cast<int>(threadIdx.x) / 128, 0);
  if (group == 0) {
    give_registers<24>();
    if (threadIdx.x == 0) {
      produce<kD>(problem, order, &query_map, &key_map, &value_map, shared, barriers, numbers);
    }
  } else {
    take_registers<240>();
    consume<T, kD>(problem, order, group - 1, shared, barriers, numbers);
  }
#endif
}

}  // namespace graft_kernels::attention::sm90
