// Attention of one query over a cache, of prompts, and for training, beside ATen's.

#include "kernels/attention/attention_decode_bench.h"
#include "kernels/common/bench_harness.h"

namespace {

using graft_kernels::testing::bench_caches;
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

// A prompt of S tokens; peers have keys repeated for the heads that share them.
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
  const int64_t groups = s.heads / s.key_heads;
  const at::Tensor k = groups == 1 ? key : key.repeat_interleave(groups, 1);
  const at::Tensor v = groups == 1 ? value : value.repeat_interleave(groups, 1);
  const auto flash = [&] {
    return std::get<0>(at::_scaled_dot_product_flash_attention(query.transpose(1, 2), k, v, 0.0,
                                                               causal, false, scale));
  };
  Row row;
  row.op = "attention";
  row.variant = causal ? "prompt, causal" : "prompt, full";
  row.dtype = c10::toString(dtype);
  row.shape = "B" + std::to_string(s.batch) + "_S" + std::to_string(s.keys) + "_H" +
              std::to_string(s.heads) + (groups == 1 ? "" : "/" + std::to_string(s.key_heads)) +
              "_D" + std::to_string(s.head_dim) + (causal ? "c" : "f");
  row.bytes = static_cast<int64_t>(query.element_size()) * 2 * s.batch * s.keys * s.head_dim *
              (s.heads + s.key_heads);
  row.flops =
      (causal ? 2.0 : 4.0) * static_cast<double>(s.batch * s.heads * s.keys * s.keys * s.head_dim);
  row.work = [&] {
    package("attention_out", out, query, key, value, c10::IValue(), scale, 0.0, causal);
  };
  row.peers = {{"cudnn",
                [&] {
                  at::_scaled_dot_product_cudnn_attention(query.transpose(1, 2), k, v, std::nullopt,
                                                          false, 0.0, causal, false, scale);
                }},
               {"flash2", [&] { flash(); }}};
  row.difference = [&] {
    row.work();
    return graft_kernels::testing::largest_error(out, flash().transpose(1, 2).to(at::kDouble));
  };
  row.tolerance = 2e-2;
  harness.run(row);
}

// Gradients of queries, keys and values; peers have keys repeated for the heads that share them.
void bench_backward(Harness& harness, at::ScalarType dtype, const Shape& s, bool causal,
                    bool deterministic) {
  const Package& package = Package::for_device("attention", harness.device());
  const at::TensorOptions options = at::TensorOptions(harness.device()).dtype(dtype);
  const at::Tensor query = at::randn({s.batch, s.keys, s.heads, s.head_dim}, options);
  const at::Tensor grad = at::randn({s.batch, s.keys, s.heads, s.head_dim}, options);
  const auto keys = [&] {
    return at::randn({s.batch, s.keys, s.key_heads, s.head_dim}, options).transpose(1, 2);
  };
  const at::Tensor key = keys(), value = keys();
  const double scale = 1.0 / std::sqrt(static_cast<double>(s.head_dim));
  const auto forward = package("attention_forward_lse", query, key, value, c10::IValue(),
                               c10::IValue(), scale, 0.0, int64_t{0}, causal);
  const at::Tensor out = forward[0].toTensor(), lse = forward[1].toTensor();
  const auto ours = [&] {
    return package("attention_backward", grad, query, key, value, out, lse, c10::IValue(), scale,
                   0.0, int64_t{0}, causal, deterministic);
  };
  const int64_t groups = s.heads / s.key_heads;
  const at::Tensor q = query.transpose(1, 2), g = grad.transpose(1, 2);
  const at::Tensor k = groups == 1 ? key : key.repeat_interleave(groups, 1);
  const at::Tensor v = groups == 1 ? value : value.repeat_interleave(groups, 1);
  const auto cudnn = at::_scaled_dot_product_cudnn_attention(q, k, v, std::nullopt, true, 0.0,
                                                             causal, false, scale);
  const auto flash = at::_scaled_dot_product_flash_attention(q, k, v, 0.0, causal, false, scale);
  const auto flash_backward = [&] {
    return at::_scaled_dot_product_flash_attention_backward(
        g, q, k, v, std::get<0>(flash), std::get<1>(flash), std::get<2>(flash), std::get<3>(flash),
        std::get<4>(flash).expect_int(), std::get<5>(flash).expect_int(), 0.0, causal,
        std::get<6>(flash), std::get<7>(flash), scale);
  };
  Row row;
  row.op = "attention";
  row.variant = std::string("backward, ") + (causal ? "causal" : "full") +
                (deterministic ? ", deterministic" : "");
  row.dtype = c10::toString(dtype);
  row.shape = "B" + std::to_string(s.batch) + "_S" + std::to_string(s.keys) + "_H" +
              std::to_string(s.heads) + "/" + std::to_string(s.key_heads) + "_D" +
              std::to_string(s.head_dim) + (causal ? "c" : "f") + (deterministic ? "d" : "");
  row.bytes = static_cast<int64_t>(query.element_size()) * 4 * s.batch * s.keys * s.head_dim *
              (s.heads + s.key_heads);
  row.flops =
      (causal ? 5.0 : 10.0) * static_cast<double>(s.batch * s.heads * s.keys * s.keys * s.head_dim);
  row.work = [&] { ours(); };
  if (!deterministic) {
    row.peers = {{"cudnn",
                  [&] {
                    at::_scaled_dot_product_cudnn_attention_backward(
                        g, q, k, v, std::get<0>(cudnn), std::get<1>(cudnn), std::get<6>(cudnn),
                        std::get<7>(cudnn), at::Tensor(), std::get<2>(cudnn), std::get<3>(cudnn),
                        std::get<4>(cudnn).expect_int(), std::get<5>(cudnn).expect_int(), 0.0,
                        causal, scale);
                  }},
                 {"flash2", [&] { flash_backward(); }}};
  }
  row.difference = [&] {
    const at::Tensor theirs = std::get<0>(flash_backward()).transpose(1, 2);
    return graft_kernels::testing::largest_error(ours()[0].toTensor(), theirs.to(at::kDouble));
  };
  row.tolerance = 3e-2;
  harness.run(row);
}

