// RMSNorm of heads and their rotation with the vectors of one instruction set. Compiled once per set: see
// common/simd.h.

#include "kernels/rms-norm/norm_simd.h"
#include "kernels/rms-norm/rows_simd.h"
#include "kernels/rotary/rotary_simd.h"

namespace graft_kernels::GRAFT_ISA {

namespace {

using rms_norm::Variant;
using rotary::Heads;
using rotary::Problem;

constexpr int64_t kHeadsAtOnce = 16;

// Elements of one head as its norm leaves them.
template <Variant kVariant, typename T, typename W>
struct NormedHead {
  const T* in;
  const W* weight;
  Float inverse;

  Float scaled(Float element, Float factor) const {
    return round_to<T>(scale_norm<kVariant, T>(element, inverse, factor));
  }
  Float at(int64_t i, int64_t count) const {
    return scaled(load_some<T>(in + i, count), load_some<W>(weight + i, count));
  }
  Pair neighbours(int64_t i, int64_t count) const {
    const Pair x = load_neighbours(in + i, count), factor = load_neighbours(weight + i, count);
    return {scaled(x.first, factor.first), scaled(x.second, factor.second)};
  }
};

// cos and sin point to the token's tables. A head may be written where it was read: its sum is made before, and each
// pair is read before it is written.
template <Variant kVariant, typename T, typename W, typename S>
void norm_and_rotate(const Problem& problem, const NormedHead<kVariant, T, W>& head, T* out,
                     const S* cos, const S* sin) {
  const int64_t half = problem.rotary_dim / 2, rotated = problem.rotary_dim;
  if (problem.interleaved) {
    for_each_vector(half, [&](int64_t i, int64_t count) {
      store_neighbours(
          out + 2 * i,
          rotate<false, S>(head.neighbours(2 * i, count), load_neighbours(cos + 2 * i, count),
                           load_neighbours(sin + 2 * i, count)),
          count);
    });
  } else {
    for_each_vector(half, [&](int64_t i, int64_t count) {
      const Pair result =
          rotate<false, S>({head.at(i, count), head.at(half + i, count)},
                           {load_some<S>(cos + i, count), load_some<S>(cos + half + i, count)},
                           {load_some<S>(sin + i, count), load_some<S>(sin + half + i, count)});
      store_some(out + i, result.first, count);
      store_some(out + half + i, result.second, count);
    });
  }
  for_each_vector(problem.head_dim - rotated, [&](int64_t i, int64_t count) {
    store_some(out + rotated + i, head.at(rotated + i, count), count);
  });
}

template <Variant kVariant, typename T, typename W, typename S>
void tokens(const Problem& problem, int64_t begin, int64_t end) {
  for_each_heads<T, S>(problem, begin, end, [&](int which, const TokenHeads<T, S>& token) {
    const Heads& heads = problem.heads[which];
    const W* weight = static_cast<const W*>(problem.norm.weight[which]);
    // Sums of several heads first: one alone would wait for its root and its quotient.
    float inverse[kHeadsAtOnce];
    for (int64_t first = 0; first < heads.count; first += kHeadsAtOnce) {
      const int64_t left = heads.count - first, count = left < kHeadsAtOnce ? left : kHeadsAtOnce;
      const T* in = token.in + first * heads.in_stride[2];
      for (int64_t i = 0; i < count; ++i) {
        inverse[i] = inverse_rms(in + i * heads.in_stride[2], problem.head_dim, problem.norm.eps);
      }
      for (int64_t i = 0; i < count; ++i) {
        const NormedHead<kVariant, T, W> head{in + i * heads.in_stride[2], weight,
                                              splat(inverse[i])};
        norm_and_rotate(problem, head, token.out + (first + i) * heads.out_stride[2], token.cos,
                        token.sin);
      }
    }
  });
}

template <typename T, typename W, typename S>
void tokens_of(const Problem& problem, int64_t begin, int64_t end) {
  switch (problem.norm.variant) {
    case Variant::kCastBeforeWeight:
      return tokens<Variant::kCastBeforeWeight, T, W, S>(problem, begin, end);
    case Variant::kZeroCentered:
      return tokens<Variant::kZeroCentered, T, W, S>(problem, begin, end);
    case Variant::kCastAfterWeight:
    case Variant::kFloatWeight:
      // A weight of the heads' dtype is promoted to float32 by the product either way.
      return tokens<Variant::kFloatWeight, T, W, S>(problem, begin, end);
  }
}

template <typename T, typename W>
void tokens_by(const Problem& problem, int64_t begin, int64_t end) {
  problem.float_tables ? tokens_of<T, W, float>(problem, begin, end)
                       : tokens_of<T, W, T>(problem, begin, end);
}

}  // namespace

void norm_rotary_tokens(const Problem& problem, int64_t begin, int64_t end) {
  with_type(problem.dtype, [&]<typename T>(T*) {
    problem.norm.float_weights ? tokens_by<T, float>(problem, begin, end)
                               : tokens_by<T, T>(problem, begin, end);
  });
}

}  // namespace graft_kernels::GRAFT_ISA
