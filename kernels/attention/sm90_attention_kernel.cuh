// Attention of many queries on Hopper: one warpgroup brings tiles with the bulk tensor copy engine, two or
// three compute 64 queries each on wgmma. The scores of the next tile are computed while the softmax of
// the present one is, and the warpgroups take turns, so that one's softmax hides behind the
// others' products. Device code, no Torch.
#pragma once

#include "kernels/attention/sm90_attention_tile.cuh"

namespace graft_kernels::attention::sm90 {

inline constexpr int kTasksAhead = 2;

template <class L>
struct Barriers {
  uint64_t queries[L::kQueryStages];
  uint64_t queries_free[L::kQueryStages];
  uint64_t keys[L::kStages];
  uint64_t values[L::kStages];
  uint64_t keys_free[L::kStages];
  uint64_t values_free[L::kStages];
  uint64_t order;  // nobody waits for it
  uint64_t task[kTasksAhead];
  uint64_t task_free[kTasksAhead];
};

template <class L>
__device__ __forceinline__ void copy_tile(unsigned char* to, const CUtensorMap* map,
                                          uint64_t* barrier, int row, int head, int batch,
                                          int box_bytes) {
#pragma unroll
  for (int box = 0; box < L::kBoxes; ++box) {
    copy_box(to + box * box_bytes, map, barrier, box * kBoxColumns, row, head, batch);
  }
}

template <int kStages>
using Slot = graft_kernels::sm90::RingSlot<kStages>;

// The one thread that takes tasks, says what they are, and starts every copy.
template <class L>
struct Producer {
  const DecodeProblem& problem;
  const Order& order;
  const CUtensorMap *query_map, *key_map, *value_map;
  unsigned char* shared;
  Barriers<L>& barriers;
  Task (&tasks)[kTasksAhead];

  __device__ __forceinline__ void bring_queries(const Task& task,
                                                const Slot<L::kQueryStages>& slot) const {
    wait(&barriers.queries_free[slot.stage], slot.phase ^ 1);
    arrive_expecting(&barriers.queries[slot.stage], L::kQueryBytes);
    copy_tile<L>(shared + slot.stage * L::kQueryBytes, query_map, &barriers.queries[slot.stage],
                 task.query + task.first_query, task.head, task.batch, L::kQueryBox);
  }

  __device__ __forceinline__ void bring(const Task& task, const CUtensorMap* map, int ring,
                                        uint64_t* ready, uint64_t* free, int row,
                                        const Slot<L::kStages>& slot) const {
    wait(&free[slot.stage], slot.phase ^ 1);
    arrive_expecting(&ready[slot.stage], L::kKeyBytes);
    copy_tile<L>(shared + ring + slot.stage * L::kKeyBytes, map, &ready[slot.stage], row,
                 task.key_head, task.batch, L::kKeyBox);
  }

