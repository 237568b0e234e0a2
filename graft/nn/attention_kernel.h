// Attention by name: what an `attn_implementation` asks for, chosen, loaded and bound.
// Shape letters: B batch, S query length, T key length, Hq / Hkv heads, D head size.
#pragma once

#include <memory>
#include <string>

#include <ATen/ATen.h>

#include "graft/layers/published/flash_attention.h"

namespace graft::nn {

// kSdpa    at::scaled_dot_product_attention
// kEager   matmul, float32 softmax, matmul, rounding after each as transformers' eager path does
// kKernel  a kernel that was named, and nothing else: no other one steps in for it
enum class AttentionBackend { kSdpa, kEager, kKernel };

using layers::published::AttentionNeeds;

// The real tokens of a padded batch, packed.
struct Unpadding {
  int64_t num_queries = 0;  // S that this was made for
  at::Tensor query_places;  // int64, places in [B * S]
  at::Tensor key_places;    // int64, places in [B * T]
  layers::published::PackedSequences sequences;
  bool has_gaps = false;  // a row with padding between its tokens
};

// padding  [B, T] bool, true = attend; the last num_queries columns are the queries' own
std::shared_ptr<const Unpadding> unpad(const at::Tensor& padding, int64_t num_queries);

// One causal call of one layer: query s of S sees keys up to T - S + s.
struct AttentionCall {
  at::Tensor query;  // [B, S, Hq, D]
  at::Tensor key;    // [B, Hkv, T, D], any strides with a dense last dimension
  at::Tensor value;  // [B, Hkv, T, D]
  double scale = 1.0;
  double softcap = 0.0;                  // 0: off
  int64_t window = 0;                    // keys that a query sees, itself included; 0: all
  const Unpadding* unpadding = nullptr;  // none: every token is real
};

class AttentionKernel {
 public:
  virtual ~AttentionKernel() = default;
  // As a person reads it: `kernels-community/flash-attn2@v3 (flash-attn2)`.
  virtual std::string name() const = 0;
  // Why the kernel cannot serve a model, naming what is asked; empty: it can.
  virtual std::string refusal(const AttentionNeeds& needs) const = 0;
  // Returns [B, S, Hq, D]; zeros at padded places. Differentiable where the kernel has a backward,
  // else inputs that need a gradient throw.
  // Throws   IncompatibleError `layers.published.unsupported` naming what cannot be done.
  virtual at::Tensor forward(const AttentionCall& call) const = 0;
};

struct AttentionChoice {
  std::string name = "sdpa";  // as it was asked for
  AttentionBackend backend = AttentionBackend::kSdpa;
  std::shared_ptr<const AttentionKernel> kernel;  // kKernel
};

// What could attend, best first: the first without a reason does.
struct AttentionCandidate {
  std::string name;
  std::string reason;  // why it does not apply; empty: it would
};

// Reads an attn_implementation (attention_name.h) and loads the kernel that it names, for `device`.
//
//   eager, sdpa          PyTorch
//   graft                our own package
//   flash_attention_2    kernels-community/flash-attn2, flash_attention_3: vllm-flash-attn3, in the
//                        versions that transformers takes where the Python package is absent
//   org/repo[@ref][:fn]  that kernel; by its ops one with flash attention's schemas, or ours
//   paged|…              the same without `paged|`, with a warning
//
// Throws   InvalidArgument `models.attn_implementation.unknown` listing the known ones;
//          IncompatibleError `models.attn_implementation.not-attention` for a package without ops that
//          are known; what resolving, loading and binding throw. There is no change to another one.
// Source   transformers 5.20.2, integrations/hub_kernels.py and modeling_utils.py
AttentionChoice choose_attention(const std::string& name, at::Device device);

// Throws   IncompatibleError `models.attn_implementation.refused` where the chosen kernel cannot do
//          what the model asks.
void check_attention(const AttentionChoice& choice, const AttentionNeeds& needs);

// The kernels, each in a file of its own.
std::shared_ptr<const AttentionKernel> make_flash_kernel(const std::string& name,
                                                         const kernel::LoadedKernel& kernel);
std::shared_ptr<const AttentionKernel> make_graft_kernel(const std::string& name,
                                                         const kernel::LoadedKernel& kernel);

}  // namespace graft::nn
