// Attention over a cache on the CPU. A task is one batch entry and key head: it stores the new tokens of its head. Over a
// cache in one piece, attention without a cache does the rest. With pages, a window, sinks or log-sum-exps, the task
// gathers the head's pages into one piece and has the rows worked on by the forward pass for training, which knows these.

#include <algorithm>
#include <cstring>
#include <memory>
#include <vector>

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include "kernels/attention/attention_append_ops.h"
#include "kernels/attention/attention_rounds_cpu.h"
#include "kernels/attention/attention_train.h"
#include "kernels/common/isa.h"
#include "kernels/common/parallel.h"

namespace graft_kernels::attention {

namespace {

template <typename Body>
void with_type(Dtype dtype, const Body& body) {
  switch (dtype) {
    case Dtype::kFloat32:
      return body(float{});
    case Dtype::kBfloat16:
      return body(c10::BFloat16{});
    case Dtype::kFloat16:
      return body(c10::Half{});
  }
}

// One batch entry and key head.
struct HeadTask {
  const DecodeProblem& problem;
  int64_t batch, head;
  int64_t length;  // keys in use, at most the room

  // Place of the first new token; none where the entry takes none.
  int64_t first_new() const { return length - problem.base.queries; }
  bool takes_new() const {
    return problem.append.key != nullptr &&
           (problem.lengths == nullptr || problem.lengths[batch] <= problem.base.keys);
  }
  // In elements from the cache's start. A page outside the cache is refused.
  int64_t offset(const int64_t (&stride)[3], int64_t key) const {
    if (problem.table == nullptr) {
      return batch * stride[0] + head * stride[1] + key * stride[2];
    }
    const int64_t page = problem.table[batch * problem.table_stride + key / problem.page_keys];
    if (page < 0 || page >= problem.pages) {
      fail("attention_decode", "block_table", "pages of 0 to " + std::to_string(problem.pages - 1),
           std::to_string(page));
    }
    return page * stride[0] + head * stride[1] + key % problem.page_keys * stride[2];
  }
};

// A head of `size` elements, turned by the tables' row of `position`; as it is when there is none.
template <typename T, typename S>
void turn_head(const Append& append, int64_t position, int64_t size, const T* from, T* to) {
  if (append.cos == nullptr || position < 0 || position >= append.table_rows) {
    std::copy_n(from, size, to);
    return;
  }
  const S* cos = static_cast<const S*>(append.cos) + position * append.table_stride[0];
  const S* sin = static_cast<const S*>(append.sin) + position * append.table_stride[1];
  const auto product = [](T a, S b) {
    return static_cast<float>(static_cast<S>(static_cast<float>(a) * static_cast<float>(b)));
  };
  const int64_t half = append.rotary_dim / 2;
  for (int64_t i = 0; i < half; ++i) {
    const int64_t a = append.interleaved ? 2 * i : i, b = append.interleaved ? a + 1 : a + half;
    const T first = from[a], second = from[b];
    to[a] = static_cast<T>(
        static_cast<float>(static_cast<S>(product(first, cos[a]) - product(second, sin[a]))));
    to[b] = static_cast<T>(
        static_cast<float>(static_cast<S>(product(second, cos[b]) + product(first, sin[b]))));
  }
  std::copy_n(from + append.rotary_dim, size - append.rotary_dim, to + append.rotary_dim);
}

template <typename T>
void turn_head(const HeadTask& task, int64_t token, const T* from, T* to) {
  const DecodeProblem& problem = task.problem;
  const Append& append = problem.append;
  int64_t position = task.takes_new() ? task.first_new() + token : -1;
  if (append.positions != nullptr && task.takes_new()) {
    position = append.positions[task.batch] - problem.base.queries + 1 + token;
  }
  append.float_tables ? turn_head<T, float>(append, position, problem.base.head_dim, from, to)
                      : turn_head<T, T>(append, position, problem.base.head_dim, from, to);
}

template <typename T>
void store_new(const HeadTask& task) {
  const DecodeProblem& problem = task.problem;
  const Append& append = problem.append;
  const int64_t first = task.first_new();
  for (int64_t token = std::max<int64_t>(-first, 0); token < problem.base.queries; ++token) {
    const auto at = [&](const void* from, const int64_t(&stride)[3]) {
      return static_cast<const T*>(from) + task.batch * stride[0] + token * stride[1] +
             task.head * stride[2];
    };
    turn_head(task, token, at(append.key, append.key_stride),
              static_cast<T*>(append.keys) + task.offset(problem.base.key_stride, first + token));
    std::copy_n(
        at(append.value, append.value_stride), problem.base.head_dim,
        static_cast<T*>(append.values) + task.offset(problem.base.value_stride, first + token));
  }
}

template <typename T>
const T* advance(const void* from, int64_t elements) {
  return from == nullptr ? nullptr : static_cast<const T*>(from) + elements;
}

// The mask, of the heads' type or float32, `elements` further on.
template <typename T>
const void* mask_from(const Problem& base, int64_t elements) {
  return base.float_mask ? static_cast<const void*>(advance<float>(base.mask, elements))
                         : advance<T>(base.mask, elements);
}

// Memory of one task.
template <typename T>
struct Scratch {
  std::vector<T> queries, keys, values;
  std::vector<float> lse;
};

// The head's keys or values from key `begin` on, as they lie or, with pages, gathered into `room`.
template <typename T>
const T* find_keys(const HeadTask& task, const void* from, const int64_t (&stride)[3],
                   int64_t begin, std::vector<T>& room, int64_t& row_stride) {
  const DecodeProblem& problem = task.problem;
  if (problem.table == nullptr) {
    row_stride = stride[2];
    return static_cast<const T*>(from) + task.offset(stride, begin);
  }
  row_stride = problem.base.head_dim;
  room.resize(static_cast<size_t>((task.length - begin) * row_stride));
  for (int64_t key = begin; key < task.length; ++key) {
    std::copy_n(static_cast<const T*>(from) + task.offset(stride, key), row_stride,
                room.data() + (key - begin) * row_stride);
  }
  return room.data();
}

// The task as a problem of one batch entry and one key head. Keys before the window's are left out.
template <typename T>
TrainProblem describe(const HeadTask& task, Scratch<T>& scratch) {
  const DecodeProblem& all = task.problem;
  TrainProblem one;
  Problem& base = one.base;
  base = all.base;
  const int64_t first_head = task.head * base.groups, heads = base.key_heads * base.groups;
  const int64_t begin =
      all.window > 0 ? std::max<int64_t>(task.length - base.queries - all.window + 1, 0) : 0;
  base.batch = base.key_heads = 1;
  base.keys = task.length - begin;
  base.query =
      advance<T>(base.query, task.batch * base.query_stride[0] + first_head * base.query_stride[2]);
  base.out = const_cast<T*>(
      advance<T>(base.out, task.batch * base.out_stride[0] + first_head * base.out_stride[2]));
  if (base.keys > 0) {
    base.key =
        find_keys(task, base.key, all.base.key_stride, begin, scratch.keys, base.key_stride[2]);
    base.value = find_keys(task, base.value, all.base.value_stride, begin, scratch.values,
                           base.value_stride[2]);
  }
  const int64_t mask_at =
      task.batch * base.mask_stride[0] + first_head * base.mask_stride[1] + begin;
  base.mask = mask_from<T>(base, mask_at);
  one.sinks = {all.sinks.is_float
                   ? static_cast<const void*>(advance<float>(all.sinks.values, first_head))
                   : advance<T>(all.sinks.values, first_head),
               all.sinks.is_float};
  one.window = all.window;
  one.lse_stride[1] = base.queries;
  if (all.lse != nullptr) {
    one.lse = all.lse + (task.batch * heads + first_head) * base.queries;
  } else {
    scratch.lse.resize(static_cast<size_t>(base.rows()));
    one.lse = scratch.lse.data();
  }
  return one;
}

// Where turned queries of a task go: from row to row by `position` and `head` elements.
template <typename T>
struct Turned {
  T* to;
  int64_t position, head;

