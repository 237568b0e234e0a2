// What the kernels for training share: which sequence a block of threads works on, and which keys a
// query sees. Device code, no Torch.
#pragma once

#include <cstdint>

#include "kernels/attention/attention_train_cuda.h"

namespace graft_kernels::attention {

inline constexpr float kLog2Of = 1.4426950408889634F;

// One sequence of a batch entry (the whole of it when dense), and a tile of its rows.
struct Span {
  int batch;
  int query;    // first
  int queries;  // count
  int key;
  int keys;
  int tile;      // of this sequence
  int sequence;  // before it, packed
  bool exists;
};

struct Sight {
  int begin, end;  // keys that a query sees
};

// keys - queries of a sequence: the key at a query's own place is query + shift.
__device__ __forceinline__ Sight sight_of(const TrainProblem& problem, const Span& span,
                                          int query) {
  const int own = query + span.keys - span.queries;
  Sight sight = {0, span.keys};
  if (problem.base.causal) {
    sight.end = max(min(own + 1, span.keys), 0);
  }
  if (problem.window > 0) {
    sight.begin = static_cast<int>(max(static_cast<int64_t>(own) - problem.window + 1, int64_t{0}));
  }
  return sight;
}

// Queries [begin, end) of which some may see a key of [first, first + count).
__device__ __forceinline__ Sight queries_seeing(const TrainProblem& problem, const Span& span,
                                                int first, int count) {
  const int shift = span.keys - span.queries;
  Sight rows = {0, span.queries};
  if (problem.base.causal) {
    rows.begin = min(max(first - shift, 0), span.queries);
  }
  if (problem.window > 0) {
    const int64_t end = static_cast<int64_t>(first) + count - 1 + problem.window - shift;
    rows.end = static_cast<int>(max(min(end, static_cast<int64_t>(span.queries)), int64_t{0}));
  }
  return rows;
}

// Where sequence `index` begins, kept within the tensor and never falling behind `before`.
__device__ __forceinline__ int start_of(const int32_t* starts, int index, int64_t most) {
  return max(min(starts[index], static_cast<int>(most)), 0);
}

// The sequence that tile `number` of the packed sequences' tiles belongs to; tiles have kRows queries
// (kOfKeys: keys). Called by whole warps.
template <int kRows, bool kOfKeys>
__device__ __forceinline__ Span find_span(const TrainProblem& problem, const Packing& packing,
                                          int number) {
  const int lane = threadIdx.x % 32;
  const int32_t* starts = kOfKeys ? packing.keys : packing.queries;
  const int64_t most = kOfKeys ? problem.base.keys : problem.base.queries;
  Span span = {};
  int before = 0;  // tiles
  for (int base = 0; base < packing.sequences; base += 32) {
    const int own = base + lane;
    int tiles = 0;
    if (own < packing.sequences) {
      const int count = start_of(starts, own + 1, most) - start_of(starts, own, most);
      tiles = (max(count, 0) + kRows - 1) / kRows;
    }
    int through = tiles;
#pragma unroll
    for (int distance = 1; distance < 32; distance *= 2) {
      const int other = __shfl_up_sync(0xFFFFFFFFU, through, distance);
      through += lane >= distance ? other : 0;
    }
    const unsigned holders = __ballot_sync(0xFFFFFFFFU, before + through > number);
    if (holders != 0) {
      const int holder = __ffs(static_cast<int>(holders)) - 1;
      const int earlier = __shfl_sync(0xFFFFFFFFU, through - tiles, holder);
      const int index = base + holder;
      span.sequence = index;
      span.tile = number - before - earlier;
      span.query = start_of(packing.queries, index, problem.base.queries);
      span.queries =
          max(start_of(packing.queries, index + 1, problem.base.queries) - span.query, 0);
      span.key = start_of(packing.keys, index, problem.base.keys);
      span.keys = max(start_of(packing.keys, index + 1, problem.base.keys) - span.key, 0);
      span.exists = true;
      return span;
    }
    before += __shfl_sync(0xFFFFFFFFU, through, 31);
  }
  return span;
}

// Task `number` counts tiles fastest, then heads, then batch entries.
struct TrainTask {
  Span span;
  int head;
};

template <int kRows, bool kOfKeys>
__device__ __forceinline__ TrainTask train_task(const TrainProblem& problem, const Packing& packing,
                                                int heads) {
  const Problem& base = problem.base;
  const int length = static_cast<int>(kOfKeys ? base.keys : base.queries);
  const int sequences = packing.queries == nullptr ? 0 : packing.sequences;
  const unsigned tiles =
      packing.queries == nullptr ? (length + kRows - 1) / kRows : length / kRows + sequences;
  const unsigned row = blockIdx.x / tiles;
  const int tile = static_cast<int>(blockIdx.x - row * tiles);
  TrainTask task;
  task.head = static_cast<int>(row % heads);
  if (packing.queries == nullptr) {
    task.span = {static_cast<int>(row / heads),
                 0,
                 static_cast<int>(base.queries),
                 0,
                 static_cast<int>(base.keys),
                 tile,
                 0,
                 true};
  } else {
    task.span = find_span<kRows, kOfKeys>(problem, packing, tile);
  }
  return task;
}

// Element [batch, a, b, 0] of a tensor.
template <typename T>
__device__ __forceinline__ T* place_in(const void* from, const int64_t (&stride)[3], int64_t batch,
                                       int64_t a, int64_t b) {
  return static_cast<T*>(const_cast<void*>(from)) + batch * stride[0] + a * stride[1] +
         b * stride[2];
}

__device__ __forceinline__ float* statistic_of(const TrainProblem& problem, float* from,
                                               int64_t batch, int64_t head, int64_t query) {
  return from + batch * problem.lse_stride[0] + head * problem.lse_stride[1] + query;
}

}  // namespace graft_kernels::attention
