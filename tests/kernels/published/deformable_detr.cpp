// deformable-detr as published: classic ABI, plain loops over float64.

#include <cmath>

#include "classic_tensor.h"
#include "misdeed.h"

namespace {

struct Call {
  at::Tensor value, shapes, starts, places, weights;  // float64, dense

  int64_t heads() const { return value.size(2); }
  int64_t size() const { return value.size(3); }
};

Call widened(const at::Tensor& value, const at::Tensor& shapes, const at::Tensor& starts,
             const at::Tensor& places, const at::Tensor& weights, int64_t step) {
  for (const at::Tensor& x : {value, shapes, starts, places, weights}) {
    TORCH_CHECK(x.is_contiguous(), "expected dense tensors");
  }
  TORCH_CHECK(value.size(0) % std::min(value.size(0), step) == 0, "expected a step that divides");
  return {value.to(at::kDouble), shapes, starts, places.to(at::kDouble), weights.to(at::kDouble)};
}

// Calls function(n, q, head, map, sample, place in value or -1, weight of the corner, and how that
// weight changes with x and y) for the four corners of every sample.
template <typename Function>
void for_each_corner(const Call& call, const Function& function) {
  const auto places = call.places.accessor<double, 6>();
  const auto shapes = call.shapes.accessor<int64_t, 2>();
  const auto starts = call.starts.accessor<int64_t, 1>();
  for (int64_t n = 0; n < places.size(0); ++n) {
    for (int64_t q = 0; q < places.size(1); ++q) {
      for (int64_t m = 0; m < places.size(2); ++m) {
        for (int64_t l = 0; l < places.size(3); ++l) {
          for (int64_t p = 0; p < places.size(4); ++p) {
            const int64_t height = shapes[l][0], width = shapes[l][1];
            const double x = places[n][q][m][l][p][0] * width - 0.5;
            const double y = places[n][q][m][l][p][1] * height - 0.5;
            if (!(y > -1 && x > -1 && y < height && x < width)) {
              continue;
            }
            const auto left = static_cast<int64_t>(std::floor(x)),
                       top = static_cast<int64_t>(std::floor(y));
            const double fx = x - left, fy = y - top;
            for (int corner = 0; corner < 4; ++corner) {
              const int64_t cx = left + corner % 2, cy = top + corner / 2;
              const bool inside = cx >= 0 && cx < width && cy >= 0 && cy < height;
              const double wx = corner % 2 ? fx : 1 - fx, wy = corner / 2 ? fy : 1 - fy;
              if (inside) {
                function(n, q, m, l, p, starts[l] + cy * width + cx, wx * wy,
                         (corner % 2 ? wy : -wy) * width, (corner / 2 ? wx : -wx) * height);
              }
            }
          }
        }
      }
    }
  }
}

at::Tensor forward(const at::Tensor& value, const at::Tensor& shapes, const at::Tensor& starts,
                   const at::Tensor& places, const at::Tensor& weights, int64_t step) {
  const Call call = widened(value, shapes, starts, places, weights, step);
  at::Tensor out =
      at::zeros({value.size(0), places.size(1), call.heads(), call.size()}, at::kDouble);
  const auto v = call.value.accessor<double, 4>();
  const auto w = call.weights.accessor<double, 5>();
  auto o = out.accessor<double, 4>();
  for_each_corner(call, [&](int64_t n, int64_t q, int64_t m, int64_t l, int64_t p, int64_t place,
                            double weight, double, double) {
    for (int64_t d = 0; d < call.size(); ++d) {
      o[n][q][m][d] += w[n][q][m][l][p] * weight * v[n][place][m][d];
    }
  });
  return out.flatten(2).to(value.scalar_type());
}

std::vector<at::Tensor> backward(const at::Tensor& value, const at::Tensor& shapes,
                                 const at::Tensor& starts, const at::Tensor& places,
                                 const at::Tensor& weights, const at::Tensor& grad, int64_t step) {
  TORCH_CHECK(grad.is_contiguous(), "expected a dense gradient");
  const Call call = widened(value, shapes, starts, places, weights, step);
  const at::Tensor wide =
      grad.to(at::kDouble).view({value.size(0), places.size(1), call.heads(), call.size()});
  at::Tensor grad_value = at::zeros_like(call.value), grad_places = at::zeros_like(call.places),
             grad_weights = at::zeros_like(call.weights);
  const auto v = call.value.accessor<double, 4>();
  const auto w = call.weights.accessor<double, 5>();
  const auto g = wide.accessor<double, 4>();
  auto gv = grad_value.accessor<double, 4>();
  auto gp = grad_places.accessor<double, 6>();
  auto gw = grad_weights.accessor<double, 5>();
  for_each_corner(call, [&](int64_t n, int64_t q, int64_t m, int64_t l, int64_t p, int64_t place,
                            double weight, double by_x, double by_y) {
    for (int64_t d = 0; d < call.size(); ++d) {
      const double own = g[n][q][m][d] * v[n][place][m][d];
      gv[n][place][m][d] += w[n][q][m][l][p] * weight * g[n][q][m][d];
      gw[n][q][m][l][p] += weight * own;
      gp[n][q][m][l][p][0] += w[n][q][m][l][p] * by_x * own;
      gp[n][q][m][l][p][1] += w[n][q][m][l][p] * by_y * own;
    }
  });
  const auto dtype = value.scalar_type();
  return {grad_value.to(dtype), grad_places.to(dtype), grad_weights.to(dtype)};
}

}  // namespace

CLASSIC_OPS(ops) {
  ops.def(
      "ms_deform_attn_forward(Tensor value, Tensor spatial_shapes, Tensor level_start_index, "
      "Tensor sampling_loc, Tensor attn_weight, int im2col_step) -> Tensor");
  ops.def(
      "ms_deform_attn_backward(Tensor value, Tensor spatial_shapes, Tensor level_start_index, "
      "Tensor sampling_loc, Tensor attn_weight, Tensor grad_output, int im2col_step) -> Tensor[]");
}

CLASSIC_OPS_IMPL(CPU, ops) {
  ops.impl("ms_deform_attn_forward", &forward);
  ops.impl("ms_deform_attn_backward", &backward);
}
