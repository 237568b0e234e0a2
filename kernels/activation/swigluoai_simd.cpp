// gpt-oss' activation with the vectors of one instruction set. Compiled once per set: see common/simd.h.

#include "kernels/activation/fast_simd.h"
#include "kernels/activation/swigluoai.h"

namespace graft_kernels::GRAFT_ISA {

namespace {

using activation::SwigluoaiProblem;

struct Pairs {
  Float gate;
  Float up;
};

// kLanes pairs that lie side by side, and the way back.
template <typename T>
Pairs load_pairs(const T* from) {
  if constexpr (sizeof(T) == 2) {
    Uint words;
    std::memcpy(&words, from, sizeof words);
    const auto value = [](Uint bits) {
      T elements[kLanes];
      const Ushort raw = narrow(bits);
      std::memcpy(elements, &raw, sizeof raw);
      return load<T>(elements);
    };
    return {value(words & 0xffffU), value(words >> 16)};
  } else {
    Pairs pairs;
    for (int lane = 0; lane < kLanes; ++lane) {
      pairs.gate[lane] = from[2 * lane];
      pairs.up[lane] = from[2 * lane + 1];
    }
    return pairs;
  }
}

template <typename T>
void store_pairs(T* to, const Pairs& pairs) {
  if constexpr (sizeof(T) == 2) {
    const auto bits = [](Float value) {
      T elements[kLanes];
      store(elements, value);
      Ushort raw;
      std::memcpy(&raw, elements, sizeof raw);
      return widen(raw);
    };
    const Uint words = bits(pairs.gate) | bits(pairs.up) << 16;
    std::memcpy(to, &words, sizeof words);
  } else {
    for (int lane = 0; lane < kLanes; ++lane) {
      to[2 * lane] = pairs.gate[lane];
      to[2 * lane + 1] = pairs.up[lane];
    }
  }
}

// Of the smaller; NaN stays NaN.
Float at_most(Float x, Float limit) { return select((Int)(x > limit), limit, x); }
Float at_least(Float x, Float limit) { return select((Int)(x < limit), limit, x); }

template <typename T>
Float forward(const Pairs& in, Float alpha, Float limit) {
  const Float gate = at_most(in.gate, limit), up = at_least(at_most(in.up, limit), -limit);
  const Float share = round_to<T>(fast_logistic(round_to<T>(gate * alpha)));
  return round_to<T>(up + splat(1.0F)) * round_to<T>(gate * share);
}

Pairs backward(const Pairs& in, Float grad_out, Float alpha, Float limit) {
  const Float one = splat(1.0F), zero = splat(0.0F);
  const Float gate = at_most(in.gate, limit), up = at_least(at_most(in.up, limit), -limit);
  const Float share = logistic(gate * alpha);
  const Float slope = share * (one + alpha * gate * (one - share));
  return {select((Int)(in.gate <= limit), grad_out * (up + one) * slope, zero),
          select((Int)(absolute(in.up) <= limit), grad_out * gate * share, zero)};
}

// Pointers to consecutive pairs.
template <typename T>
struct Segment {
  const T* input;
  const T* grad_out;
  T* out;
};

template <bool kBackward, typename T>
void segment(const SwigluoaiProblem& problem, const Segment<T>& at, int64_t count) {
  const Float alpha = splat(problem.alpha), limit = splat(round_to<T>(splat(problem.limit))[0]);
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    const Pairs in = load_pairs(at.input + 2 * i);
    if constexpr (kBackward) {
      store_pairs(at.out + 2 * i, backward(in, load<T>(at.grad_out + i), alpha, limit));
    } else {
      store(at.out + i, forward<T>(in, alpha, limit));
    }
  }
  if (i < count) {
    const int64_t rest = count - i;
    const size_t pair_bytes = static_cast<size_t>(rest) * 2 * sizeof(T);
    T pairs[2 * kLanes] = {};
    std::memcpy(pairs, at.input + 2 * i, pair_bytes);
    if constexpr (kBackward) {
      store_pairs(
          pairs, backward(load_pairs(pairs), load_partial<T>(at.grad_out + i, rest), alpha, limit));
      std::memcpy(at.out + 2 * i, pairs, pair_bytes);
    } else {
      store_partial(at.out + i, forward<T>(load_pairs(pairs), alpha, limit), rest);
    }
  }
}

template <bool kBackward, typename T>
void span(const SwigluoaiProblem& problem, int64_t begin, int64_t end) {
  while (begin < end) {
    const int64_t row = begin / problem.columns;
    const int64_t column = begin - row * problem.columns;
    const int64_t in_row = problem.columns - column;
    const int64_t count = in_row < end - begin ? in_row : end - begin;
    Segment<T> at{};
    at.input = static_cast<const T*>(problem.input) + problem.input_rows.offset(row) + 2 * column;
    at.out = static_cast<T*>(problem.out) + problem.out_rows.offset(row) +
             (kBackward ? 2 * column : column);
    if constexpr (kBackward) {
      at.grad_out =
          static_cast<const T*>(problem.grad_out) + problem.grad_out_rows.offset(row) + column;
    }
    segment<kBackward>(problem, at, count);
    begin += count;
  }
}

}  // namespace

void swigluoai_span(const SwigluoaiProblem& problem, int64_t begin, int64_t end) {
  with_type(problem.dtype, [&]<typename T>(T*) {
    if (problem.grad_out != nullptr) {
      span<true, T>(problem, begin, end);
    } else {
      span<false, T>(problem, begin, end);
    }
  });
}

}  // namespace graft_kernels::GRAFT_ISA
