// Attention with the vectors of one instruction set. Compiled once per set: see common/simd.h.
//
// Keys and values are widened to float32 in small blocks that stay in the first-level cache and are
// used for every row that shares them. The softmax is the running one: a block's largest score
// rescales what was summed before (Milakov and Gimelshein 2018; Dao 2023).

#include <type_traits>

#include "kernels/attention/attention.h"
#include "kernels/common/simd.h"
#include "kernels/common/simd_math.h"

namespace graft_kernels::GRAFT_ISA {

namespace {

using attention::kChunkKeys;
using attention::kMaxHeadDim;
using attention::kMaxTaskRows;
using attention::Partial;
using attention::Problem;

constexpr int64_t kBlockKeys = 32;
constexpr float kMinusInfinity = -__builtin_inff();
// The weight of a masked key. It is zero and its sign says that the value must not be read: there may
// be no number there.
constexpr float kMaskedWeight = -0.0F;

// Sums of the lanes of four vectors.
void sum_four(Float a, Float b, Float c, Float d, float* sums) {
#if defined(__AVX2__)
#if defined(__AVX512F__)
  const auto fold = [](Float x) {
    return _mm256_add_ps(_mm512_castps512_ps256((__m512)x), _mm512_extractf32x8_ps((__m512)x, 1));
  };
#else
  const auto fold = [](Float x) { return (__m256)x; };
#endif
  const __m256 pairs =
      _mm256_hadd_ps(_mm256_hadd_ps(fold(a), fold(b)), _mm256_hadd_ps(fold(c), fold(d)));
  _mm_storeu_ps(sums, _mm_add_ps(_mm256_castps256_ps128(pairs), _mm256_extractf128_ps(pairs, 1)));
#else
  sums[0] = sum_lanes(a);
  sums[1] = sum_lanes(b);
  sums[2] = sum_lanes(c);
  sums[3] = sum_lanes(d);
#endif
}

// What a block of rows works on. Vectors are padded with zeros to whole lanes.
struct Scratch {
  alignas(64) float query[kMaxTaskRows * kMaxHeadDim];
  alignas(64) float block[kBlockKeys * kMaxHeadDim];  // keys, then values
  alignas(64) float scores[kMaxTaskRows * kBlockKeys];
};

int64_t padded(int64_t head_dim) { return (head_dim + kLanes - 1) / kLanes * kLanes; }

// `count` rows of `size` elements as float32, `stride` elements apart.
template <typename T>
void widen_rows(const T* from, int64_t stride, int64_t count, int64_t size, float* to) {
  const int64_t width = padded(size);
  for (int64_t row = 0; row < count; ++row, from += stride, to += width) {
    int64_t i = 0;
    for (; i + kLanes <= size; i += kLanes) {
      store(to + i, load<T>(from + i));
    }
    if (i < size) {
      store(to + i, load_partial<T>(from + i, size - i));
    }
  }
}

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
void load_queries(const Problem& problem, const Task& task, float* query) {
  const int64_t width = padded(problem.head_dim);
  for (int64_t row = 0; row < task.rows; ++row) {
    const RowPlace place = place_of(problem, task.key_head, task.first_row + row);
    const T* from = static_cast<const T*>(problem.query) + task.batch * problem.query_stride[0] +
                    place.position * problem.query_stride[1] + place.head * problem.query_stride[2];
    widen_rows(from, 0, 1, problem.head_dim, query + row * width);
  }
}

// scores[row][key] = query . key for whole blocks of keys; what lies beyond `keys` is not read later.
void multiply_keys(const float* query, int64_t rows, const float* keys, int64_t width,
                   float* scores) {
  for (int64_t row = 0; row < rows; ++row, query += width, scores += kBlockKeys) {
    for (int64_t j = 0; j < kBlockKeys; j += 4) {
      const float* key = keys + j * width;
      Float sums[4] = {Float{}, Float{}, Float{}, Float{}};
      for (int64_t i = 0; i < width; i += kLanes) {
        const Float factor = load(query + i);
#pragma GCC unroll 4
        for (int k = 0; k < 4; ++k) {
          sums[k] = multiply_add(factor, load(key + k * width + i), sums[k]);
        }
      }
      sum_four(sums[0], sums[1], sums[2], sums[3], scores + j);
    }
  }
}

template <typename M>
void add_mask(const Problem& problem, const Task& task, RowPlace place, int64_t first_key,
              int64_t keys, float* scores) {
  const M* mask = static_cast<const M*>(problem.mask) + task.batch * problem.mask_stride[0] +
                  place.head * problem.mask_stride[1] + place.position * problem.mask_stride[2] +
                  first_key;
  for (int64_t j = 0; j < keys; ++j) {
    const float bias = load_partial<M>(mask + j, 1)[0];
    scores[j] = bias == kMinusInfinity ? kMinusInfinity : scores[j] + bias;
  }
}

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
    problem.float_mask ? add_mask<float>(problem, task, place, first_key, keys, scores)
                       : add_mask<T>(problem, task, place, first_key, keys, scores);
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

void scale_row(float* row, float factor, int64_t size) {
  int64_t i = 0;
  for (; i + kLanes <= size; i += kLanes) {
    store(row + i, load(row + i) * splat(factor));
  }
  for (; i < size; ++i) {
    row[i] *= factor;
  }
}

// Turns scores into weights against the row's running maximum and rescales what it holds.
// partial: largest score, sum of weights, weighted values.
void weigh(float* scores, float* partial, int64_t head_dim) {
  Float most = splat(partial[0]);
  for (int64_t j = 0; j < kBlockKeys; j += kLanes) {
    const Float score = load(scores + j);
    most = select(score > most, score, most);  // a NaN is not larger
  }
  float largest = most[0];
  for (int lane = 1; lane < kLanes; ++lane) {
    largest = most[lane] > largest ? most[lane] : largest;
  }
  // Where everything is masked so far, any finite reference gives zero weights.
  const float reference = largest == kMinusInfinity ? 0.0F : largest;
  Float sum = {};
  for (int64_t j = 0; j < kBlockKeys; j += kLanes) {
    const Float score = load(scores + j);
    const Float weight = exp(score - splat(reference));
    sum = sum + weight;
    store(scores + j, select(score == splat(kMinusInfinity), splat(kMaskedWeight), weight));
  }
  const float old = partial[0] == largest ? 1.0F : exp(splat(partial[0] - reference))[0];
  partial[0] = largest;
  partial[1] = partial[1] * old + sum_lanes(sum);
  if (old != 1.0F) {
    scale_row(partial + 2, old, head_dim);
  }
}

// sums[0 .. kVectors) += weights . values over `keys` rows.
template <int kVectors>
void add_columns(const float* weights, const float* values, int64_t keys, int64_t width,
                 float* sums, int64_t columns) {
  Float held[kVectors];
#pragma GCC unroll 8
  for (int v = 0; v < kVectors; ++v) {
    held[v] = Float{};
  }
  for (int64_t j = 0; j < keys; ++j) {
    if (__builtin_signbit(weights[j]) != 0 && weights[j] == 0.0F) {
      continue;  // masked
    }
    const Float weight = splat(weights[j]);
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) {
      held[v] = multiply_add(weight, load(values + j * width + v * kLanes), held[v]);
    }
  }
  for (int v = 0; v < kVectors; ++v) {
    const int64_t rest = columns - v * kLanes;
    if (rest >= kLanes) {
      store(sums + v * kLanes, load(sums + v * kLanes) + held[v]);
    } else if (rest > 0) {
      store_partial(sums + v * kLanes, load_partial(sums + v * kLanes, rest) + held[v], rest);
    }
  }
}

void add_values(const float* weights, const float* values, int64_t keys, int64_t head_dim,
                float* sums) {
  const int64_t width = padded(head_dim);
  int64_t i = 0;
  for (; i + 8 * kLanes <= width; i += 8 * kLanes) {
    add_columns<8>(weights, values + i, keys, width, sums + i, head_dim - i);
  }
  for (; i + 4 * kLanes <= width; i += 4 * kLanes) {
    add_columns<4>(weights, values + i, keys, width, sums + i, head_dim - i);
  }
  for (; i < width; i += kLanes) {
    add_columns<1>(weights, values + i, keys, width, sums + i, head_dim - i);
  }
}

template <typename T>
void run_task(const Problem& problem, const Partial& partial, int64_t index) {
  Scratch scratch;
  const Task task = task_of(problem, index);
  const int64_t head_dim = problem.head_dim, width = padded(head_dim);
  for (int64_t row = 0; row < task.rows; ++row) {
    float* held = partial.row(problem, index, row);
    held[0] = kMinusInfinity;
    std::memset(held + 1, 0, static_cast<size_t>(head_dim + 1) * sizeof(float));
  }
  load_queries<T>(problem, task, scratch.query);
  const T* key = static_cast<const T*>(problem.key) + task.batch * problem.key_stride[0] +
                 task.key_head * problem.key_stride[1];
  const T* value = static_cast<const T*>(problem.value) + task.batch * problem.value_stride[0] +
                   task.key_head * problem.value_stride[1];
  for (int64_t done = 0; done < task.keys; done += kBlockKeys) {
    const int64_t first = task.first_key + done;
    const int64_t keys = task.keys - done < kBlockKeys ? task.keys - done : kBlockKeys;
    widen_rows(key + first * problem.key_stride[2], problem.key_stride[2], keys, head_dim,
               scratch.block);
    // What lies behind the last key is not looked at, but denormal numbers there would be slow.
    std::memset(scratch.block + keys * width, 0,
                static_cast<size_t>((kBlockKeys - keys) * width) * sizeof(float));
    multiply_keys(scratch.query, task.rows, scratch.block, width, scratch.scores);
    widen_rows(value + first * problem.value_stride[2], problem.value_stride[2], keys, head_dim,
               scratch.block);
    for (int64_t row = 0; row < task.rows; ++row) {
      float* scores = scratch.scores + row * kBlockKeys;
      float* held = partial.row(problem, index, row);
      finish_scores<T>(problem, task, row, first, keys, scores);
      weigh(scores, held, head_dim);
      add_values(scores, scratch.block, keys, head_dim, held + 2);
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
    int64_t i = 0;
    for (; i + kLanes <= head_dim; i += kLanes) {
      store(out + i, load(total + i) * splat(inverse));
    }
    if (i < head_dim) {
      store_partial(out + i, load_partial(total + i, head_dim - i) * splat(inverse), head_dim - i);
    }
  }
}

template <typename Function>
void with_type(Dtype dtype, const Function& function) {
  switch (dtype) {
    case Dtype::kFloat32:
      return function(static_cast<float*>(nullptr));
    case Dtype::kBfloat16:
      return function(static_cast<Bf16*>(nullptr));
    case Dtype::kFloat16:
      return function(static_cast<Fp16*>(nullptr));
  }
}

}  // namespace

void attention_tasks(const Problem& problem, const Partial& partial, int64_t begin, int64_t end) {
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
