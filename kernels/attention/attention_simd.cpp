// Attention with the vectors of one instruction set. Compiled once per set: see common/simd.h.
//
// Few rows: keys and values are read once, where they lie, for all rows that share them, as float32
// (attention_stream_simd.h) or in tiles of bfloat16 (attention_tiles_simd.h). The softmax is the running one: a block's largest score
// rescales what was summed before (Milakov and Gimelshein 2018; Dao 2023).

#include <type_traits>

#include "kernels/attention/attention_tiles_simd.h"
#include "kernels/common/isa.h"

namespace graft_kernels::GRAFT_ISA {

namespace {

using attention::kChunkKeys;
using attention::Partial;
using attention::Problem;

// What a block of rows works on. Vectors are padded with zeros to whole lanes.
struct Scratch {
  alignas(64) float query[kMaxTaskRows * kMaxHeadDim];
  alignas(64) float block[kBlockKeys * kMaxHeadDim];  // values that not every row sees
  alignas(64) float scores[kMaxTaskRows * kBlockKeys];
};

// Row r is query position r / groups and head r % groups of its key head.
struct RowPlace {
  int64_t position;
  int64_t head;
};
RowPlace place_of(const Problem& problem, int64_t key_head, int64_t row) {
  return {row / problem.groups, key_head * problem.groups + row % problem.groups};
}

// The part of the work that one task sees.
struct Task {
  int64_t batch, key_head, first_row, rows, first_key, keys;
};

Task task_of(const Problem& problem, int64_t index) {
  const int64_t chunks = problem.chunks(), block = index / chunks;
  Task task;
  task.first_key = index % chunks * kChunkKeys;
  task.keys =
      problem.keys - task.first_key < kChunkKeys ? problem.keys - task.first_key : kChunkKeys;
  task.first_row = block % problem.row_blocks() * kMaxTaskRows;
  task.rows = problem.rows() - task.first_row < kMaxTaskRows ? problem.rows() - task.first_row
                                                             : kMaxTaskRows;
  const int64_t head = block / problem.row_blocks();
  task.batch = head / problem.key_heads;
  task.key_head = head % problem.key_heads;
  if (problem.causal) {
    // Keys that no row of the block sees need no work.
    const int64_t last = (task.first_row + task.rows - 1) / problem.groups;
    const int64_t seen = problem.keys - problem.queries + last + 1 - task.first_key;
    task.keys = seen < 0 ? 0 : seen < task.keys ? seen : task.keys;
  }
  return task;
}

template <typename T>
const T* query_of(const Problem& problem, const Task& task, int64_t row) {
  const RowPlace place = place_of(problem, task.key_head, task.first_row + row);
  return static_cast<const T*>(problem.query) + task.batch * problem.query_stride[0] +
         place.position * problem.query_stride[1] + place.head * problem.query_stride[2];
}

// Keys of a block that begins at first_key that a row sees.
int64_t keys_seen(const Problem& problem, const Task& task, int64_t row, int64_t first_key,
                  int64_t keys) {
  if (!problem.causal) {
    return keys;
  }
  const int64_t position = place_of(problem, task.key_head, task.first_row + row).position;
  const int64_t last = problem.keys - problem.queries + position - first_key;
  return last < 0 ? 0 : last + 1 < keys ? last + 1 : keys;
}

// Scale, cap and mask for a block of `size` scores.
template <typename T>
void bend_scores(const Problem& problem, const Task& task, int64_t row, int64_t first_key,
                 int64_t keys, int64_t size, float* scores) {
  bend(problem, {0, size}, scores, nullptr);
  if (problem.mask != nullptr) {
    const RowPlace place = place_of(problem, task.key_head, task.first_row + row);
    const int64_t at = task.batch * problem.mask_stride[0] + place.head * problem.mask_stride[1] +
                       place.position * problem.mask_stride[2] + first_key;
    problem.float_mask ? add_mask(static_cast<const float*>(problem.mask) + at, keys, scores)
                       : add_mask(static_cast<const T*>(problem.mask) + at, keys, scores);
  }
}

// Keys and values of a task from its first key on.
template <typename T>
struct TaskItems {
  const T *key, *value;
  int64_t key_stride, value_stride;