  __device__ __forceinline__ void run() const {
    Slot<L::kStages> slot;
    Slot<kTasksAhead> own;
    Slot<L::kQueryStages> queries;
    int number = static_cast<int>(blockIdx.x);
    for (;; own.step(), queries.step()) {
      Task& task = tasks[own.stage];
      wait(&barriers.task_free[own.stage], own.phase ^ 1);
      if (number >= order.tasks) {
        task.tiles = -1;
        arrive(&barriers.task[own.stage]);
        return;
      }
      task = task_of<L::kQueryTile, L::kKeyTile>(problem, order, number);
      arrive(&barriers.task[own.stage]);
      number = order.taken == nullptr ? order.tasks
                                      : static_cast<int>(gridDim.x) + atomicAdd(order.taken, 1);
      bring_queries(task, queries);
      for (int step = 0; step < task.tiles; ++step, slot.step()) {
        const int row = task.key + (task.first_tile + task.tiles - 1 - step) * L::kKeyTile;
        bring(task, key_map, L::kKeys, barriers.keys, barriers.keys_free, row, slot);
        bring(task, value_map, L::kValues, barriers.values, barriers.values_free, row, slot);
      }
    }
  }
};

__device__ __forceinline__ void free_stage(uint64_t* barrier) {
  if (threadIdx.x % 32 == 0) {
    arrive(barrier);
  }
}

// Barriers of the hardware, by number.
enum PromptBarrier : int {
  kTurn = 1,           // and 2, 3: a warpgroup and the one before it
  kValuesCleared = 4,  // all computing warpgroups
};

// Turns of the computing warpgroups: products are started by one at a time.
template <int kGroups>
struct Turns {
  static constexpr int kBoth = 256;
  int own;
  __device__ __forceinline__ void begin(int tiles) const {
    if (own == kGroups - 1 && tiles > 1) {
      arrive_named(kTurn, kBoth);
    }
  }
  __device__ __forceinline__ void take() const { sync_named(kTurn + own, kBoth); }
  // The last step's hand-over to the first warpgroup would wait for nobody.
  __device__ __forceinline__ void pass(bool last) const {
    if (own < kGroups - 1 || !last) {
      arrive_named(kTurn + (own == kGroups - 1 ? 0 : own + 1), kBoth);
    }
  }
};

// Passes over a task's first tiles, where these rows see none of their keys, and says how many: their turns pass unused.
// One is left in any case, and all of them where a sequence's end is inside a tile, which all warpgroups clear.
template <class L>
__device__ __forceinline__ int skip_tiles(const RowSight& sight, const Task& task, int tiles,
                                          int last_tile, bool packed,
                                          const Turns<L::kGroups>& turns, Slot<L::kStages>& slot,
                                          Barriers<L>& barriers) {
  const bool cleared = packed && task.keys < (last_tile + 1) * L::kKeyTile;
  const int seen = (sight.last_end + L::kKeyTile - 1) / L::kKeyTile;
  const int unseen = cleared ? 0 : min(max(last_tile + 1 - seen, 0), tiles - 1);
  const int count = __shfl_sync(0xFFFFFFFFU, unseen, 0);
  for (int step = 0; step < count; ++step, slot.step()) {
    wait(&barriers.keys[slot.stage], slot.phase);
    if (step > 0) {
      turns.take();
      turns.pass(false);
    }
    free_stage(&barriers.keys_free[slot.stage]);
    wait(&barriers.values[slot.stage], slot.phase);
    free_stage(&barriers.values_free[slot.stage]);
  }
  return count;
}

// One warpgroup's 64 queries against all tiles of a task; `slot` is the first one's.
template <typename T, class L>
__device__ __forceinline__ void work_task(const DecodeProblem& problem, const Task& task, int tiles,
                                          int group, Slot<L::kStages>& slot,
                                          const Slot<L::kQueryStages>& own, bool packed,
                                          unsigned char* shared, Barriers<L>& barriers) {
  constexpr int kTile = L::kKeyTile;
  const Turns<L::kGroups> turns{group};
  const float scale_log2 = problem.base.scale * kLog2E;
  const RowSight sight = row_sight(problem, task, group);
  const int last_tile = __shfl_sync(0xFFFFFFFFU, task.first_tile, 0) + tiles - 1;
  const auto first_key = [&](int step) { return (last_tile - step) * kTile; };
  const uint64_t first_keys = settle(describe_rows(shared + L::kKeys));
  const uint64_t first_values = settle(describe_columns(shared + L::kValues, L::kKeyBox));
  // Three warpgroups have no registers left for what is the same in all steps.
  const auto keys_of = [&](int stage) {
    return L::kQueriesHeld ? behind(first_keys, stage * L::kKeyBytes)
                           : describe_rows(shared + L::kKeys + stage * L::kKeyBytes);
  };
  const auto values_of = [&](int stage) {
    return L::kQueriesHeld
               ? behind(first_values, stage * L::kKeyBytes)
               : describe_columns(shared + L::kValues + stage * L::kKeyBytes, L::kKeyBox);
  };
  float out[L::kD / 2] = {};
  RowState state;
  wait(&barriers.queries[own.stage], own.phase);
  if (tiles == 0) {
    free_stage(&barriers.queries_free[own.stage]);
    return store_out<T, L>(problem, task, group, out, state);
  }
  Queries<L> queries;
  load_queries<L>(shared + own.stage * L::kQueryBytes + group * 64 * 128, queries);
  if constexpr (L::kQueriesHeld) {
    __syncwarp();  // all lanes have read
    free_stage(&barriers.queries_free[own.stage]);
  }
  float scores[kTile / 2] = {};
  uint32_t weights[kTile / 16][4];
  turns.begin(tiles);
  int first = 0;
  // Tiles of queries that are longer than those of keys: the first rows may see none of the last keys.
  if constexpr (L::kQueryTile > kTile) {
    first = skip_tiles<L>(sight, task, tiles, last_tile, packed, turns, slot, barriers);
  }
  wait(&barriers.keys[slot.stage], slot.phase);
  if (first > 0) {
    turns.take();
  }
  fence_registers(scores);
  fence_queries(queries);
  fence_products();
  start_scores<T, L>(scores, queries, keys_of(slot.stage));
  commit_products();
  if (first > 0) {
    turns.pass(first == tiles - 1);
  }
  wait_products<0>();
  fence_registers(scores);
  free_stage(&barriers.keys_free[slot.stage]);
  if (packed && task.keys - first_key(0) < kTile) {
    wait(&barriers.values[slot.stage], slot.phase);
    clear_values<L>(shared + L::kValues + slot.stage * L::kKeyBytes, task.keys - first_key(0),
                    kValuesCleared);
  }
  // Scores of which rows may not see all: their largest ones are looked for before they become weights.
  const auto weigh_hidden = [&](int step, float slack) {
    hide(scores, first_key(step), sight);
    const RowOrigin origin = find_origin(scores, state, scale_log2, slack);
    weigh(scores, state, scale_log2, origin);
    return origin;
  };
  weigh_hidden(first, 0.0F);
  round_operand<T>(scores, weights);
  // Starts scores of a step's keys and results of the last one's, whose weights are ready and whose place is returned.
  const auto start_step = [&](int step) {
    const Slot<L::kStages> before = slot;
    slot.step();
    if (group == 0) {  // the others' turns come after its waits
      wait(&barriers.keys[slot.stage], slot.phase);
    }
    turns.take();
    fence_registers(scores);
    fence_registers(out);
    fence_registers(weights);
    fence_queries(queries);
    fence_products();
    start_scores<T, L>(scores, queries, keys_of(slot.stage));
    commit_products();
    if (group == 0) {
      wait(&barriers.values[before.stage], before.phase);
    }
    start_values<T, L>(out, weights, values_of(before.stage));
    commit_products();
    turns.pass(step == tiles - 1);
    wait_products<1>();
    fence_registers(scores);
    return before;
  };
  const auto finish_values = [&](int stage) {
    wait_products<0>();
    fence_registers(out);
    free_stage(&barriers.values_free[stage]);
  };
  const auto advance_hidden = [&](int step) {
    const Slot<L::kStages> before = start_step(step);
    free_stage(&barriers.keys_free[slot.stage]);
    const RowOrigin origin = weigh_hidden(step, kSlack);
    finish_values(before.stage);
    round_operand<T>(scores, weights);
    if (origin.moved) {
      measure_again(out, origin);
    }
  };
  // All rows see all keys: scores become weights at once, measured against what rows were before. Says whether weights
  // of some row have grown too large; then they and the scores are lost.
  const auto advance_seen = [&](int step) {
    const Slot<L::kStages> before = start_step(step);
    constexpr int kColumns = kTile / 4;  // of a thread
    TileSums sums;
    weigh_columns<0, kColumns>(scores, sums, scale_log2, state.origin[0], 0);
    if constexpr (L::kQueriesHeld) {
      // One row's exponentials hide behind this warpgroup's last products, the other's behind the other warpgroup's.
      if (threadIdx.x % 32 == 0) {
        arrive_behind(&barriers.order, sums.of(0));
      }
      finish_values(before.stage);
    }
    weigh_columns<0, kColumns>(scores, sums, scale_log2, state.origin[1], 1);
    if constexpr (!L::kQueriesHeld) {
      finish_values(before.stage);
    }
    round_operand<T>(scores, weights);
    if (__any_sync(0xFFFFFFFFU, sums.have_grown())) {
      return true;
    }
    state.sum[0] += sums.of(0);
    state.sum[1] += sums.of(1);
    free_stage(&barriers.keys_free[slot.stage]);
    return false;
  };
  // Makes a step's weights from its keys once more, which are still there, where scores have grown too far.
  const auto repair = [&](int step) {
    multiply_again<T, L>(scores, queries, shared + L::kKeys + slot.stage * L::kKeyBytes);
    free_stage(&barriers.keys_free[slot.stage]);
    measure_again(out, weigh_hidden(step, 0.0F));
    round_operand<T>(scores, weights);
  };
  const int seen_from = max(last_tile - sight.all_end / kTile + 1, 1);  // steps, of all rows
  const int seen_to = last_tile - (sight.all_begin + kTile - 1) / kTile + 1;
  for (int step = first + 1; step < tiles;) {
    if (step < seen_from || step >= seen_to) {
      advance_hidden(step++);
      continue;
    }
    bool grown = false;
#pragma unroll 1
    for (const int end = min(seen_to, tiles); step < end && !grown; ++step) {
      grown = advance_seen(step);
    }
    if (grown) {
      repair(step - 1);
    }
  }
  if constexpr (!L::kQueriesHeld) {
    free_stage(&barriers.queries_free[own.stage]);
  }
  wait(&barriers.values[slot.stage], slot.phase);
  fence_registers(out);
  fence_registers(weights);
  fence_products();
  start_values<T, L>(out, weights, values_of(slot.stage));
  commit_products();
  wait_products<0>();
  fence_registers(out);
  free_stage(&barriers.values_free[slot.stage]);
  slot.step();
  store_out<T, L>(problem, task, group, out, state);
}

template <typename T, class L>
__device__ __forceinline__ void consume(const DecodeProblem& problem, bool packed, int group,
                                        unsigned char* shared, Barriers<L>& barriers,
                                        const Task (&tasks)[kTasksAhead]) {
  Slot<L::kStages> slot;
  Slot<kTasksAhead> own;
  Slot<L::kQueryStages> queries;
  for (;; own.step(), queries.step()) {
    wait(&barriers.task[own.stage], own.phase);
    const int tiles = __shfl_sync(0xFFFFFFFFU, tasks[own.stage].tiles, 0);
    if (tiles < 0) {
      return;
    }
    work_task<T, L>(problem, tasks[own.stage], tiles, group, slot, queries, packed, shared,
                    barriers);
    __syncwarp();  // all lanes read tasks
    free_stage(&barriers.task_free[own.stage]);
  }
}

template <typename T, class L>
__global__ void __launch_bounds__(L::kThreads, 1)
    attention_fwd_sm90_kernel(const __grid_constant__ CUtensorMap query_map,
                              const __grid_constant__ CUtensorMap key_map,
                              const __grid_constant__ CUtensorMap value_map,
                              const __grid_constant__ DecodeProblem problem, const Order order) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  constexpr int kWarps = L::kGroups * 4;
  extern __shared__ __align__(1024) unsigned char shared[];  // where swizzled tiles may start
  __shared__ Barriers<L> barriers;
  __shared__ Task tasks[kTasksAhead];
  if (threadIdx.x == 0) {
    for (int stage = 0; stage < L::kQueryStages; ++stage) {
      init_barrier(&barriers.queries[stage], 1);
      init_barrier(&barriers.queries_free[stage], kWarps);
    }
    for (int stage = 0; stage < L::kStages; ++stage) {
      init_barrier(&barriers.keys[stage], 1);
      init_barrier(&barriers.values[stage], 1);
      init_barrier(&barriers.keys_free[stage], kWarps);
      init_barrier(&barriers.values_free[stage], kWarps);
    }
    init_barrier(&barriers.order, kWarps);
    for (int stage = 0; stage < kTasksAhead; ++stage) {
      init_barrier(&barriers.task[stage], 1);
      init_barrier(&barriers.task_free[stage], kWarps);
    }
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  }
  __syncthreads();
  // The same in all of a warp, which the compiler must know where products are started.
  const int group = __shfl_sync(0xFFFFFFFFU, static_cast<int>(threadIdx.x) / 128, 0);
  if (group == 0) {
    give_registers<L::kGroups == 3 ? 32 : 24>();
    if (threadIdx.x == 0) {
      Producer<L>{problem, order, &query_map, &key_map, &value_map, shared, barriers, tasks}.run();
    }
  } else {
    take_registers<L::kGroups == 3 ? 160 : 240>();
    consume<T, L>(problem, order.packed != nullptr, group - 1, shared, barriers, tasks);
  }
#endif
}

}  // namespace graft_kernels::attention::sm90
