// Attention of one query over a cache, beside ATen's.

#include "kernels/common/bench_harness.h"

namespace {

using graft_kernels::testing::Harness;
using graft_kernels::testing::Package;
using graft_kernels::testing::Row;

struct Shape {
  int64_t batch, keys, heads, key_heads, head_dim;
};

std::string text(const Shape& s) {
  return "B" + std::to_string(s.batch) + "_S1_T" + std::to_string(s.keys) + "_H" +
         std::to_string(s.heads) + "/" + std::to_string(s.key_heads) + "_D" +
         std::to_string(s.head_dim);
}

void bench_decode(Harness& harness, at::ScalarType dtype, const Shape& s) {
  const Package& package = Package::for_device("attention", harness.device());
  const at::TensorOptions options = at::TensorOptions(harness.device()).dtype(dtype);
  const at::Tensor query = at::randn({s.batch, 1, s.heads, s.head_dim}, options);
  const at::Tensor key = at::randn({s.batch, s.key_heads, s.keys, s.head_dim}, options);
  const at::Tensor value = at::randn({s.batch, s.key_heads, s.keys, s.head_dim}, options);
  const double scale = 1.0 / std::sqrt(static_cast<double>(s.head_dim));
  at::Tensor out = at::empty_like(query);
  const auto theirs = [&] {
    return at::scaled_dot_product_attention(query.transpose(1, 2), key, value, std::nullopt, 0.0,
                                            false, scale, /*enable_gqa=*/true);
  };
  Row row;
  row.op = "attention";
  row.variant = "decode";
  row.dtype = c10::toString(dtype);
  row.shape = text(s);
  row.bytes = static_cast<int64_t>(query.element_size()) * 2 *
              (s.batch * s.head_dim * (s.key_heads * s.keys + s.heads));
  row.flops = 4.0 * static_cast<double>(s.batch * s.heads * s.keys * s.head_dim);
  row.work = [&] {
    package("attention_out", out, query, key, value, c10::IValue(), scale, 0.0, true);
  };
  row.peers = {{"at::scaled_dot_product_attention", [&] { theirs(); }}};
  row.difference = [&] {
    row.work();
    return graft_kernels::testing::largest_error(out, theirs().transpose(1, 2).to(at::kDouble));
  };
  row.tolerance = dtype == at::kFloat ? 1e-5 : 1e-2;
  harness.run(row);
}

// How the number of parts matters: what choose_splits in attention_cuda.cu was set by.
void bench_splits(Harness& harness, const Shape& s) {
  const Package& package = Package::for_device("attention", harness.device());
  const at::TensorOptions options = at::TensorOptions(harness.device()).dtype(at::kBFloat16);
  const at::Tensor query = at::randn({s.batch, 1, s.heads, s.head_dim}, options);
  const at::Tensor key = at::randn({s.batch, s.key_heads, s.keys, s.head_dim}, options);
  const at::Tensor value = at::randn({s.batch, s.key_heads, s.keys, s.head_dim}, options);
  at::Tensor out = at::empty_like(query);
  for (const int64_t splits : {1, 2, 3, 4, 8, 12, 16, 24, 32, 33, 48, 64, 96}) {
    if (splits * s.batch * s.key_heads > 4096 || s.keys / splits > 8192) {
      continue;
    }
    Row row;
    row.op = "attention_decode";
    row.variant = "splits " + std::to_string(splits);
    row.dtype = "BFloat16";
    row.shape = text(s) + "/" + std::to_string(splits);
    row.bytes = 4 * s.batch * s.head_dim * (s.key_heads * s.keys + s.heads);
    row.work = [&, splits] {
      package("attention_decode_out", out, c10::IValue(), query, key, value, c10::IValue(),
              c10::IValue(), c10::IValue(), c10::IValue(), 0.088, 0.0, int64_t{0}, true, splits);
    };
    harness.run(row);
  }
}

// A prompt of S tokens; peers get the same tensors.
void bench_prompt(Harness& harness, at::ScalarType dtype, const Shape& s, bool causal) {
  const Package& package = Package::for_device("attention", harness.device());
  const at::TensorOptions options = at::TensorOptions(harness.device()).dtype(dtype);
  const at::Tensor query = at::randn({s.batch, s.keys, s.heads, s.head_dim}, options);
  const at::Tensor key =
      at::randn({s.batch, s.keys, s.key_heads, s.head_dim}, options).transpose(1, 2);
  const at::Tensor value =
      at::randn({s.batch, s.keys, s.key_heads, s.head_dim}, options).transpose(1, 2);
  const double scale = 1.0 / std::sqrt(static_cast<double>(s.head_dim));
  at::Tensor out = at::empty_like(query);
  const auto flash = [&] {
    return std::get<0>(at::_scaled_dot_product_flash_attention(query.transpose(1, 2), key, value,
                                                               0.0, causal, false, scale));
  };
  Row row;
  row.op = "attention";
  row.variant = causal ? "prompt, causal" : "prompt, full";
  row.dtype = c10::toString(dtype);
  row.shape = "B" + std::to_string(s.batch) + "_S" + std::to_string(s.keys) + "_H" +
              std::to_string(s.heads) + "_D" + std::to_string(s.head_dim) + (causal ? "c" : "f");
  row.bytes = static_cast<int64_t>(query.element_size()) * 2 * s.batch * s.keys * s.head_dim *
              (s.heads + s.key_heads);
  row.flops =
      (causal ? 2.0 : 4.0) * static_cast<double>(s.batch * s.heads * s.keys * s.keys * s.head_dim);
  row.work = [&] {
    package("attention_out", out, query, key, value, c10::IValue(), scale, 0.0, causal);
  };
  row.peers = {{"cudnn",
                [&] {
                  at::_scaled_dot_product_cudnn_attention(query.transpose(1, 2), key, value,
                                                          std::nullopt, false, 0.0, causal, false,
                                                          scale);
                }},
               {"flash2", [&] { flash(); }}};
  row.difference = [&] {
    row.work();
    return graft_kernels::testing::largest_error(out, flash().transpose(1, 2).to(at::kDouble));
  };
  row.tolerance = 2e-2;
  harness.run(row);
}

}  // namespace

