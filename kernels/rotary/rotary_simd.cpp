// Rotary position embedding with the vectors of one instruction set. Compiled once per set: see
// common/simd.h.

#include "kernels/rotary/rotary_simd.h"

namespace graft_kernels::GRAFT_ISA {

namespace {

using rotary::Heads;
using rotary::Problem;

// One head, halves apart. cos and sin point to the token's tables.
template <bool kInverse, typename T, typename S>
void rotate_halves(const T* in, T* out, const S* cos, const S* sin, int64_t half) {
  int64_t i = 0;
  for (; i + kLanes <= half; i += kLanes) {
    const Pair result = rotate<kInverse, S>({load<T>(in + i), load<T>(in + half + i)},
                                            {load<S>(cos + i), load<S>(cos + half + i)},
                                            {load<S>(sin + i), load<S>(sin + half + i)});
    store(out + i, result.first);
    store(out + half + i, result.second);
  }
  if (i < half) {
    const int64_t rest = half - i;
    const Pair result = rotate<kInverse, S>(
        {load_partial<T>(in + i, rest), load_partial<T>(in + half + i, rest)},
        {load_partial<S>(cos + i, rest), load_partial<S>(cos + half + i, rest)},
        {load_partial<S>(sin + i, rest), load_partial<S>(sin + half + i, rest)});
    store_partial(out + i, result.first, rest);
    store_partial(out + half + i, result.second, rest);
  }
}

template <bool kInverse, typename T, typename S>
void rotate_neighbours(const T* in, T* out, const S* cos, const S* sin, int64_t half) {
  for (int64_t i = 0; i < half; i += kLanes) {
    const int64_t count = half - i < kLanes ? half - i : kLanes;
    const Pair result =
        rotate<kInverse, S>(load_neighbours(in + 2 * i, count), load_neighbours(cos + 2 * i, count),
                            load_neighbours(sin + 2 * i, count));
    store_neighbours(out + 2 * i, result, count);
  }
}

template <bool kInverse, typename T, typename S>
void tokens(const Problem& problem, int64_t begin, int64_t end) {
  const int64_t half = problem.rotary_dim / 2;
  for_each_heads<T, S>(problem, begin, end, [&](int which, const TokenHeads<T, S>& token) {
    const Heads& heads = problem.heads[which];
    for (int64_t head = 0; head < heads.count; ++head) {
      const T* in = token.in + head * heads.in_stride[2];
      T* out = token.out + head * heads.out_stride[2];
      problem.interleaved ? rotate_neighbours<kInverse>(in, out, token.cos, token.sin, half)
                          : rotate_halves<kInverse>(in, out, token.cos, token.sin, half);
      if (in != out) {
        std::memcpy(out + problem.rotary_dim, in + problem.rotary_dim,
                    static_cast<size_t>(problem.head_dim - problem.rotary_dim) * sizeof(T));
      }
    }
  });
}

template <typename T, typename S>
void tokens_of(const Problem& problem, int64_t begin, int64_t end) {
  problem.inverse ? tokens<true, T, S>(problem, begin, end)
                  : tokens<false, T, S>(problem, begin, end);
}

}  // namespace

void rotary_tokens(const Problem& problem, int64_t begin, int64_t end) {
  with_type(problem.dtype, [&]<typename T>(T*) {
    problem.float_tables ? tokens_of<T, float>(problem, begin, end)
                         : tokens_of<T, T>(problem, begin, end);
  });
}

}  // namespace graft_kernels::GRAFT_ISA
