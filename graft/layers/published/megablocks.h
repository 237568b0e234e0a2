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

// fused_experts' options; absent ones as the schema's defaults.
struct ExpertOptions {
  at::Tensor gate_up_bias;  // [E, 2 I] or undefined
  at::Tensor down_bias;     // [E, H] or undefined
  // Both given: gpt-oss's clamped SwiGLU, gate and up interleaved. Neither: SwiGLU of the halves.
  std::optional<double> alpha;
  std::optional<double> limit;
  bool packed = false;  // weights from convert_weight_packed
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
  // CPU. hidden [T, H] bfloat16, gate_up [E, 2 I, H], down [E, H, I], weights [T, K] float32, experts
  // [T, K] int32 -> [T, H]. Not differentiable.
  at::Tensor fused_experts(const at::Tensor& hidden, const at::Tensor& gate_up,
                           const at::Tensor& down, const at::Tensor& weights,
                           const at::Tensor& experts, const ExpertOptions& options = {}) const;
  // CPU. The shared expert's SwiGLU plus routed_scale times what the routed ones gave -> [T, H].
  at::Tensor shared_expert(const at::Tensor& hidden, const at::Tensor& gate_up,
                           const at::Tensor& down, const at::Tensor& routed, double routed_scale,
                           bool packed = false) const;

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
  std::optional<PublishedOp> fused_experts_;
  std::optional<PublishedOp> shared_expert_;
};

}  // namespace graft::layers::published
