#include <cmath>
#include <limits>

#include <fmt/format.h>

#include "graft/layers/guard.h"
#include "graft/layers/guard_check.h"

namespace graft::layers {

namespace {

// A call with B2, 6 query heads on 2 key heads.
constexpr int64_t kBatch = 2, kHeads = 6, kKeyHeads = 2;

struct Case {
  int64_t queries = 1;
  int64_t keys = 1;
  int64_t head_dim = 64;
  bool masked = false;
  double softcap = 0.0;
};

struct Inputs {
  at::Tensor query, key, value;
  double scale = 1.0;
};

// The keys lie in a cache with room for more.
Inputs make_inputs(GuardInputs& inputs, int64_t queries, int64_t keys, int64_t head_dim) {
  return {inputs.normal({kBatch, queries, kHeads, head_dim}),
          inputs.normal({kBatch, kKeyHeads, keys + 9, head_dim}).narrow(2, 0, keys),
          inputs.normal({kBatch, kKeyHeads, keys + 9, head_dim}).narrow(2, 0, keys),
          1.0 / std::sqrt(static_cast<double>(head_dim))};
}

// What float32 sums may lose by their order alone.
double slack(const Inputs& in) { return rounding_unit(at::kFloat) * largest(to_exact(in.value)); }

// A prompt that attends to itself.
std::string check_prompt(GuardInputs& inputs, const Attention::Kernel& candidate,
                         const Attention::Kernel& reference, const Attention::Kernel& exact,
                         int64_t head_dim) {
  constexpr int64_t kLength = 193;
  const std::string what = fmt::format("causal_forward S{} D{}", kLength, head_dim);
  return attempt(what, [&] {
    const Inputs in = make_inputs(inputs, kLength, kLength, head_dim);
    return candidate.takes_prompt(in.query)
               ? compare(what, candidate.causal_forward(in.query, in.key, in.value, in.scale),
                         reference.causal_forward(in.query, in.key, in.value, in.scale),
                         exact.causal_forward(to_exact(in.query), to_exact(in.key),
                                              to_exact(in.value), in.scale),
                         slack(in))
               : std::string();
  });
}

// One query a row over a cache that is in use in part.
std::string check_decode(GuardInputs& inputs, const Attention::Kernel& candidate,
                         const Attention::Kernel& reference, const Attention::Kernel& exact,
                         int64_t length, int64_t window, bool masked) {
  constexpr int64_t kPlaces = 300;
  const std::string what = fmt::format("decode_forward length {}{}{}", length,
                                       window > 0 ? ", window" : "", masked ? ", mask" : "");
  return attempt(what, [&] {
    const Inputs in = make_inputs(inputs, 1, kPlaces, 64);
    const at::Tensor lengths =
        at::full({kBatch}, length, at::TensorOptions().dtype(at::kInt)).to(in.query.device());
    at::Tensor mask, wide_mask;
    if (masked) {
      mask = inputs.normal({kBatch, 1, 1, kPlaces});
      mask = mask.masked_fill(mask.lt(-0.5), -std::numeric_limits<double>::infinity());
      wide_mask = to_exact(mask);
    }
    return compare(what,
                   candidate.decode_forward(in.query, in.key, in.value, lengths, mask, in.scale,
                                            /*softcap=*/0.0, window),
                   reference.decode_forward(in.query, in.key, in.value, lengths, mask, in.scale,
                                            /*softcap=*/0.0, window),
                   exact.decode_forward(to_exact(in.query), to_exact(in.key), to_exact(in.value),
                                        lengths.cpu(), wide_mask, in.scale, /*softcap=*/0.0,
                                        window),
                   slack(in));
  });
}

}  // namespace

std::string guard(const Attention::Spec& spec, const Attention::Kernel& candidate,
                  const Attention::Kernel& reference, at::ScalarType dtype, at::Device device) {
  GuardInputs inputs(dtype, device);
  const auto exact = Attention::reference(spec);
  const auto check = [&](const Case& c) {
    const std::string what = fmt::format("forward S{} T{} D{}{}", c.queries, c.keys, c.head_dim,
                                         c.masked ? ", mask" : "");
    return attempt(what, [&] {
      const Inputs in = make_inputs(inputs, c.queries, c.keys, c.head_dim);
      at::Tensor mask, wide_mask;
      if (c.masked) {
        mask = inputs.normal({2, 1, c.queries, c.keys});
        mask = mask.masked_fill(mask.lt(-0.5), -std::numeric_limits<double>::infinity());
        wide_mask = to_exact(mask);
      }
      const at::Tensor right = exact->forward(to_exact(in.query), to_exact(in.key),
                                              to_exact(in.value), wide_mask, in.scale, c.softcap);
      return compare(what, candidate.forward(in.query, in.key, in.value, mask, in.scale, c.softcap),
                     reference.forward(in.query, in.key, in.value, mask, in.scale, c.softcap),
                     right, slack(in));
    });
  };
  const auto decode = [&](int64_t length, int64_t window, bool masked) {
    return check_decode(inputs, candidate, reference, *exact, length, window, masked);
  };
  return first_refusal({[&] {
                          return check({1, 1, 64});
                        },
                        [&] {
                          return check({1, 300, 64});
                        },
                        [&] {
                          return check({1, 37, 80, true});
                        },
                        [&] {
                          return check({5, 40, 128, true, 20.0});
                        },
                        [&] { return check_prompt(inputs, candidate, reference, *exact, 64); },
                        [&] { return check_prompt(inputs, candidate, reference, *exact, 128); },
                        [&] { return decode(1, 0, false); },
                        [&] { return decode(299, 0, true); },
                        [&] { return decode(131, 50, false); }});
}

}  // namespace graft::layers
