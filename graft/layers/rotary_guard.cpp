#include <cmath>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "graft/layers/exact.h"
#include "graft/layers/guard.h"
#include "graft/layers/guard_check.h"

namespace graft::layers {

RotaryTables make_tables(int64_t batch, int64_t length, int64_t rotary_dim, at::ScalarType dtype,
                         at::Device device) {
  const auto wide = at::TensorOptions().dtype(at::kDouble);
  const at::Tensor positions = at::arange(batch * length, wide).view({batch, length, 1}) * 0.37;
  const at::Tensor angles = positions / (1.0 + at::arange(rotary_dim / 2, wide));
  const auto table = [&](const at::Tensor& a, const at::Tensor& b) {
    return at::cat({a, b}, -1).to(dtype).to(device);
  };
  const at::Tensor cos = angles.cos(), sin = angles.sin();
  return {table(cos, cos), table(sin, sin), table(sin.neg(), sin)};
}

at::Tensor exact_rotation(const at::Tensor& x, const RotaryTables& tables) {
  const int64_t dim = tables.cos.size(-1), half = dim / 2;
  const at::Tensor head = to_exact(x).slice(-1, 0, dim);
  const at::Tensor other = at::cat({head.slice(-1, half, dim).neg(), head.slice(-1, 0, half)}, -1);
  const at::Tensor cos = to_exact(tables.cos).unsqueeze(2), sin = to_exact(tables.sin).unsqueeze(2);
  return at::cat({head * cos + other * sin, to_exact(x).slice(-1, dim)}, -1);
}

RotaryTables rows_of(const RotaryTables& tables, const at::Tensor& positions) {
  const at::Tensor rows = positions.cpu().to(at::kLong);
  const auto row = [&](const at::Tensor& table) {
    return table.cpu()[0].index_select(0, rows).unsqueeze(1);
  };
  return {row(tables.cos), row(tables.sin), row(tables.signed_sin)};
}

namespace {

// One new token of each of two rows into a cache, rotated by `rotary_dim` elements of a head.
std::string check_append(GuardInputs& inputs, const Rotary::Kernel& candidate,
                         const Rotary::Kernel& reference, int64_t rotary_dim, at::ScalarType dtype,
                         at::Device device) {
  constexpr int64_t kPlaces = 7, kLength = 5;
  const std::string what = fmt::format("append_forward [2, 1, 4, 32], {} turned", rotary_dim);
  return attempt(what, [&] {
    const at::Tensor fused = inputs.normal({2, 1, 8, 32});
    const at::Tensor query = fused.narrow(2, 0, 4), key = fused.narrow(2, 4, 2),
                     value = fused.narrow(2, 6, 2);
    const at::Tensor cache = inputs.normal({2, 2, kPlaces, 32});
    const RotaryTables tables = make_tables(1, kPlaces, rotary_dim, dtype, device);
    const auto whole = at::TensorOptions().dtype(at::kInt);
    const StepPlace place{at::full({2}, kLength, whole).to(device),
                          at::tensor({4, 1}, whole).to(device)};
    const RotaryTables own = rows_of(tables, place.positions);
    at::Tensor exact_keys = to_exact(cache).clone(), exact_values = to_exact(cache).clone();
    exact_keys.select(2, kLength - 1).copy_(exact_rotation(key, own).squeeze(1));
    exact_values.select(2, kLength - 1).copy_(to_exact(value).squeeze(1));
    struct Result {
      at::Tensor query, keys, values;
    };
    const auto run = [&](const Rotary::Kernel& kernel) {
      Result result{{}, cache.clone(), cache.clone()};
      result.query =
          kernel.append_forward(query, key, value, tables, place, result.keys, result.values);
      return result;
    };
    const Result ours = run(candidate), theirs = run(reference);
    return first_refusal(
        {[&] {
           return compare(what + ", query", ours.query, theirs.query, exact_rotation(query, own));
         },
         [&] { return compare(what + ", keys", ours.keys, theirs.keys, exact_keys); },
         [&] { return compare(what + ", values", ours.values, theirs.values, exact_values); }});
  });
}

}  // namespace

std::string guard(const Rotary::Spec&, const Rotary::Kernel& candidate,
                  const Rotary::Kernel& reference, at::ScalarType dtype, at::Device device) {
  GuardInputs inputs(dtype, device);
  const auto check = [&](const std::string& what, const at::Tensor& query, const at::Tensor& key,
                         const RotaryTables& tables) {
    return attempt(what, [&] {
      const auto ours = candidate.forward(query, key, tables),
                 theirs = reference.forward(query, key, tables);
      return first_refusal({[&] {
                              return compare(what + ", query", ours.first, theirs.first,
                                             exact_rotation(query, tables));
                            },
                            [&] {
                              return compare(what + ", key", ours.second, theirs.second,
                                             exact_rotation(key, tables));
                            }});
    });
  };
  const auto backward = [&] {
    const RotaryTables tables = make_tables(2, 3, 16, dtype, device);
    const auto both = [](const std::pair<at::Tensor, at::Tensor>& out) {
      return std::vector<at::Tensor>{out.first, out.second};
    };
    return compare_gradients(
        "backward [2, 3, 4, 24]", {inputs.normal({2, 3, 4, 24}), inputs.normal({2, 3, 2, 24})},
        [&](const auto& in) { return both(candidate.forward(in[0], in[1], tables)); },
        [&](const auto& in) { return both(reference.forward(in[0], in[1], tables)); },
        [&](const auto& in) -> std::vector<at::Tensor> {
          return {exact_rotation(in[0], tables), exact_rotation(in[1], tables)};
        });
  };
  const at::Tensor fused = inputs.normal({2, 5, 7, 32});
  const std::string refusal = first_refusal(
      {[&] {
         return check("forward [1, 1, 3, 8]", inputs.normal({1, 1, 3, 8}),
                      inputs.normal({1, 1, 1, 8}), make_tables(1, 1, 8, dtype, device));
       },
       [&] {
         return check("forward [2, 5, 4, 32], views", fused.narrow(2, 0, 4), fused.narrow(2, 4, 3),
                      make_tables(2, 5, 32, dtype, device));
       },
       [&] {
         return check("forward [2, 5, 4, 32], half of it", fused.narrow(2, 0, 4),
                      fused.narrow(2, 4, 3), make_tables(1, 5, 16, dtype, device));
       },
       [&] {
         return check("forward [2, 5, 4, 32], float32 tables", fused.narrow(2, 0, 4),
                      fused.narrow(2, 4, 3), make_tables(1, 5, 32, at::kFloat, device));
       },
       [&] {
         return check("forward [1, 0, 2, 8]", inputs.normal({1, 0, 2, 8}),
                      inputs.normal({1, 0, 1, 8}), make_tables(1, 0, 8, dtype, device));
       },
       [&] { return check_append(inputs, candidate, reference, 32, dtype, device); },
       [&] { return check_append(inputs, candidate, reference, 16, dtype, device); }});
  return refusal.empty() && candidate.has_backward() ? backward() : refusal;
}

}  // namespace graft::layers
