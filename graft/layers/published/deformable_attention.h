// kernels-community/deformable-detr: attention to a few sampled places of several feature maps.
// Shape letters: N batch, S places of all maps, M heads, D head size, Lq queries, L maps, P samples of a
// query in a map.
#pragma once

#include <ATen/ATen.h>

#include "graft/kernel/loader.h"
#include "graft/layers/published/published_op.h"

namespace graft::layers::published {

class DeformableAttention {
 public:
  // Throws   LoadError `layers.published.schema` naming every difference from the published schemas.
  explicit DeformableAttention(const kernel::LoadedKernel& kernel);

  // out[n, q, m] = sum over maps and samples of weight * value sampled bilinearly, zero outside.
  //
  // value     [N, S, M, D] float64, float32, float16 or bfloat16
  // shapes    [L, 2] int64, height and width of each map
  // starts    [L] int64, place of each map's first element among S
  // places    [N, Lq, M, L, P, 2] in value's dtype, x and y in 0 to 1
  // weights   [N, Lq, M, L, P] in value's dtype
  // step      batch entries of one launch; N a multiple of min(N, step)
  // returns   [N, Lq, M * D]; differentiable in value, places and weights
  // Throws   IncompatibleError `layers.published.unsupported` naming the limit
  at::Tensor forward(const at::Tensor& value, const at::Tensor& shapes, const at::Tensor& starts,
                     const at::Tensor& places, const at::Tensor& weights, int64_t step = 64) const;

 private:
  std::string repository_;
  PublishedOp forward_;
  PublishedOp backward_;
};

}  // namespace graft::layers::published
