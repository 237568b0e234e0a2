// Scaled dot-product attention over cached keys and values, and the masks it takes.
// Shape letters: B batch, S query length, T key length, Hq / Hkv heads, D head size.
#pragma once

#include <cstdint>
#include <string>

#include <ATen/ATen.h>

#include "graft/layers/slot.h"

namespace graft::nn {

// kSdpa   at::scaled_dot_product_attention
// kEager  matmul, float32 softmax, matmul, rounding after each as transformers' eager path does
enum class AttentionBackend { kSdpa, kEager };

// The backend that an `attn_implementation` (attention_name.h) asks for.
//
// Throws   InvalidArgument `models.attn_implementation.unknown` listing the known ones;
//          IncompatibleError `models.attn_implementation.not-served` for a name that is right and that
//          no backend here serves, with the way on. There is no silent change to another one.
AttentionBackend parse_attention_backend(const std::string& name);

// What one kind of layer (full or sliding) may attend to in one forward pass.
struct AttentionMask {
  at::Tensor additive;    // [B or 1, 1, S, T] in the activation dtype; undefined: nothing masked
  bool causal = false;    // S == T and the upper triangle is masked, though `additive` is not given
  int64_t first_key = 0;  // keys before this one are out of the window for every query
  // A step of a cache that counts on the device: T is all its places, of which lengths [B] are in use,
  // and `additive` is [B, 1, 1, T].
  at::Tensor lengths;
  int64_t window = 0;  // with lengths: keys that the query sees, itself included; 0: all
};

struct MaskRequest {
  int64_t num_new = 0;   // S
  int64_t num_past = 0;  // T - S
  at::Tensor padding;    // [B, T] bool, true = attend; undefined: no padding
  at::ScalarType dtype = at::kFloat;
  at::Device device = at::kCPU;
  AttentionBackend backend = AttentionBackend::kSdpa;
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
  double softcap = 0.0;  // scores become softcap * tanh(score / softcap); 0: off. Needs kEager.
  AttentionBackend backend = AttentionBackend::kSdpa;
};

using AttentionSlot = layers::Slot<layers::Attention>;

// Candidates, best first: the slot's kernel (few queries, nothing but the mask between them and the
// keys; whole prompts where it is the fastest), PyTorch's fused kernels (kSdpa), the formula (kEager).
//
// query  [B, S, Hq, D]   key, value [B, Hkv, T, D], any strides with a dense last dimension
// returns [B, S, Hq * D]
at::Tensor attend(const AttentionSlot& kernel, const at::Tensor& query, const at::Tensor& key,
                  const at::Tensor& value, const AttentionMask& mask,
                  const AttentionOptions& options);

}  // namespace graft::nn
