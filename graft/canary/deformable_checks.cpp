// Deformable attention, as published, against bilinear look-ups of every map.

#include "graft/canary/op_checks.h"
#include "graft/layers/published/deformable_attention.h"

namespace graft::canary {

namespace {

constexpr int64_t kMaps[][2] = {{4, 5}, {2, 3}};  // height and width
constexpr int64_t kMapPlaces = 20 + 6;

// value [N, S, M, D], places [N, Lq, M, L, P, 2], weights [N, Lq, M, L, P], all float64.
at::Tensor sample(const at::Tensor& value, const at::Tensor& places, const at::Tensor& weights) {
  const int64_t batch = value.size(0), heads = value.size(2), size = value.size(3),
                queries = places.size(1), samples = places.size(4);
  std::vector<at::Tensor> sampled;
  int64_t start = 0, map = 0;
  for (const auto& [height, width] : kMaps) {
    const at::Tensor own = value.narrow(1, start, height * width)
                               .permute({0, 2, 3, 1})
                               .reshape({batch * heads, size, height, width});
    const at::Tensor grid = (places.select(3, map++) * 2.0 - 1.0)
                                .transpose(1, 2)
                                .reshape({batch * heads, queries, samples, 2});
    sampled.push_back(at::grid_sampler(own, grid, 0, 0, /*align_corners=*/false));
    start += height * width;
  }
  const at::Tensor all = at::stack(sampled, -2).flatten(-2);  // [N M, D, Lq, L P]
  const at::Tensor factors = weights.transpose(1, 2).reshape({batch * heads, 1, queries, -1});
  return (all * factors).sum(-1).view({batch, heads * size, queries}).transpose(1, 2);
}

}  // namespace

void check_deformable_attention(OpChecks& checks) {
  if (!checks.has("ms_deform_attn_forward")) {
    return;
  }
  const layers::published::DeformableAttention attention(checks.kernel());
  const at::Tensor shapes = checks.integers({4, 5, 2, 3}, at::kLong).view({2, 2}),
                   starts = checks.integers({0, 20}, at::kLong);
  // Some places lie outside of the maps.
  const auto inputs = [&]() -> std::vector<at::Tensor> {
    return {checks.normal({2, kMapPlaces, 2, 8}),
            checks.normal({2, 3, 2, 2, 4, 2}, 0.3).sigmoid().mul(1.4).sub(0.2),
            checks.normal({2, 3, 2, 2, 4}).softmax(-1)};
  };
  checks.check("ms_deform_attn_forward", "", {at::kFloat}, [&]() -> Answers {
    const auto in = inputs();
    return {{attention.forward(in[0], shapes, starts, in[1], in[2]),
             sample(layers::to_exact(in[0]), layers::to_exact(in[1]), layers::to_exact(in[2])),
             {}}};
  });
  checks.check_gradients("ms_deform_attn_backward", "", {at::kFloat}, [&]() -> Differentiable {
    return {
        inputs(),
        [&](const auto& in) -> std::vector<at::Tensor> {
          return {attention.forward(in[0], shapes, starts, in[1], in[2])};
        },
        [](const auto& in) -> std::vector<at::Tensor> { return {sample(in[0], in[1], in[2])}; }};
  });
}

}  // namespace graft::canary
