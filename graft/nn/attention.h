// Scaled dot-product attention over cached keys and values, and the masks it takes.
// Shape letters: B batch, S query length, T key length, Hq / Hkv heads, D head size.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include <ATen/ATen.h>

#include "graft/layers/slot.h"
#include "graft/nn/attention_kernel.h"

namespace graft::nn {

// What one kind of layer (full or sliding) may attend to in one forward pass.
struct AttentionMask {
  at::Tensor additive;    // [B or 1, 1, S, T] in the activation dtype; undefined: nothing masked
  bool causal = false;    // S == T and the upper triangle is masked, though `additive` is not given
  int64_t first_key = 0;  // keys before this one are out of the window for every query
  // A step of a cache that counts on the device: T is all its places, of which lengths [B] are in use,
  // and `additive` is [B, 1, 1, T].
  at::Tensor lengths;
  int64_t window = 0;  // with lengths or a kernel: keys that a query sees, itself included; 0: all
  AttentionBackend backend = AttentionBackend::kSdpa;
  // kKernel alone, which masks by itself.
  const AttentionKernel* kernel = nullptr;
  at::Tensor padding;                          // undefined: every token is real
  std::shared_ptr<const Unpadding> unpadding;  // of the queries of the pass
};

struct MaskRequest {
  int64_t num_new = 0;   // S
  int64_t num_past = 0;  // T - S
  at::Tensor padding;    // [B, T] bool, true = attend; undefined: no padding
  at::ScalarType dtype = at::kFloat;
  at::Device device = at::kCPU;
  AttentionBackend backend = AttentionBackend::kSdpa;
  const AttentionKernel* kernel = nullptr;  // kKernel
};

// Builds the causal mask of one forward pass; leaves it out wherever nothing is lost by that.
//
// window   keys that a query sees, itself included; 0: all
AttentionMask build_mask(const MaskRequest& request, int64_t window);

struct AttentionOptions {
  int64_t num_heads = 0;
  int64_t num_kv_heads = 0;
  int64_t head_dim = 0;
  double scale = 1.0;
  double softcap = 0.0;  // scores become softcap * tanh(score / softcap); 0: off. Not for kSdpa.
};

using AttentionSlot = layers::Slot<layers::Attention>;

// A kernel that was named (kKernel) serves alone. Otherwise candidates, best first: the slot's kernel
// (few queries, nothing but the mask between them and the keys; whole prompts where it is the fastest),
// PyTorch's fused kernels (kSdpa), the formula (kEager).
//
// query  [B, S, Hq, D]   key, value [B, Hkv, T, D], any strides with a dense last dimension
// returns [B, S, Hq * D]
at::Tensor attend(const AttentionSlot& kernel, const at::Tensor& query, const at::Tensor& key,
                  const at::Tensor& value, const AttentionMask& mask,
                  const AttentionOptions& options);

// The shapes of a pass, for attention_candidates().
struct AttentionShapes {
  at::Device device = at::kCPU;
  at::ScalarType dtype = at::kFloat;
  int64_t num_queries =
      1;  // S; with more than one the pass is causal and nothing is cached before it
  int64_t head_dim = 0;
  bool padded = false;
};

// Who could serve such a pass under `choice`, best first, by the rules of attend().
std::vector<AttentionCandidate> attention_candidates(
    const layers::ContractSlot<layers::Attention>& kernel, const AttentionChoice& choice,
    const AttentionShapes& shapes);

}  // namespace graft::nn
