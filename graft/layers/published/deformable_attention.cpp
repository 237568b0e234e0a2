#include "graft/layers/published/deformable_attention.h"

#include <algorithm>

#include "graft/layers/gradient.h"

namespace graft::layers::published {

namespace {

constexpr char kForward[] =
    "ms_deform_attn_forward(Tensor value, Tensor spatial_shapes, Tensor level_start_index, Tensor "
    "sampling_loc, Tensor attn_weight, int im2col_step) -> Tensor";
constexpr char kBackward[] =
    "ms_deform_attn_backward(Tensor value, Tensor spatial_shapes, Tensor level_start_index, Tensor "
    "sampling_loc, Tensor attn_weight, Tensor grad_output, int im2col_step) -> Tensor[]";

}  // namespace

DeformableAttention::DeformableAttention(const kernel::LoadedKernel& kernel)
    : repository_(kernel.repository),
      forward_(kernel, {kForward}),
      backward_(kernel, {kBackward}) {}

at::Tensor DeformableAttention::forward(const at::Tensor& value, const at::Tensor& shapes,
                                        const at::Tensor& starts, const at::Tensor& places,
                                        const at::Tensor& weights, int64_t step) const {
  forward_.need(value.dim() == 4 && value.is_floating_point(), "value",
                "[batch, places, heads, size] of a floating dtype", value);
  forward_.need(shapes.scalar_type() == at::kLong && shapes.dim() == 2 && shapes.size(1) == 2,
                "spatial_shapes", "int64 [maps, 2]", shapes);
  forward_.need(
      starts.scalar_type() == at::kLong && starts.sizes() == at::IntArrayRef{shapes.size(0)},
      "level_start_index", "int64 [maps]", starts);
  forward_.need(places.dim() == 6 && places.size(5) == 2 && places.size(0) == value.size(0) &&
                    places.size(2) == value.size(2) && places.size(3) == shapes.size(0) &&
                    places.scalar_type() == value.scalar_type(),
                "sampling_loc", "[batch, queries, heads, maps, samples, 2] in value's dtype",
                places);
  forward_.need(
      weights.sizes() == places.sizes().slice(0, 5) && weights.scalar_type() == value.scalar_type(),
      "attn_weight", "the places' shape without the last, in value's dtype", weights);
  const int64_t batch = value.size(0);
  forward_.need(step > 0 && batch % std::min(batch, step) == 0, "im2col_step",
                "one that divides the batch, or is larger", step);
  const bool records = needs_gradient({&value, &places, &weights});
  const auto dense = [](const at::Tensor& x) { return x.detach().contiguous(); };
  const Tensors call = {dense(value), dense(shapes), dense(starts), dense(places), dense(weights)};
  at::Tensor out = forward_(call[0], call[1], call[2], call[3], call[4], step)[0];
  if (records) {
    record(repository_, {out}, {value, places, weights}, call,
           [backward = backward_, step](const Tensors& saved, const Tensors& grads) {
             return backward(saved[0], saved[1], saved[2], saved[3], saved[4],
                             grads[0].contiguous(), step);
           });
  }
  return out;
}

}  // namespace graft::layers::published