  TaskItems(const Problem& problem, const Task& task)
      : key(static_cast<const T*>(problem.key) + task.batch * problem.key_stride[0] +
            task.key_head * problem.key_stride[1] + task.first_key * problem.key_stride[2]),
        value(static_cast<const T*>(problem.value) + task.batch * problem.value_stride[0] +
              task.key_head * problem.value_stride[1] + task.first_key * problem.value_stride[2]),
        key_stride(problem.key_stride[2]),
        value_stride(problem.value_stride[2]) {}
};

template <typename T>
void run_task(const Problem& problem, const Partial& partial, int64_t index) {
  Scratch s;
  const Task task = task_of(problem, index);
  const int64_t head_dim = problem.head_dim;
  for (int64_t row = 0; row < task.rows; ++row) {
    widen_rows(query_of<T>(problem, task, row), 0, 1, head_dim, s.query + row * padded(head_dim));
    float* held = partial.row(problem, index, row);
    held[0] = kMinusInfinity;
    std::memset(held + 1, 0, static_cast<size_t>(head_dim + 1) * sizeof(float));
  }
  const TaskItems<T> items(problem, task);
  for (int64_t done = 0; done < task.keys; done += kBlockKeys) {
    const int64_t first = task.first_key + done, left = task.keys - done - kBlockKeys;
    const int64_t keys = left < 0 ? task.keys - done : kBlockKeys;
    const T* key = items.key + done * items.key_stride;
    const T* value = items.value + done * items.value_stride;
    score_stream(s.query, task.rows, padded(head_dim), key, items.key_stride, value,
                 items.value_stride, keys, head_dim, s.scores);
    for (int64_t row = 0; row < task.rows; ++row) {
      float* scores = s.scores + row * kBlockKeys;
      bend_scores<T>(problem, task, row, first, keys, kBlockKeys, scores);
      hide({0, keys_seen(problem, task, row, first, keys)}, 0, {0, kBlockKeys}, scores);
      weigh(scores, partial.row(problem, index, row), head_dim);
    }
    float* sums = partial.row(problem, index, 0) + 2;
    if (are_all_seen(s.scores, task.rows, keys)) {
      add_stream(s.scores, task.rows, value, items.value_stride, keys, head_dim, sums,
                 partial.stride(problem));
      continue;
    }
    widen_rows(value, items.value_stride, keys, head_dim, s.block);
    for (int64_t row = 0; row < task.rows; ++row) {
      add_values(s.scores + row * kBlockKeys, s.block, keys, head_dim,
                 sums + row * partial.stride(problem));
    }
  }
}

#if defined(__AVX512F__)

void run_tile_task(const Problem& problem, const Partial& partial, int64_t index, TileScratch& s) {
  const Task task = task_of(problem, index);
  const int64_t head_dim = problem.head_dim, width = words_of<PairForm>(head_dim) * 2;
  const Bf16* queries[kMaxTaskRows];
  for (int64_t row = 0; row < task.rows; ++row) {
    queries[row] = query_of<Bf16>(problem, task, row);
  }
  load_tile_queries(queries, task.rows, head_dim, s);
  const bool plain = is_plain(problem);
  const float factor = (plain ? problem.scale : 1.0F) * QuickExponential::kUnit;
  const TaskItems<Bf16> items(problem, task);
  for (int64_t done = 0; done < task.keys; done += kTileKeys) {
    const int64_t first = task.first_key + done, left = task.keys - done;
    const int64_t keys = left < kTileKeys ? left : kTileKeys;
    const Bf16* key = items.key + done * items.key_stride;
    const Bf16* value = items.value + done * items.value_stride;
    score_tiles(key, items.key_stride, keys, head_dim, s);
    for (int64_t row = 0; row < task.rows; ++row) {
      float* scores = s.scores + row * kTileKeys;
      if (!plain) {
        bend_scores<Bf16>(problem, task, row, first, keys, kTileKeys, scores);
      }
      const int64_t seen = keys_seen(problem, task, row, first, keys);
      if (seen < kTileKeys) {
        hide({0, seen}, 0, {0, kTileKeys}, scores);
      }
      weigh_tile_row(row, factor, width, s);
    }
    s.shares() ? add_tiles<true>(value, items.value_stride, keys, head_dim, s)
               : add_tiles<false>(value, items.value_stride, keys, head_dim, s);
  }
  for (int64_t row = 0; row < task.rows; ++row) {
    float* held = partial.row(problem, index, row);
    held[0] = s.references[row] / QuickExponential::kUnit;
    held[1] = sum_lanes(load(s.totals + row * kLanes));
    store_tile_sums(s.sums + row * kMaxHeadDim, head_dim, held + 2);
  }
}

#endif

// Rows of one block, summed over their chunks. A row that sees no key becomes zero.
template <typename T>
void merge_block(const Problem& problem, const Partial& partial, int64_t block) {
  const int64_t chunks = problem.chunks(), head_dim = problem.head_dim;
  const Task task = task_of(problem, block * chunks);
  float total[kMaxHeadDim];
  for (int64_t row = 0; row < task.rows; ++row) {
    float largest = kMinusInfinity, sum = 0.0F;
    for (int64_t chunk = 0; chunk < chunks; ++chunk) {
      const float score = partial.row(problem, block * chunks + chunk, row)[0];
      largest = score > largest ? score : largest;
    }
    const float reference = largest == kMinusInfinity ? 0.0F : largest;
    std::memset(total, 0, static_cast<size_t>(head_dim) * sizeof(float));
    for (int64_t chunk = 0; chunk < chunks; ++chunk) {
      const float* held = partial.row(problem, block * chunks + chunk, row);
      const float factor = held[0] == largest ? 1.0F : exp(splat(held[0] - reference))[0];
      sum += factor * held[1];
      for (int64_t i = 0; i < head_dim; ++i) {
        total[i] += factor * held[2 + i];
      }
    }
    const float inverse = sum == 0.0F ? 0.0F : 1.0F / sum;
    const RowPlace place = place_of(problem, task.key_head, task.first_row + row);
    T* out = static_cast<T*>(problem.out) + task.batch * problem.out_stride[0] +
             place.position * problem.out_stride[1] + place.head * problem.out_stride[2];
    store_scaled(out, total, inverse, head_dim);
  }
}

}  // namespace

void attention_tasks(const Problem& problem, const Partial& partial, int64_t begin, int64_t end) {
#if defined(__AVX512F__)
  if (problem.dtype == Dtype::kBfloat16 && multiplies_tiles()) {
    const TileScope tiles;
    TileScratch scratch;
    for (int64_t task = begin; task < end; ++task) {
      run_tile_task(problem, partial, task, scratch);
    }
    return;
  }
#endif
  with_type(problem.dtype, [&](auto* type) {
    for (int64_t task = begin; task < end; ++task) {
      run_task<std::remove_pointer_t<decltype(type)>>(problem, partial, task);
    }
  });
}

void attention_merge(const Problem& problem, const Partial& partial, int64_t begin, int64_t end) {
  with_type(problem.dtype, [&](auto* type) {
    for (int64_t block = begin; block < end; ++block) {
      merge_block<std::remove_pointer_t<decltype(type)>>(problem, partial, block);
    }
  });
}

}  // namespace graft_kernels::GRAFT_ISA
