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

// Where a block of keys and values begins, and how many there are.
template <typename T>
struct Block {
  const T* key;
  int64_t key_stride;
  const T* value;
  int64_t value_stride;
  int64_t keys;
};

// The two products of a block of keys, and the queries as they want them.
struct WideProducts {
  static constexpr bool kFetchesAhead = false;  // keys of the next block
  alignas(64) float query[kMaxTaskRows * kMaxHeadDim];

  template <typename T>
  void load_queries(const Problem& problem, const Task& task) {
    for (int64_t row = 0; row < task.rows; ++row) {
      widen_rows(query_of<T>(problem, task, row), 0, 1, problem.head_dim,
                 query + row * padded(problem.head_dim));
    }
  }
  template <typename T>
  void score(const Block<T>& block, int64_t rows, int64_t head_dim, float* scores) {
    score_stream(query, rows, padded(head_dim), block.key, block.key_stride, block.value,
                 block.value_stride, block.keys, head_dim, scores);
  }
  template <typename T>
  void add(const float* weights, const Block<T>& block, int64_t rows, int64_t head_dim, float* sums,
           int64_t sums_stride) {
    add_stream(weights, rows, block.value, block.value_stride, block.keys, head_dim, sums,
               sums_stride);
  }
};

#if defined(__AVX512F__)

struct TileProducts {
  static constexpr bool kFetchesAhead = true;
  TileScratch scratch;

  template <typename T>
  void load_queries(const Problem& problem, const Task& task) {
    const Bf16* queries[kMaxTaskRows];
    for (int64_t row = 0; row < task.rows; ++row) {
      queries[row] = query_of<Bf16>(problem, task, row);
    }
    load_tile_queries(queries, task.rows, problem.head_dim, scratch);
  }
  void score(const Block<Bf16>& block, int64_t, int64_t head_dim, float* scores) {
    score_tiles(block.key, block.key_stride, block.value, block.value_stride, block.keys, head_dim,
                scratch, scores);
  }
  void add(const float* weights, const Block<Bf16>& block, int64_t rows, int64_t head_dim,
           float* sums, int64_t sums_stride) {
    if (head_dim % 32 == 0) {
      add_tiles(weights, rows, block.value, block.value_stride, block.keys, head_dim, scratch, sums,
                sums_stride);
    } else {
      add_stream(weights, rows, block.value, block.value_stride, block.keys, head_dim, sums,
                 sums_stride);
    }
  }
};

#endif

// Scale, cap and masks. Keys that a row does not see, and those beyond the end, become -infinity.
template <typename T>
void finish_scores(const Problem& problem, const Task& task, int64_t row, int64_t first_key,
                   int64_t keys, float* scores) {
  const RowPlace place = place_of(problem, task.key_head, task.first_row + row);
  for (int64_t j = 0; j < kBlockKeys; j += kLanes) {
    Float score = load(scores + j) * splat(problem.scale);
    if (problem.softcap > 0.0F) {
      score = splat(problem.softcap) * tanh(score * splat(1.0F / problem.softcap));
    }
    store(scores + j, score);
  }
  if (problem.mask != nullptr) {
    const int64_t at = task.batch * problem.mask_stride[0] + place.head * problem.mask_stride[1] +
                       place.position * problem.mask_stride[2] + first_key;
    problem.float_mask ? add_mask(static_cast<const float*>(problem.mask) + at, keys, scores)
                       : add_mask(static_cast<const T*>(problem.mask) + at, keys, scores);
  }
  int64_t seen = keys;
  if (problem.causal) {
    const int64_t last = problem.keys - problem.queries + place.position - first_key;
    seen = last < 0 ? 0 : last + 1 < keys ? last + 1 : keys;
  }
  for (int64_t j = seen; j < kBlockKeys; ++j) {
    scores[j] = kMinusInfinity;
  }
}

template <typename Products, typename T>
void run_task(const Problem& problem, const Partial& partial, int64_t index) {
  Scratch scratch;
  Products products;
  const Task task = task_of(problem, index);
  const int64_t head_dim = problem.head_dim;
  products.template load_queries<T>(problem, task);
  for (int64_t row = 0; row < task.rows; ++row) {
    float* held = partial.row(problem, index, row);
    held[0] = kMinusInfinity;
    std::memset(held + 1, 0, static_cast<size_t>(head_dim + 1) * sizeof(float));
  }
  const T* key = static_cast<const T*>(problem.key) + task.batch * problem.key_stride[0] +
                 task.key_head * problem.key_stride[1];
  const T* value = static_cast<const T*>(problem.value) + task.batch * problem.value_stride[0] +
                   task.key_head * problem.value_stride[1];
  for (int64_t done = 0; done < task.keys; done += kBlockKeys) {
    const int64_t first = task.first_key + done, left = task.keys - done - kBlockKeys;
    const Block<T> block = {key + first * problem.key_stride[2], problem.key_stride[2],
                            value + first * problem.value_stride[2], problem.value_stride[2],
                            left < 0 ? task.keys - done : kBlockKeys};
    products.score(block, task.rows, head_dim, scratch.scores);
    for (int64_t row = 0; row < task.rows; ++row) {
      float* scores = scratch.scores + row * kBlockKeys;
      finish_scores<T>(problem, task, row, first, block.keys, scores);
      weigh(scores, partial.row(problem, index, row), head_dim);
    }
    if (left > 0 && !Products::kFetchesAhead) {
      constexpr int64_t kSize = sizeof(T);
      fetch_rows(block.key + kBlockKeys * block.key_stride, block.key_stride * kSize,
                 left < kBlockKeys ? left : kBlockKeys, head_dim * kSize);
    }
    float* sums = partial.row(problem, index, 0) + 2;
    if (are_all_seen(scratch.scores, task.rows, block.keys)) {
      products.add(scratch.scores, block, task.rows, head_dim, sums, partial.stride(problem));
      continue;
    }
    widen_rows(block.value, block.value_stride, block.keys, head_dim, scratch.block);
    for (int64_t row = 0; row < task.rows; ++row) {
      add_values(scratch.scores + row * kBlockKeys, scratch.block, block.keys, head_dim,
                 sums + row * partial.stride(problem));
    }
  }
}

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
  // Fewer rows than this are bound by memory either way.
  constexpr int64_t kTileRows = 8;
  if (problem.dtype == Dtype::kBfloat16 && problem.rows() >= kTileRows && multiplies_tiles()) {
    const TileScope tiles;
    for (int64_t task = begin; task < end; ++task) {
      run_task<TileProducts, Bf16>(problem, partial, task);
    }
    return;
  }
#endif
  with_type(problem.dtype, [&](auto* type) {
    for (int64_t task = begin; task < end; ++task) {
      run_task<WideProducts, std::remove_pointer_t<decltype(type)>>(problem, partial, task);
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