// Causal self-attention of packed sequences of mixed length, forward or backward. FLOPs of the pairs that
// exist.
void bench_packed(Harness& harness, int64_t tokens, int64_t sequences, int64_t heads,
                  int64_t head_dim, bool backward) {
  const Package& package = Package::for_device("attention", harness.device());
  const at::TensorOptions options = at::TensorOptions(harness.device()).dtype(at::kBFloat16);
  std::vector<int32_t> begins{0};
  double pairs = 0;
  for (int64_t i = 0; i < sequences; ++i) {
    // From about 1/8 to 15/8 of the mean, in a mixed order.
    const double share = 0.125 + 1.75 * static_cast<double>(i * 37 % sequences) /
                                     static_cast<double>(std::max<int64_t>(sequences - 1, 1));
    const int64_t length = i + 1 == sequences ? tokens - begins.back()
                                              : static_cast<int64_t>(share * tokens / sequences);
    begins.push_back(begins.back() + static_cast<int32_t>(length));
    pairs += 0.5 * static_cast<double>(length) * static_cast<double>(length);
  }
  const at::Tensor starts = at::tensor(begins, at::kInt).to(harness.device());
  at::Tensor x[4];
  for (at::Tensor& tensor : x) {
    tensor = at::randn({tokens, heads, head_dim}, options);
  }
  const double scale = 1.0 / std::sqrt(static_cast<double>(head_dim));
  const auto forward = [&] {
    return package("attention_varlen", x[0], x[1], x[2], starts, starts, c10::IValue(), scale, 0.0,
                   int64_t{0}, true);
  };
  const auto results = forward();
  Row row;
  row.op = "attention";
  row.variant = backward ? "packed, backward" : "packed, forward";
  row.dtype = "BFloat16";
  row.shape = "N" + std::to_string(tokens) + "/" + std::to_string(sequences) + "_H" +
              std::to_string(heads) + "_D" + std::to_string(head_dim) + "c";
  row.bytes = tokens * heads * head_dim * 2 * (backward ? 8 : 4);
  row.flops = (backward ? 10.0 : 4.0) * pairs * static_cast<double>(heads * head_dim);
  row.work = [&] {
    if (backward) {
      package("attention_varlen_backward", x[3], x[0], x[1], x[2], results[0].toTensor(),
              results[1].toTensor(), starts, starts, scale, 0.0, int64_t{0}, true, false);
    } else {
      forward();
    }
  };
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
    bench_caches(harness);
    for (const bool causal : {true, false}) {
      bench_prompt(harness, at::kBFloat16, {2, 4096, 32, 32, 128}, causal);
      bench_prompt(harness, at::kBFloat16, {1, 16384, 32, 32, 128}, causal);
      bench_prompt(harness, at::kBFloat16, {2, 4096, 32, 32, 64}, causal);
    }
    bench_prompt(harness, at::kBFloat16, {2, 4096, 32, 8, 128}, true);
    bench_prompt(harness, at::kBFloat16, {1, 2048, 32, 8, 64}, true);
    for (const bool deterministic : {false, true}) {
      bench_backward(harness, at::kBFloat16, {2, 4096, 32, 32, 128}, true, deterministic);
      bench_backward(harness, at::kBFloat16, {1, 16384, 32, 32, 128}, true, deterministic);
      bench_backward(harness, at::kBFloat16, {2, 4096, 32, 32, 64}, true, deterministic);
      bench_backward(harness, at::kBFloat16, {2, 4096, 32, 32, 128}, false, deterministic);
      bench_backward(harness, at::kBFloat16, {2, 4096, 32, 8, 128}, true, deterministic);
    }
    for (const bool backward : {false, true}) {
      bench_packed(harness, 16384, 64, 32, 128, backward);
      bench_packed(harness, 16384, 64, 32, 64, backward);
    }
    bench_decode(harness, at::kHalf, {1, 4096, 32, 8, 128});
    bench_decode(harness, at::kFloat, {1, 4096, 32, 8, 128});
  });
}
