// Which tiles of queries and keys a block of Hopper's attention works on, dense and packed. Device code, no
// Torch.
#pragma once

#include "kernels/attention/attention_train_place.cuh"
#include "kernels/attention/sm90_attention.h"

namespace graft_kernels::attention::sm90 {

// What one block of threads computes: a tile of queries, from first_query, of a sequence and head against tiles [first_tile, first_tile + tiles) of keys, from the last to the first.
struct Task {
  int batch;
  int head;
  int key_head;
  int first_query;
  int first_tile;
  int tiles;
  int query, queries;  // the sequence's first, and how many
  int key, keys;
};

// A block takes task after task. They come with the longest first within as many heads as have their keys in L2 together.
struct Order {
  int query_tiles;
  int heads_together;  // key heads, of all batch entries
  int tasks;
  int* taken;  // tasks taken beyond each block's first; absent where every task has its block
  const PackedTile* packed = nullptr;  // tiles of packed sequences, absent when dense
};

// Keys that a query of a task's sequence sees.
__device__ __forceinline__ int task_end(const DecodeProblem& problem, const Task& task, int query) {
  const int end = task.keys - task.queries + query + 1;
  return problem.base.causal ? max(min(end, task.keys), 0) : task.keys;
}

__device__ __forceinline__ int task_begin(const DecodeProblem& problem, const Task& task,
                                          int query) {
  const int64_t own = static_cast<int64_t>(task.keys) - task.queries + query;
  return problem.window > 0 ? static_cast<int>(max(own - problem.window + 1, int64_t{0})) : 0;
}

// Packed: the tiles of one head after those of another, so that heads share L2.
template <int kQueryTile>
__device__ __forceinline__ Task packed_task(const DecodeProblem& problem, const Order& order,
                                            int number) {
  const PackedTile& tile = order.packed[number % order.query_tiles];
  Task task = {};
  task.head = number / order.query_tiles;
  task.key_head = task.head / static_cast<int>(problem.base.groups);
  task.first_query = tile.tile * kQueryTile;
  task.query = tile.query;
  task.queries = tile.queries;
  task.key = tile.key;
  task.keys = tile.keys;
  return task;
}

template <int kQueryTile, int kKeyTile>
__device__ __forceinline__ void count_tiles(const DecodeProblem& problem, Task& task) {
  const int last = min(task.first_query + kQueryTile, task.queries) - 1;
  const int end = task_end(problem, task, last);
  task.first_tile = min(task_begin(problem, task, task.first_query), end) / kKeyTile;
  task.tiles = last < task.first_query ? 0 : (end + kKeyTile - 1) / kKeyTile - task.first_tile;
}

template <int kQueryTile, int kKeyTile>
__device__ __forceinline__ Task task_of(const DecodeProblem& problem, const Order& order,
                                        int number) {
  Task task;
  if (order.packed != nullptr) {
    task = packed_task<kQueryTile>(problem, order, number);
    count_tiles<kQueryTile, kKeyTile>(problem, task);
    return task;
  }
  const Problem& base = problem.base;
  const int groups = static_cast<int>(base.groups);
  const int all_heads = static_cast<int>(base.batch * base.key_heads);
  const int per_section = order.heads_together * groups * order.query_tiles;
  const int section = number / per_section;
  const int index = number % per_section;
  const int first_head = section * order.heads_together;
  const int section_heads = min(order.heads_together, all_heads - first_head) * groups;
  const int head = first_head * groups + index % section_heads;  // of batch and query heads
  const int key_heads = static_cast<int>(base.key_heads);
  task.batch = head / (groups * key_heads);
  task.head = head % (groups * key_heads);
  task.key_head = task.head / groups;
  task.first_query = (order.query_tiles - 1 - index / section_heads) * kQueryTile;
  task.query = 0;
  task.queries = static_cast<int>(base.queries);
  task.key = 0;
  task.keys = static_cast<int>(base.keys);
  count_tiles<kQueryTile, kKeyTile>(problem, task);
  return task;
}

// Tiles of packed sequences in their order, those that exist first. A warp per tile.
template <int kQueryTile>
__global__ void __launch_bounds__(128)
    attention_packed_tiles_kernel(const __grid_constant__ TrainProblem problem,
                                  const Packing packing, PackedTile* tiles, int count) {
  const int number = static_cast<int>(blockIdx.x * 4 + threadIdx.x / 32);
  if (number >= count) {
    return;
  }
  const Span span = find_span<kQueryTile, false>(problem, packing, number);
  if (threadIdx.x % 32 == 0) {
    tiles[number] = {span.query, span.queries, span.key, span.keys, span.tile};
  }
}

}  // namespace graft_kernels::attention::sm90
