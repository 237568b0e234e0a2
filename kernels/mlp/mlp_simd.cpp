// Gate and up in one pass with the activation applied as a range of columns is finished, then down.
// Compiled once per instruction set: see common/simd.h.
//
// Each (row of x, row of weight) pair has one vector of partial sums, filled in the order of k: a
// result has the same bits whatever the number of rows or threads.

#include "kernels/common/simd_math.h"
#include "kernels/mlp/mlp.h"

namespace graft_kernels::GRAFT_ISA {

namespace {

using mlp::Function;
using mlp::Problem;

// Weights are read as this many streams far from each other: the processor fetches ahead within
// pages of 4 KiB, and so in all of them at once.
constexpr int64_t kStreams = 8, kAheadBytes = 512;

// sums[i][j] = row i of x times stream j, for kCount streams.
template <int kRows, int kCount, typename W>
void dots(const float* x, int64_t depth, const W* const* streams, float (*sums)[kCount]) {
  constexpr int64_t kLine = 64 / static_cast<int64_t>(sizeof(W));
  Float partial[kRows][kCount] = {};
  int64_t k = 0;
  for (; k + kLine <= depth; k += kLine) {
    for (int j = 0; j < kCount; ++j) {
      _mm_prefetch(reinterpret_cast<const char*>(streams[j] + k) + kAheadBytes, _MM_HINT_T0);
      for (int64_t v = k; v < k + kLine; v += kLanes) {
        const Float factor = load<W>(streams[j] + v);
        for (int i = 0; i < kRows; ++i) {
          partial[i][j] = multiply_add(load<float>(x + i * depth + v), factor, partial[i][j]);
        }
      }
    }
  }
  for (; k < depth; k += kLanes) {
    const int64_t count = depth - k < kLanes ? depth - k : kLanes;
    for (int j = 0; j < kCount; ++j) {
      const Float factor = load_partial<W>(streams[j] + k, count);
      for (int i = 0; i < kRows; ++i) {
        const Float value = load_partial<float>(x + i * depth + k, count);
        partial[i][j] = multiply_add(value, factor, partial[i][j]);
      }
    }
  }
  for (int i = 0; i < kRows; ++i) {
    for (int j = 0; j < kCount; ++j) {
      sums[i][j] = sum_lanes(partial[i][j]);
    }
  }
}

// Calls store(row, stream, sum) for all rows; the streams stay in the first-level cache meanwhile.
template <int kCount, typename W, typename Store>
void all_rows(const Problem& problem, const W* const* streams, const Store& store_sum) {
  int64_t row = 0;
  for (; row + 4 <= problem.rows; row += 4) {
    for (int j = 0; j < kCount; j += 2) {
      float sums[4][2];
      dots<4, 2, W>(problem.x + row * problem.depth, problem.depth, streams + j, sums);
      for (int i = 0; i < 4; ++i) {
        store_sum(row + i, j, sums[i][0]);
        store_sum(row + i, j + 1, sums[i][1]);
      }
    }
  }
  for (; row < problem.rows; ++row) {
    float sums[1][kCount];
    dots<1, kCount, W>(problem.x + row * problem.depth, problem.depth, streams, sums);
    for (int j = 0; j < kCount; ++j) {
      store_sum(row, j, sums[0][j]);
    }
  }
}

template <typename W>
float with_bias(float sum, const void* bias, int64_t column) {
  if (bias != nullptr) {
    sum += load_partial<W>(static_cast<const W*>(bias) + column, 1)[0];
  }
  return round_to<W>(splat(sum))[0];
}

template <Function kFunction>
Float apply(Float x) {
  const Float one = splat(1.0F), half = splat(0.5F);
  if constexpr (kFunction == Function::kSilu) {
    return x / (one + exp(-x));
  } else if constexpr (kFunction == Function::kGelu) {
    return x * half * (one + erf(x * splat(0.70710678118654752440F)));
  } else {
    const Float inner =
        splat(0.79788456080286535588F) * multiply_add(splat(0.044715F), x * x * x, x);
    return half * x * (one + tanh(inner));
  }
}

template <Function kFunction, typename W>
void activate(float* gate, const float* up, int64_t count) {
  for (int64_t i = 0; i < count; i += kLanes) {
    const int64_t rest = count - i < kLanes ? count - i : kLanes;
    const Float value = round_to<W>(apply<kFunction>(load_partial<float>(gate + i, rest)));
    store_partial(gate + i, round_to<W>(value * load_partial<float>(up + i, rest)), rest);
  }
}

template <typename W>
void activate_function(Function function, float* gate, const float* up, int64_t count) {
  switch (function) {
    case Function::kSilu:
      return activate<Function::kSilu, W>(gate, up, count);
    case Function::kGelu:
      return activate<Function::kGelu, W>(gate, up, count);
    case Function::kGeluTanh:
      return activate<Function::kGeluTanh, W>(gate, up, count);
  }
}

// kPairs rows of gate, `distance` apart, and the same of up.
template <int kPairs, typename W>
void gate_up_block(const Problem& problem, int64_t column, int64_t distance) {
  const W* streams[2 * kPairs];
  for (int j = 0; j < kPairs; ++j) {
    const int64_t offset = (column + j * distance) * problem.depth;
    streams[2 * j] = static_cast<const W*>(problem.weight) + offset;
    streams[2 * j + 1] = static_cast<const W*>(problem.up_weight) + offset;
  }
  all_rows<2 * kPairs, W>(problem, streams, [&](int64_t row, int stream, float sum) {
    const bool is_up = stream % 2 == 1;
    const int64_t at = column + stream / 2 * distance;
    (is_up ? problem.up : problem.gate)[row * problem.columns + at] =
        with_bias<W>(sum, is_up ? problem.up_bias : problem.bias, at);
  });
}

template <typename W>
void gate_up(const Problem& problem, int64_t begin, int64_t end) {
  constexpr int kPairs = kStreams / 2;
  const int64_t distance = (end - begin) / kPairs;
  for (int64_t column = begin; column < begin + distance; ++column) {
    gate_up_block<kPairs, W>(problem, column, distance);
  }
  for (int64_t column = begin + kPairs * distance; column < end; ++column) {
    gate_up_block<1, W>(problem, column, 1);
  }
  for (int64_t row = 0; row < problem.rows; ++row) {
    const int64_t at = row * problem.columns + begin;
    activate_function<W>(problem.function, problem.gate + at, problem.up + at, end - begin);
  }
}

template <typename W>
void store_down(const Problem& problem, int64_t row, int64_t column, float sum) {
  store_partial(static_cast<W*>(problem.out) + row * problem.columns + column,
                splat(with_bias<W>(sum, problem.bias, column)), 1);
}

template <typename W>
void down(const Problem& problem, int64_t begin, int64_t end) {
  const W* weight = static_cast<const W*>(problem.weight);
  const int64_t distance = (end - begin) / kStreams;
  for (int64_t column = begin; column < begin + distance; ++column) {
    const W* streams[kStreams];
    for (int64_t j = 0; j < kStreams; ++j) {
      streams[j] = weight + (column + j * distance) * problem.depth;
    }
    all_rows<kStreams, W>(problem, streams, [&](int64_t row, int stream, float sum) {
      store_down<W>(problem, row, column + stream * distance, sum);
    });
  }
  for (int64_t column = begin + kStreams * distance; column < end; ++column) {
    const W* stream = weight + column * problem.depth;
    for (int64_t row = 0; row < problem.rows; ++row) {
      float sums[1][1];
      dots<1, 1, W>(problem.x + row * problem.depth, problem.depth, &stream, sums);
      store_down<W>(problem, row, column, sums[0][0]);
    }
  }
}

// Calls fn with a null pointer of the storage type.
template <typename Fn>
void with_type(Dtype dtype, const Fn& fn) {
  switch (dtype) {
    case Dtype::kFloat32:
      return fn(static_cast<const float*>(nullptr));
    case Dtype::kBfloat16:
      return fn(static_cast<const Bf16*>(nullptr));
    case Dtype::kFloat16:
      return fn(static_cast<const Fp16*>(nullptr));
  }
}

}  // namespace

void mlp_gate_up(const Problem& problem, int64_t begin, int64_t end) {
  with_type(problem.dtype, [&]<typename W>(const W*) { gate_up<W>(problem, begin, end); });
}

void mlp_down(const Problem& problem, int64_t begin, int64_t end) {
  with_type(problem.dtype, [&]<typename W>(const W*) { down<W>(problem, begin, end); });
}

void mlp_activate(Dtype dtype, Function function, float* gate, const float* up, int64_t count) {
  with_type(dtype, [&]<typename W>(const W*) { activate_function<W>(function, gate, up, count); });
}

void mlp_widen(Dtype dtype, const void* from, float* to, int64_t count) {
  with_type(dtype, [&]<typename W>(const W*) {
    for (int64_t i = 0; i < count; i += kLanes) {
      const int64_t rest = count - i < kLanes ? count - i : kLanes;
      store_partial(to + i, load_partial<W>(static_cast<const W*>(from) + i, rest), rest);
    }
  });
}

}  // namespace graft_kernels::GRAFT_ISA
