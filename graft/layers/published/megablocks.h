// The native part of kernels-community/megablocks: the bookkeeping of a mixture of experts and its
// grouped product (CUDA), and the fused experts (CPU). Its gathers and scatters are Triton.
// A build registers the ops of its device; calling another throws   IncompatibleError
// `layers.published.missing-op`.
// Shape letters: T tokens, E experts, K experts of a token, H hidden, I intermediate.
#pragma once

#include <optional>
#include <utility>

#include <ATen/ATen.h>

#include "graft/kernel/loader.h"
#include "graft/layers/published/published_op.h"

namespace graft::layers::published {

// How the matrices of the experts are stored.
enum class ExpertWeights {
  kPlain,     // bfloat16
  kFloat8,    // float8_e4m3fn, a factor for each block of rows and columns
  kMxFloat4,  // two to a byte, the lower half first; a power of two for each 32 of a row
};

// fused_experts' options; absent ones as the schema's defaults.
struct ExpertOptions {
  at::Tensor gate_up_bias;  // [E, 2 I] or undefined
  at::Tensor down_bias;     // [E, H] or undefined
  // Both given: gpt-oss's clamped SwiGLU, gate and up interleaved. Neither: SwiGLU of the halves.
  std::optional<double> alpha;
  std::optional<double> limit;
  bool packed = false;  // weights from convert_weight_packed
  ExpertWeights weights = ExpertWeights::kPlain;
  // Of kFloat8 float32 [E, 2 I / n, H / k] and [E, H / n, I / k], rounded up, for blocks of n rows and k columns; of
  // kMxFloat4 uint8 [E, 2 I, H / 32] and [E, H, I / 32], exponents plus 127, from convert_scale_packed.
  at::Tensor gate_up_scale;
  at::Tensor down_scale;
  std::pair<int64_t, int64_t> block = {128, 128};  // n and k of kFloat8
};

class Megablocks {
 public:
  // Throws   LoadError `layers.published.schema` naming every difference from the published schemas.
  explicit Megablocks(const kernel::LoadedKernel& kernel);

  // CUDA. keys 1-D of int16, int32 or int64, sorted by their lowest `end_bit` bits, stably -> the
  // sorted keys and the places they came from, both in keys' dtype.
  std::pair<at::Tensor, at::Tensor> sort(const at::Tensor& keys, int64_t end_bit) const;
  // CUDA. How often each of [0, num_bins) occurs in x, 1-D -> int32 [num_bins].
  at::Tensor histogram(const at::Tensor& x, int64_t num_bins) const;
  // CUDA. Sums up to each element of x, 1-D or rows of 2-D, the element counted or not.
  at::Tensor inclusive_cumsum(const at::Tensor& x) const;
  at::Tensor exclusive_cumsum(const at::Tensor& x) const;
  // CUDA. The column of every block of a block-diagonal product -> int16 [rows * columns].
  at::Tensor block_indices(const at::Tensor& padded_bins, int64_t block_size, int64_t rows,
                           int64_t columns) const;
  // CUDA. x [1, E] repeated so that expert e fills places up to bins[e] of [1, length]. Float16 inputs
  // are differentiable.
  at::Tensor replicate(const at::Tensor& x, const at::Tensor& bins, int64_t length) const;
  // CUDA. a [T, H] times one matrix of b [E, H, I] (or [E, I, H] with transpose_b) for every group of
  // rows -> [T, I]. bfloat16; sizes int64 [E] on the CPU. transpose_a: a [T, H], b [T, I] -> [E, H, I].
  // Differentiable where transpose_a is false.
  at::Tensor grouped_product(const at::Tensor& a, const at::Tensor& b, const at::Tensor& sizes,
                             bool transpose_a = false, bool transpose_b = false) const;

  // CPU. A weight in the order that fused_experts reads with `packed`.
  at::Tensor convert_weight_packed(const at::Tensor& weight) const;
  // CPU. Scales of kMxFloat4 in the order that fused_experts reads.
  at::Tensor convert_scale_packed(const at::Tensor& scale) const;
  // CPU. hidden [T, H] bfloat16, gate_up [E, 2 I, H], down [E, H, I], weights [T, K] float32, experts
  // [T, K] int32 -> [T, H]. kMxFloat4 halves the last sizes and needs `packed`. Not differentiable. The schema's
  // int8 is left out: the published build has no product for it.
  at::Tensor fused_experts(const at::Tensor& hidden, const at::Tensor& gate_up,
                           const at::Tensor& down, const at::Tensor& weights,
                           const at::Tensor& experts, const ExpertOptions& options = {}) const;
  // CPU. The shared expert's SwiGLU plus routed_scale times what the routed ones gave -> [T, H]. gate_up [2 I, H],
  // down [H, I]; of the options `packed`, kPlain or kFloat8 with its scales (without E), and `block` count.
  at::Tensor shared_expert(const at::Tensor& hidden, const at::Tensor& gate_up,
                           const at::Tensor& down, const at::Tensor& routed, double routed_scale,
                           const ExpertOptions& options = {}) const;

 private:
  at::Tensor cumsum(const std::optional<PublishedOp>& op, const char* name,
                    const at::Tensor& x) const;

  std::string repository_;
  std::optional<PublishedOp> sort_;
  std::optional<PublishedOp> histogram_;
  std::optional<PublishedOp> inclusive_cumsum_;
  std::optional<PublishedOp> exclusive_cumsum_;
  std::optional<PublishedOp> indices_;
  std::optional<PublishedOp> replicate_forward_;
  std::optional<PublishedOp> replicate_backward_;
  std::optional<PublishedOp> gmm_;
  std::optional<PublishedOp> convert_weight_packed_;
  std::optional<PublishedOp> convert_scale_packed_;
  std::optional<PublishedOp> fused_experts_;
  std::optional<PublishedOp> shared_expert_;
};

}  // namespace graft::layers::published