  void replace_queries(Problem& base) const {
    base.query = to;
    base.query_stride[1] = position;
    base.query_stride[2] = head;
  }
};

// `query` is the first of the task's own.
template <typename T>
void turn_queries(const HeadTask& task, const T* query, const Turned<T>& turned) {
  const Problem& base = task.problem.base;
  for (int64_t row = 0; row < base.rows(); ++row) {
    const int64_t token = row / base.groups, head = row % base.groups;
    turn_head(task, token, query + token * base.query_stride[1] + head * base.query_stride[2],
              turned.to + token * turned.position + head * turned.head);
  }
}

template <typename T>
void run_head(const HeadTask& task, TrainFunction forward) {
  Scratch<T> scratch;
  if (task.takes_new()) {
    store_new<T>(task);
  }
  TrainProblem one = describe(task, scratch);
  Problem& base = one.base;
  if (task.problem.append.cos != nullptr) {
    scratch.queries.resize(static_cast<size_t>(base.rows() * base.head_dim));
    const Turned<T> turned{scratch.queries.data(), base.groups * base.head_dim, base.head_dim};
    turn_queries(task, static_cast<const T*>(base.query), turned);
    turned.replace_queries(base);
  }
  forward(one, 0, one.base.blocks());
}

// Runs run(task) for every batch entry and key head.
template <typename Run>
void for_each_head(const DecodeProblem& problem, int64_t cost, const Run& run) {
  const Problem& base = problem.base;
  spread(base.batch * base.key_heads, kGrainMultiplications / (cost + 1) + 1,
         [&](int64_t begin, int64_t end) {
           for (int64_t index = begin; index < end; ++index) {
             HeadTask task{problem, index / base.key_heads, index % base.key_heads, base.keys};
             if (problem.lengths != nullptr) {
               task.length = std::clamp<int64_t>(problem.lengths[task.batch], 0, base.keys);
             }
             run(task);
           }
         });
}

// Stores what is new, and turns queries into `queries` where they are to be turned.
template <typename T>
void store_and_turn(const DecodeProblem& problem, Problem& base, std::vector<T>& queries) {
  const int64_t size = base.head_dim, heads = base.key_heads * base.groups;
  const bool turns = problem.append.cos != nullptr;
  if (problem.append.key == nullptr && !turns) {
    return;
  }
  queries.resize(turns ? static_cast<size_t>(base.batch * base.queries * heads * size) : 0);
  const Turned<T> turned{queries.data(), heads * size, size};
  for_each_head(problem, 4 * base.rows() * size, [&](const HeadTask& task) {
    if (task.takes_new()) {
      store_new<T>(task);
    }
    if (turns) {
      const int64_t first = task.head * base.groups;
      T* to = turned.to + task.batch * base.queries * turned.position + first * size;
      turn_queries(task,
                   advance<T>(problem.base.query, task.batch * problem.base.query_stride[0] +
                                                      first * problem.base.query_stride[2]),
                   Turned<T>{to, turned.position, turned.head});
    }
  });
  if (turns) {
    turned.replace_queries(base);
    base.query_stride[0] = base.queries * turned.position;
  }
}

// Keys in one piece: sequences of one length together, others one after another.
template <typename T>
void run_in_one_piece(const DecodeProblem& problem) {
  Problem all = problem.base;
  std::vector<T> queries;
  store_and_turn(problem, all, queries);
  const auto length = [&](int64_t batch) {
    return problem.lengths == nullptr ? all.keys
                                      : std::clamp<int64_t>(problem.lengths[batch], 0, all.keys);
  };
  for (int64_t batch = 0, end = 0; batch < all.batch; batch = end) {
    for (end = batch + 1; end < all.batch && length(end) == length(batch);) {
      ++end;
    }
    Problem some = all;
    some.batch = end - batch;
    some.keys = length(batch);
    some.query = advance<T>(all.query, batch * all.query_stride[0]);
    some.key = advance<T>(all.key, batch * all.key_stride[0]);
    some.value = advance<T>(all.value, batch * all.value_stride[0]);
    some.out = const_cast<T*>(advance<T>(all.out, batch * all.out_stride[0]));
    some.mask = mask_from<T>(all, batch * all.mask_stride[0]);
    run_attention(some);
  }
}

void run_cpu(DecodeProblem problem, const Tensor&) {
  const Problem& base = problem.base;
  if (base.blocks() == 0 || base.head_dim == 0) {
    return;
  }
  const bool in_one_piece = problem.table == nullptr && problem.window == 0 &&
                            problem.sinks.values == nullptr && problem.lse == nullptr;
  const auto forward =
      choose_isa<TrainFunction>(plain::attention_train_forward, avx2::attention_train_forward,
                                avx512::attention_train_forward);
  with_type(base.dtype, [&](auto type) {
    using T = decltype(type);
    if (in_one_piece) {
      return run_in_one_piece<T>(problem);
    }
    for_each_head(problem, 2 * base.rows() * base.keys * base.head_dim,
                  [&](const HeadTask& task) { run_head<T>(task, forward); });
  });
}

using CpuCacheOps = CacheOps<&run_cpu>;

}  // namespace

}  // namespace graft_kernels::attention

GRAFT_OPS_IMPL(CPU, ops) { graft_kernels::attention::CpuCacheOps::implement(ops); }
