#include <limits>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "graft/layers/exact.h"
#include "graft/layers/guard.h"
#include "graft/layers/guard_check.h"

namespace graft::layers {

namespace {

class GuardOfQkNormRotary {
 public:
  GuardOfQkNormRotary(const QkNormRotary::Spec& spec, const QkNormRotary::Kernel& candidate,
                      const QkNormRotary::Kernel& reference, at::ScalarType dtype,
                      at::Device device)
      : spec_(spec),
        candidate_(candidate),
        reference_(reference),
        inputs_(dtype, device),
        dtype_(dtype),
        device_(device) {}

  // query and key are views of one tensor. `scale` is that of the heads.
  std::string check_forward(const std::string& more, int64_t batch, int64_t length, int64_t dim,
                            const RotaryTables& tables, double scale = 1.0, bool with_nan = false) {
    const std::string what = fmt::format("forward [{}, {}, 4 + 3, {}]{}", batch, length, dim, more);
    return attempt(what, [&] {
      at::Tensor fused = inputs_.normal({batch, length, 7, dim}, scale);
      if (with_nan) {
        fused[0][1][5][3] = std::numeric_limits<double>::quiet_NaN();
      }
      const at::Tensor query = fused.narrow(2, 0, 4), key = fused.narrow(2, 4, 3);
      const QkNormRotary::Norms norms = make_norms(dim);
      const auto ours = candidate_.forward(query, key, norms, tables),
                 theirs = reference_.forward(query, key, norms, tables);
      return first_refusal({[&] {
                              return compare(what + ", query", ours.first, theirs.first,
                                             exact(query, norms.query_weight, tables));
                            },
                            [&] {
                              return compare(what + ", key", ours.second, theirs.second,
                                             exact(key, norms.key_weight, tables));
                            }});
    });
  }

  // One new token of each of two rows into a cache.
  std::string check_append(int64_t rotary_dim) {
    constexpr int64_t kPlaces = 7, kLength = 5, kDim = 32;
    const std::string what = fmt::format("append_forward [2, 1, 4, 32], {} turned", rotary_dim);
    return attempt(what, [&] {
      const at::Tensor fused = inputs_.normal({2, 1, 8, kDim});
      const at::Tensor query = fused.narrow(2, 0, 4), key = fused.narrow(2, 4, 2),
                       value = fused.narrow(2, 6, 2);
      const at::Tensor cache = inputs_.normal({2, 2, kPlaces, kDim});
      const QkNormRotary::Norms norms = make_norms(kDim);
      const RotaryTables tables = make_tables(1, kPlaces, rotary_dim, dtype_, device_);
      const auto whole = at::TensorOptions().dtype(at::kInt);
      const StepPlace place{at::full({2}, kLength, whole).to(device_),
                            at::tensor({4, 1}, whole).to(device_)};
      const RotaryTables own = rows_of(tables, place.positions);
      at::Tensor exact_keys = to_exact(cache).clone(), exact_values = to_exact(cache).clone();
      exact_keys.select(2, kLength - 1).copy_(exact(key, norms.key_weight, own).squeeze(1));
      exact_values.select(2, kLength - 1).copy_(to_exact(value).squeeze(1));
      struct Result {
        at::Tensor query, keys, values;
      };
      const auto run = [&](const QkNormRotary::Kernel& kernel) {
        Result result{{}, cache.clone(), cache.clone()};
        result.query = kernel.append_forward(query, key, value, norms, tables, place, result.keys,
                                             result.values);
        return result;
      };
      const Result ours = run(candidate_), theirs = run(reference_);
      return first_refusal(
          {[&] {
             return compare(what + ", query", ours.query, theirs.query,
                            exact(query, norms.query_weight, own));
           },
           [&] { return compare(what + ", keys", ours.keys, theirs.keys, exact_keys); },
           [&] { return compare(what + ", values", ours.values, theirs.values, exact_values); }});
    });
  }

  RotaryTables tables(int64_t batch, int64_t length, int64_t rotary_dim) const {
    return make_tables(batch, length, rotary_dim, dtype_, device_);
  }
  RotaryTables float_tables(int64_t length, int64_t rotary_dim) const {
    return make_tables(1, length, rotary_dim, at::kFloat, device_);
  }

 private:
  static constexpr double kEps = 1e-5;

  QkNormRotary::Norms make_norms(int64_t dim) {
    return {inputs_.normal({dim}), inputs_.normal({dim}), kEps};
  }
  at::Tensor exact(const at::Tensor& x, const at::Tensor& weight,
                   const RotaryTables& tables) const {
    return exact_rotation(exact_rms_norm(spec_.variant, x, weight, kEps), tables);
  }

  const QkNormRotary::Spec& spec_;
  const QkNormRotary::Kernel& candidate_;
  const QkNormRotary::Kernel& reference_;
  GuardInputs inputs_;
  at::ScalarType dtype_;
  at::Device device_;
};

}  // namespace

std::string guard(const QkNormRotary::Spec& spec, const QkNormRotary::Kernel& candidate,
                  const QkNormRotary::Kernel& reference, at::ScalarType dtype, at::Device device) {
  GuardOfQkNormRotary guard(spec, candidate, reference, dtype, device);
  return first_refusal(
      {[&] { return guard.check_forward("", 1, 1, 8, guard.tables(1, 1, 8)); },
       [&] { return guard.check_forward(", views", 2, 5, 64, guard.tables(2, 5, 64)); },
       [&] { return guard.check_forward(", half of it", 2, 5, 32, guard.tables(1, 5, 16)); },
       [&] { return guard.check_forward(", odd", 2, 3, 10, guard.tables(1, 3, 6)); },
       [&] { return guard.check_forward(", float32 tables", 2, 5, 32, guard.float_tables(5, 32)); },
       [&] {  // small values, so that a wrong eps shows in every dtype
         return guard.check_forward(", small", 1, 4, 128, guard.tables(1, 4, 128), 1e-3);
       },
       [&] { return guard.check_forward("", 1, 0, 8, guard.tables(1, 0, 8)); },
       [&] {
         return guard.check_forward(", NaN", 1, 3, 64, guard.tables(1, 3, 64), 1.0,
                                    /*with_nan=*/true);
       },
       [&] { return guard.check_append(32); }, [&] { return guard.check_append(16); }});
}

}  // namespace graft::layers
