#include <cmath>
#include <limits>

#include <fmt/format.h>

#include "graft/layers/guard.h"
#include "graft/layers/guard_check.h"

namespace graft::layers {

namespace {

// A call with B2, 6 query heads on 2 key heads.
struct Case {
  int64_t queries = 1;
  int64_t keys = 1;
  int64_t head_dim = 64;
  bool masked = false;
  double softcap = 0.0;
};

}  // namespace

std::string guard(const Attention::Spec& spec, const Attention::Kernel& candidate,
                  const Attention::Kernel& reference, at::ScalarType dtype, at::Device device) {
  GuardInputs inputs(dtype, device);
  const auto exact = Attention::reference(spec);
  const auto check = [&](const Case& c) {
    const std::string what = fmt::format("forward S{} T{} D{}{}", c.queries, c.keys, c.head_dim,
                                         c.masked ? ", mask" : "");
    return attempt(what, [&] {
      // The keys lie in a cache with room for more.
      const at::Tensor query = inputs.normal({2, c.queries, 6, c.head_dim}),
                       key = inputs.normal({2, 2, c.keys + 9, c.head_dim}).narrow(2, 0, c.keys),
                       value = inputs.normal({2, 2, c.keys + 9, c.head_dim}).narrow(2, 0, c.keys);
      at::Tensor mask, wide_mask;
      if (c.masked) {
        mask = inputs.normal({2, 1, c.queries, c.keys});
        mask = mask.masked_fill(mask.lt(-0.5), -std::numeric_limits<double>::infinity());
        wide_mask = to_exact(mask);
      }
      const double scale = 1.0 / std::sqrt(static_cast<double>(c.head_dim));
      const at::Tensor right = exact->forward(to_exact(query), to_exact(key), to_exact(value),
                                              wide_mask, scale, c.softcap);
      return compare(what, candidate.forward(query, key, value, mask, scale, c.softcap),
                     reference.forward(query, key, value, mask, scale, c.softcap), right,
                     rounding_unit(at::kFloat) * largest(to_exact(value)));
    });
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
                        }});
}

}  // namespace graft::layers