int main() {
  return graft_kernels::testing::run_benchmarks([](Harness& harness) {
    if (!harness.device().is_cuda()) {
      bench_decode(harness, at::kFloat, {1, 1024, 9, 3, 64});
      bench_decode(harness, at::kFloat, {1, 4096, 32, 8, 128});
      bench_decode(harness, at::kBFloat16, {1, 4096, 32, 8, 128});
      return;
    }
    for (const Shape& shape : std::vector<Shape>{{1, 512, 32, 8, 128},
                                                 {1, 4096, 32, 8, 128},
                                                 {1, 32768, 32, 8, 128},
                                                 {32, 4096, 32, 8, 128},
                                                 {1, 2048, 32, 8, 64},
                                                 {8, 4096, 16, 16, 128},
                                                 {4, 8192, 16, 2, 256}}) {
      bench_decode(harness, at::kBFloat16, shape);
    }
    for (const Shape& shape : std::vector<Shape>{
             {1, 4096, 32, 8, 128}, {1, 32768, 32, 8, 128}, {32, 4096, 32, 8, 128}}) {
      bench_splits(harness, shape);
    }
    for (const bool causal : {true, false}) {
      bench_prompt(harness, at::kBFloat16, {2, 4096, 32, 32, 128}, causal);
      bench_prompt(harness, at::kBFloat16, {1, 16384, 32, 32, 128}, causal);
      bench_prompt(harness, at::kBFloat16, {2, 4096, 32, 32, 64}, causal);
    }
    bench_decode(harness, at::kHalf, {1, 4096, 32, 8, 128});
    bench_decode(harness, at::kFloat, {1, 4096, 32, 8, 128});
  });
}
