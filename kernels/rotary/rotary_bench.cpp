// Rotary position embedding of query and key beside eager evaluation; with norms before it beside our own ops too.

#include "kernels/common/bench_harness.h"
#include "kernels/rotary/norm_rotary_bench.h"

namespace {

using graft_kernels::rotary::bench_norm;
using graft_kernels::rotary::bench_norm_append;
using graft_kernels::testing::Harness;
using graft_kernels::testing::is_same_bits;
using graft_kernels::testing::Package;
using graft_kernels::testing::Row;

at::Tensor eager(const at::Tensor& x, const at::Tensor& cos, const at::Tensor& sin) {
  const int64_t half = x.size(-1) / 2;
  const at::Tensor turned = at::cat({-x.narrow(-1, half, half), x.narrow(-1, 0, half)}, -1);
  return x * cos.unsqueeze(2) + turned * sin.unsqueeze(2);
}

struct Shape {
  int64_t batch, length, query_heads, key_heads, head_dim;
};

void bench(Harness& harness, at::ScalarType dtype, const Shape& shape) {
  const Package& package = Package::for_device("rotary", harness.device());
  const at::TensorOptions options = at::TensorOptions(harness.device()).dtype(dtype);
  const at::Tensor query =
      at::randn({shape.batch, shape.length, shape.query_heads, shape.head_dim}, options);
  const at::Tensor key =
      at::randn({shape.batch, shape.length, shape.key_heads, shape.head_dim}, options);
  const at::Tensor cos = at::randn({1, shape.length, shape.head_dim}, options);
  const at::Tensor sin = at::randn({1, shape.length, shape.head_dim}, options);
  const at::Tensor query_out = at::empty_like(query), key_out = at::empty_like(key);
  Row row;
  row.op = "rotary";
  row.variant = "half_split, query and key";
  row.dtype = c10::toString(dtype);
  row.shape = "B" + std::to_string(shape.batch) + " S" + std::to_string(shape.length) + " " +
              std::to_string(shape.query_heads) + "+" + std::to_string(shape.key_heads) +
              " heads of " + std::to_string(shape.head_dim);
  row.bytes = (2 * (query.numel() + key.numel()) + 2 * cos.numel()) *
              static_cast<int64_t>(query.element_size());
  row.work = [&] { package("rotary_out", query_out, key_out, query, key, cos, sin, false, false); };
  row.peers = {{"eager", [&] {
                  eager(query, cos, sin);
                  eager(key, cos, sin);
                }}};
  row.difference = [&] {
    row.work();
    return is_same_bits(query_out, eager(query, cos, sin)) ? 0.0 : 1.0;
  };
  row.tolerance = 0;
  harness.run(row);
}

}  // namespace

int main() {
  return graft_kernels::testing::run_benchmarks([](Harness& harness) {
    at::NoGradGuard no_grad;
    if (harness.device().is_cuda()) {
      bench(harness, at::kBFloat16, {4, 4096, 32, 8, 128});
      bench(harness, at::kBFloat16, {4, 4096, 32, 8, 64});
      bench(harness, at::kBFloat16, {1, 1, 32, 8, 128});
      bench(harness, at::kBFloat16, {32, 1, 32, 8, 128});
      bench(harness, at::kHalf, {4, 4096, 32, 8, 128});
      bench(harness, at::kFloat, {4, 2048, 32, 8, 128});
      bench_norm(harness, at::kBFloat16, {4, 4096, 32, 8, 128});
      bench_norm(harness, at::kBFloat16, {1, 27030, 24, 24, 128});
      bench_norm(harness, at::kBFloat16, {1, 27030, 24, 24, 128, 0, true});
      bench_norm(harness, at::kBFloat16, {4, 4096, 32, 8, 64});
      bench_norm(harness, at::kBFloat16, {4, 4096, 8, 4, 256, 3});
      bench_norm(harness, at::kHalf, {4, 4096, 32, 8, 128});
      bench_norm(harness, at::kFloat, {4, 2048, 32, 8, 128});
      bench_norm(harness, at::kBFloat16, {1, 1, 32, 8, 128});
      bench_norm(harness, at::kBFloat16, {32, 1, 32, 8, 128});
      bench_norm_append(harness, at::kBFloat16, {1, 1, 32, 8, 128});
      bench_norm_append(harness, at::kBFloat16, {32, 1, 32, 8, 128});
      bench_norm_append(harness, at::kBFloat16, {1, 1, 8, 4, 256, 3});
    } else {
      bench(harness, at::kBFloat16, {1, 512, 9, 3, 64});
      bench(harness, at::kFloat, {1, 512, 9, 3, 64});
      bench(harness, at::kFloat, {1, 1, 9, 3, 64});
      for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16}) {
        bench_norm(harness, dtype, {1, 512, 32, 8, 128});
        bench_norm(harness, dtype, {1, 512, 4, 1, 256, 3});
        bench_norm(harness, dtype, {1, 1, 32, 8, 128});
        bench_norm_append(harness, dtype, {1, 1, 32, 8, 128});
      }
    }
  });
}
