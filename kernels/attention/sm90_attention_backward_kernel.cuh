// Gradients of attention on Hopper, their tasks, copies and sums for queries: a block of threads holds 128 keys and walks over the queries that
// see them. One warpgroup brings tiles and takes away the gradients of queries, two compute 64 keys
// each on wgmma. Scores are made turned (keys by queries), so that weights and their gradients are
// operands in registers of the products for values and keys; the gradient of queries needs the keys
// of both and goes through shared memory. The next tile's scores run behind this tile's last
// products. Device code, no Torch.
#pragma once

#include "kernels/attention/attention_mma.cuh"
#include "kernels/attention/attention_train_place.cuh"
#include "kernels/attention/sm90_attention_backward.h"
#include "kernels/attention/sm90_wgmma.cuh"

namespace graft_kernels::attention::sm90 {

inline constexpr int kBackwardThreads = 384;
inline constexpr int kBackwardStages = 2;

// Shared memory, in boxes of 64 columns: keys, values; rings of queries, of gradients of results and of
// weights' gradients; sums for queries of each warpgroup; statistics.
template <int kHead>
struct BackwardLayout {
  static constexpr int kD = kHead;
  static constexpr int kTile = static_cast<int>(backward_query_tile(kD));
  static constexpr int kBoxes = kD / kBoxColumns;
  static constexpr int kQueryBox = kTile * 128;
  static constexpr int kQueryBytes = kQueryBox * kBoxes;
  static constexpr int kKeyBox = kBackwardKeys * 128;
  static constexpr int kKeyBytes = kKeyBox * kBoxes;
  static constexpr int kSlopeBox = kTile * 128;
  static constexpr int kSlopeBytes = 2 * kSlopeBox;
  static constexpr int kSumFloats = 64 * 64;  // of a warpgroup
  static constexpr int kStatBytes = kTile * 4;
  static constexpr int kKeys = 0;
  static constexpr int kValues = kKeys + kKeyBytes;
  static constexpr int kQueries = kValues + kKeyBytes;
  static constexpr int kGrads = kQueries + kBackwardStages * kQueryBytes;
  static constexpr int kSlopes = kGrads + kBackwardStages * kQueryBytes;
  static constexpr int kSums = kSlopes + kBackwardStages * kSlopeBytes;
  static constexpr int kLse = kSums + 2 * kSumFloats * 4;
  static constexpr int kDelta = kLse + kBackwardStages * kStatBytes;
  static constexpr int kBytes = kDelta + kBackwardStages * kStatBytes + 1024;  // and alignment
};

struct BackwardBarriers {
  uint64_t keys;
  uint64_t values;
  uint64_t order;  // nobody waits for it
  uint64_t queries[kBackwardStages];
  uint64_t grads[kBackwardStages];
  uint64_t queries_free[kBackwardStages];
  uint64_t grads_free[kBackwardStages];
};

// Barriers of the hardware, by number.
enum NamedBarrier : int {
  kSlopesWritten = 1,  // both warpgroups
  kSumsWritten = 2,    // and 3: a warpgroup and its taker
  kSumsFree = 4,       // and 5
  kTailCleared = 6,    // both warpgroups
  kGroupDone = 7,      // and 8: one warpgroup
};

// 128 keys of a head and the tiles of queries, of each head that shares it, that see some of them.
struct BackwardTask {
  Span span;
  int key_head;
  int first_key;   // in the sequence
  int begin, end;  // tiles of queries
  bool down;       // from the last tile to the first
  int first_tile;  // the sequence's first row of sums and statistics
};

template <int kD, bool kPacked>
__device__ __forceinline__ BackwardTask backward_task(const BackwardCall& call) {
  constexpr int kTile = BackwardLayout<kD>::kTile;
  const Problem& base = call.problem.base;
  const int key_heads = static_cast<int>(base.key_heads);
  const int all_heads = static_cast<int>(base.batch) * key_heads;
  const int per_section = call.heads_together * call.key_tiles;
  const int section = static_cast<int>(blockIdx.x) / per_section;
  const int index = static_cast<int>(blockIdx.x) % per_section;
  const int first_head = section * call.heads_together;
  const int section_heads = min(call.heads_together, all_heads - first_head);
  const int head = first_head + index % section_heads, tile = index / section_heads;
  BackwardTask task;
  task.key_head = head % key_heads;
  if constexpr (kPacked) {
    task.span = find_span<kBackwardKeys, true>(call.problem, call.packing, tile);
  } else {
    task.span = {head / key_heads,
                 0,
                 static_cast<int>(base.queries),
                 0,
                 static_cast<int>(base.keys),
                 tile,
                 0,
                 true};
  }
  task.first_key = task.span.tile * kBackwardKeys;
  const Sight rows = queries_seeing(call.problem, task.span, task.first_key, kBackwardKeys);
  task.begin = rows.begin / kTile;
  task.end = rows.begin < rows.end ? (rows.end + kTile - 1) / kTile : task.begin;
  task.down = call.down;
  task.first_tile = task.span.query / kTile + task.span.sequence;
  return task;
}

// The tiles of queries of a task, one after another.
struct Walk {
  int head;  // of those that share the key
  int tile;
  int slot = 0;
  int phase = 0;
  __device__ explicit Walk(const BackwardTask& task)
      : head(0), tile(task.down ? task.end - 1 : task.begin) {}
  __device__ void step(const BackwardTask& task) {
    if (task.down ? tile-- == task.begin : ++tile == task.end) {
      tile = task.down ? task.end - 1 : task.begin;
      ++head;
    }
    slot ^= 1;
    phase ^= slot == 0 ? 1 : 0;
  }
};

__device__ __forceinline__ int64_t row_of_tile(const BackwardCall& call, const BackwardTask& task,
                                               const Walk& walk) {
  const Problem& base = call.problem.base;
  const int64_t head = task.key_head * base.groups + walk.head;
  return (task.span.batch * base.key_heads * base.groups + head) * call.query_tiles +
         task.first_tile + walk.tile;
}

// The one thread that starts every copy: tiles, and the statistics of their rows.
template <int kD>
__device__ __forceinline__ void bring_tiles(const BackwardCall& call, const BackwardTask& task,
                                            const CUtensorMap* query_map,
                                            const CUtensorMap* grad_map, const CUtensorMap* key_map,
                                            const CUtensorMap* value_map, unsigned char* shared,
                                            BackwardBarriers& barriers) {
  using L = BackwardLayout<kD>;
  const Span& span = task.span;
  const auto copy = [&](int to, const CUtensorMap* map, uint64_t* barrier, int row, int head,
                        int box_bytes) {
#pragma unroll
    for (int box = 0; box < L::kBoxes; ++box) {
      copy_box(shared + to + box * box_bytes, map, barrier, box * kBoxColumns, row, head,
               span.batch);
    }
  };
  const int groups = static_cast<int>(call.problem.base.groups);
  const int steps = (task.end - task.begin) * groups;
  arrive_expecting(&barriers.keys, L::kKeyBytes);
  copy(L::kKeys, key_map, &barriers.keys, span.key + task.first_key, task.key_head, L::kKeyBox);
  Walk walk(task);
  for (int step = 0; step < steps; ++step, walk.step(task)) {
    const int head = task.key_head * groups + walk.head;
    const int row = span.query + walk.tile * L::kTile;
    const int64_t first = row_of_tile(call, task, walk) * L::kTile;
    wait(&barriers.queries_free[walk.slot], walk.phase ^ 1);
    arrive_expecting(&barriers.queries[walk.slot], L::kQueryBytes + L::kStatBytes);
    copy(L::kQueries + walk.slot * L::kQueryBytes, query_map, &barriers.queries[walk.slot], row,
         head, L::kQueryBox);
    copy_bytes(shared + L::kLse + walk.slot * L::kStatBytes, call.lse + first,
               &barriers.queries[walk.slot], L::kStatBytes);
    if (step == 0) {
      arrive_expecting(&barriers.values, L::kKeyBytes);
      copy(L::kValues, value_map, &barriers.values, span.key + task.first_key, task.key_head,
           L::kKeyBox);
    }
    wait(&barriers.grads_free[walk.slot], walk.phase ^ 1);
    arrive_expecting(&barriers.grads[walk.slot], L::kQueryBytes + L::kStatBytes);
    copy(L::kGrads + walk.slot * L::kQueryBytes, grad_map, &barriers.grads[walk.slot], row, head,
         L::kQueryBox);
    copy_bytes(shared + L::kDelta + walk.slot * L::kStatBytes, call.delta + first,
               &barriers.grads[walk.slot], L::kStatBytes);
  }
  if (steps == 0) {
    arrive_expecting(&barriers.values, L::kKeyBytes);
    copy(L::kValues, value_map, &barriers.values, span.key + task.first_key, task.key_head,
         L::kKeyBox);
  }
}

// How many tiles of keys add to a tile of queries before this one does.
template <int kD>
__device__ __forceinline__ int turn_of(const TrainProblem& problem, const BackwardTask& task,
                                       int tile) {
  int first = 0;
  if (problem.window > 0) {
    const int64_t key = static_cast<int64_t>(tile) * BackwardLayout<kD>::kTile + task.span.keys -
                        task.span.queries - problem.window + 1;
    first = static_cast<int>(max(key, int64_t{0}) / kBackwardKeys);
  }
  return task.span.tile - first;
}

__device__ __forceinline__ int load_acquired(const int32_t* from) {
  int value;
  asm volatile("ld.acquire.gpu.global.s32 %0, [%1];" : "=r"(value) : "l"(from) : "memory");
  return value;
}

__device__ __forceinline__ void store_released(int32_t* to, int value) {
  asm volatile("st.release.gpu.global.s32 [%0], %1;" ::"l"(to), "r"(value) : "memory");
}

// A warp that adds one warpgroup's gradients of queries to their sums.
template <int kD>
__device__ __forceinline__ void take_sums(const BackwardCall& call, const BackwardTask& task,
                                          int group, const unsigned char* shared) {
  using L = BackwardLayout<kD>;
  constexpr int kThreads = 160;
  const float* sums = reinterpret_cast<const float*>(shared + L::kSums) + group * L::kSumFloats;
  const int steps = (task.end - task.begin) * static_cast<int>(call.problem.base.groups);
  Walk walk(task);
  if (steps > 0) {
    arrive_named(kSumsFree + group, kThreads);
  }
  for (int step = 0; step < steps; ++step, walk.step(task)) {
    sync_named(kSumsWritten + group, kThreads);
    if (threadIdx.x % 32 == 0) {
      publish_shared();  // for the 128 threads that wrote: the barrier lies between, and they need not wait
      const int64_t row = row_of_tile(call, task, walk);
      int32_t* turns = call.turns == nullptr ? nullptr : call.turns + row * 2 + group;
      const int own = turns == nullptr ? 0 : turn_of<kD>(call.problem, task, walk.tile);
      while (turns != nullptr && load_acquired(turns) != own) {
        __nanosleep(64);
      }
      add_bytes(call.query_sums + (row * 2 + group) * L::kSumFloats, sums, L::kSumFloats * 4);
      wait_additions_read();
      if (turns != nullptr) {
        wait_additions();
        __threadfence();
        store_released(turns, own + 1);
      }
    }
    __syncwarp();
    if (step + 1 < steps) {
      arrive_named(kSumsFree + group, kThreads);
    }
  }
}

}  // namespace graft_kernels::attention::sm90
