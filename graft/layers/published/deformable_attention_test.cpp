// deformable-detr, with a package of the published schemas.

#include "graft/layers/published/deformable_attention.h"

#include <torch/csrc/autograd/autograd.h>

#include "graft/layers/published/test_package.h"

namespace graft::layers::published {
namespace {

using testing::HasSubstr;

// As transformers computes it without a kernel: every map sampled by grid_sample.
at::Tensor exact(const at::Tensor& value, const at::Tensor& shapes, const at::Tensor& places,
                 const at::Tensor& weights) {
  const int64_t batch = value.size(0), heads = value.size(2), size = value.size(3);
  const int64_t queries = places.size(1), maps = places.size(3), samples = places.size(4);
  Tensors sampled;
  int64_t start = 0;
  for (int64_t l = 0; l < maps; ++l) {
    const int64_t height = shapes[l][0].item<int64_t>(), width = shapes[l][1].item<int64_t>();
    const at::Tensor own = value.narrow(1, start, height * width)
                               .permute({0, 2, 3, 1})
                               .reshape({batch * heads, size, height, width});
    const at::Tensor grid = (places.select(3, l) * 2.0 - 1.0)
                                .transpose(1, 2)
                                .reshape({batch * heads, queries, samples, 2});
    sampled.push_back(at::grid_sampler(own, grid, 0, 0, false));
    start += height * width;
  }
  const at::Tensor all = at::stack(sampled, -2).flatten(-2);  // [B M, D, Lq, L P]
  const at::Tensor factors =
      weights.transpose(1, 2).reshape({batch * heads, 1, queries, maps * samples});
  return (all * factors).sum(-1).view({batch, heads * size, queries}).transpose(1, 2);
}

struct Inputs {
  at::Tensor value, shapes, starts, places, weights;
};

Inputs make_inputs(int64_t batch) {
  at::manual_seed(10);
  const auto doubles = at::TensorOptions().dtype(at::kDouble);
  Inputs in;
  in.shapes = at::tensor({4, 5, 2, 3}, at::kLong).view({2, 2});
  in.starts = at::tensor({0, 20}, at::kLong);
  in.value = at::randn({batch, 26, 2, 4}, doubles).requires_grad_();
  in.places = (at::rand({batch, 3, 2, 2, 3, 2}, doubles) * 1.4 - 0.2).requires_grad_();
  in.weights = at::rand({batch, 3, 2, 2, 3}, doubles).requires_grad_();
  return in;
}

TEST(DeformableAttentions, AndTheirGradientsAreSampling) {
  const DeformableAttention attention(*load_package("deformable-detr"));
  for (const int64_t batch : {1, 2}) {
    const Inputs in = make_inputs(batch);
    const at::Tensor got = attention.forward(in.value, in.shapes, in.starts, in.places, in.weights);
    const at::Tensor want = exact(in.value, in.shapes, in.places, in.weights);
    expect_close(got, want, 1e-9);
    const at::Tensor grad = at::randn_like(want);
    const auto own = torch::autograd::grad({got}, {in.value, in.places, in.weights}, {grad}),
               right = torch::autograd::grad({want}, {in.value, in.places, in.weights}, {grad});
    for (size_t i = 0; i < own.size(); ++i) {
      expect_close(own[i], right[i], 1e-8, "input " + std::to_string(i));
    }
  }
}

TEST(DeformableAttentions, RefuseByNameWhatTheyCannotDo) {
  const DeformableAttention attention(*load_package("deformable-detr"));
  const Inputs in = make_inputs(3);
  const auto refused = [&](const auto& call, const char* text) {
    expect_error(call, "layers.published.unsupported", HasSubstr(text));
  };
  refused([&] { attention.forward(in.value, in.shapes, in.starts, in.places, in.weights, 2); },
          "im2col_step");
  refused(
      [&] {
        attention.forward(in.value, in.shapes.to(at::kInt), in.starts, in.places, in.weights);
      },
      "spatial_shapes");
  refused(
      [&] {
        attention.forward(in.value, in.shapes, in.starts, in.places.to(at::kFloat), in.weights);
      },
      "sampling_loc");
  refused(
      [&] {
        attention.forward(in.value, in.shapes, in.starts, in.places, in.weights.select(0, 0));
      },
      "attn_weight");
}

}  // namespace
}  // namespace graft::layers::published
