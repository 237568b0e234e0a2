// Contracts: what a layer name means in C++. Each contract is an abstract kernel (the typed
// signature), a spec (the numeric variant that a slot asks for) and a reference in plain ATen.
// A loaded kernel takes part by implementing the abstract class (layers/adapter.h).
//
// Shape letters: B batch, S query length, H hidden, I intermediate, N rows (all leading dims).
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

#include <ATen/ATen.h>

namespace graft::io {
enum class GgmlType : uint32_t;
}

namespace graft::layers {

class PackedWeight;

// Where the cast back to the input's dtype happens, and what the weight is.
//   kCastBeforeWeight  y = weight * cast(norm(x))            llama, mistral, qwen, phi3, smollm3
//   kCastAfterWeight   y = cast(weight * norm(x))            olmo2, gpt_oss
//   kFloatWeight       y = cast(float(weight) * norm(x))     nemotron_h
//   kZeroCentered      y = cast((1 + float(weight)) * norm(x))  gemma
// with norm(x) = float(x) * rsqrt(mean(float(x)^2) + eps).
enum class RmsNormVariant { kCastBeforeWeight, kCastAfterWeight, kFloatWeight, kZeroCentered };

// Layer name `RMSNorm`.
struct RmsNorm {
  static constexpr std::string_view kName = "RMSNorm";

  struct Spec {
    RmsNormVariant variant = RmsNormVariant::kCastBeforeWeight;
    int64_t hidden_size = 0;  // of the slot's rows, so that a kernel can refuse them; 0: not known
    double eps = 0.0;         // that the slot calls with; 0: not known
  };

  class Kernel {
   public:
    virtual ~Kernel() = default;
    // Whether results can be differentiated. References can; a kernel that cannot refuses inputs
    // that need a gradient.
    virtual bool has_backward() const { return true; }
    // Why rows of this length cannot be served; empty: they can.
    virtual std::string row_refusal(int64_t hidden) const {
      (void)hidden;
      return {};
    }
    // x [N..., H], weight [H] -> [N..., H] in x's dtype (variant A: promoted with weight's dtype).
    virtual at::Tensor forward(const at::Tensor& x, const at::Tensor& weight, double eps) const = 0;
    // Returns (norm(x + residual), x + residual); the sum is rounded to x's dtype first.
    // The default adds with ATen and calls forward().
    virtual std::pair<at::Tensor, at::Tensor> add_forward(const at::Tensor& x,
                                                          const at::Tensor& residual,
                                                          const at::Tensor& weight,
                                                          double eps) const;
  };

  static std::shared_ptr<const Kernel> reference(const Spec& spec);
  static std::string variant_name(const Spec& spec);
};

// Layer names `SiLU`, `GeLU`, `GeluTanh`, `NewGELU`, `FastGELU`, `QuickGELU`: one tensor in, one
// out.
enum class ActivationKind { kSilu, kGelu, kGeluTanh, kGeluNew, kGeluFast, kQuickGelu };

// The layer name of the Hub for an activation, e.g. `NewGELU`.
std::string_view activation_layer_name(ActivationKind kind);

struct Activation {
  struct Spec {
    ActivationKind kind = ActivationKind::kSilu;
  };

  class Kernel {
   public:
    virtual ~Kernel() = default;
    // Whether results can be differentiated. References can; a kernel that cannot refuses inputs
    // that need a gradient.
    virtual bool has_backward() const { return true; }
    // x any shape -> same shape and dtype.
    virtual at::Tensor forward(const at::Tensor& x) const = 0;
  };

  static std::shared_ptr<const Kernel> reference(const Spec& spec);
  static std::string variant_name(const Spec& spec);
};

// Layer names `SiluAndMul`, `GeluAndMul`, `GeluTanhAndMul`: act(gate) * up, each [N..., I].
// gate and up may be strided views (halves of one fused projection).
struct GatedActivation {
  struct Spec {
    ActivationKind kind = ActivationKind::kSilu;
  };

  class Kernel {
   public:
    virtual ~Kernel() = default;
    // Whether results can be differentiated. References can; a kernel that cannot refuses inputs
    // that need a gradient.
    virtual bool has_backward() const { return true; }
    virtual at::Tensor forward(const at::Tensor& gate, const at::Tensor& up) const = 0;
  };

  static std::shared_ptr<const Kernel> reference(const Spec& spec);
  static std::string variant_name(const Spec& spec);
};

// Layer name `Linear`: y = x weight^T + bias; x [N..., K], weight [M, K], bias [M] or undefined.
struct Linear {
  static constexpr std::string_view kName = "Linear";

  struct Spec {};
  // Weight and bias (undefined: none).
  using Factors = c10::SmallVector<std::pair<at::Tensor, at::Tensor>, 3>;
  using Products = c10::SmallVector<at::Tensor, 3>;

  class Kernel {
   public:
    virtual ~Kernel() = default;
    // Whether results can be differentiated. References can; a kernel that cannot refuses inputs
    // that need a gradient.
    virtual bool has_backward() const { return true; }
    virtual at::Tensor forward(const at::Tensor& x, const at::Tensor& weight,
                               const at::Tensor& bias) const = 0;
    // The products of one x with several weights, e.g. a layer's query, key and value projections.
    // The results may be views of one tensor. The default calls forward() for each.
    virtual Products join_forward(const at::Tensor& x, const Factors& factors) const;
    // Whether one call may serve the slots of both kernels.
    virtual bool joins(const Kernel& other) const { return this == &other; }
  };

  static std::shared_ptr<const Kernel> reference(const Spec& spec);
  static std::string variant_name(const Spec& spec);
};

// Layer name `PackedLinear`: y = x weight^T + bias, the weight kept in the blocks of a GGUF file
// (layers/packed_weight.h), one numeric variant for each block format.
struct PackedLinear {
  static constexpr std::string_view kName = "PackedLinear";

  struct Spec {
    io::GgmlType type{};
  };
  // Weight and bias (undefined: none).
  using Factors = c10::SmallVector<std::pair<const PackedWeight*, at::Tensor>, 3>;
  using Products = Linear::Products;

  class Kernel {
   public:
    virtual ~Kernel() = default;
    // Packed weights have no gradient: models that train unpack them.
    virtual bool has_backward() const { return false; }
    // Makes what forward() reads of the weight now, so that the first call need not.
    virtual void prepare(const PackedWeight&) const {}
    // x [N..., K] -> [N..., M] in x's dtype. A kernel may round x: a result lies within the sum over
    // k of |weight[m][k]| * s / 2 of the exact one, s being the largest |x| of k's 32 columns / 127.
    virtual at::Tensor forward(const at::Tensor& x, const PackedWeight& weight,
                               const at::Tensor& bias) const = 0;
    // As Linear's.
    virtual Products join_forward(const at::Tensor& x, const Factors& factors) const;
    virtual bool joins(const Kernel& other) const { return this == &other; }
  };

  // Unpacks the weight at the first call, keeps the values in x's dtype, and multiplies with ATen.
  static std::shared_ptr<const Kernel> reference(const Spec& spec);
  // `Q4_1`
  static std::string variant_name(const Spec& spec);
};

// cos and sin of one forward pass. Half-split: both halves of the last dimension are equal.
struct RotaryTables {
  at::Tensor cos;  // [B or 1, S, R], R = rotated dimensions of a head; the heads' dtype or float32
  at::Tensor sin;  // [B or 1, S, R]
  at::Tensor signed_sin;  // sin with its first half negated, which the reference reads
};

// Where the newest token of each row lies. On the device, so that one captured step serves every length.
struct StepPlace {
  at::Tensor lengths;    // [B] int32: keys in use, the new token's counted; the same for all rows
  at::Tensor positions;  // [B] int32: the new token's position, its row of the rotary tables
};

// Layer name `rotary_pos_emb`: x * cos + rotate_half(x) * sin over the first R of D dimensions,
// rounded to the wider of the two dtypes after each step, as transformers does.
struct Rotary {
  static constexpr std::string_view kName = "rotary_pos_emb";

  struct Spec {};

  class Kernel {
   public:
    virtual ~Kernel() = default;
    // Whether results can be differentiated. References can; a kernel that cannot refuses inputs
    // that need a gradient.
    virtual bool has_backward() const { return true; }
    // query [B, S, Hq, D], key [B, S, Hkv, D], any strides with a dense last dimension -> both
    // rotated, in their own dtype, new tensors with a dense last dimension.
    virtual std::pair<at::Tensor, at::Tensor> forward(const at::Tensor& query,
                                                      const at::Tensor& key,
                                                      const RotaryTables& tables) const = 0;
    // One new token a row: query and key are rotated by their rows of the tables, key and value put at
    // place lengths[b] - 1 of the cache.
    //
    // query [B, 1, Hq, D], key, value [B, 1, Hkv, D]   tables [1, P, R], of every position
    // keys, values [B, Hkv, T, D]                      the cache
    // Returns the rotated query. The default calls forward(). No gradient.
    virtual at::Tensor append_forward(const at::Tensor& query, const at::Tensor& key,
                                      const at::Tensor& value, const RotaryTables& tables,
                                      const StepPlace& place, const at::Tensor& keys,
                                      const at::Tensor& values) const;
  };

  static std::shared_ptr<const Kernel> reference(const Spec& spec);
  static std::string variant_name(const Spec& spec);
};

// Layer name `QKNormRotary`: RMSNorm of each head of query and key, by a weight of its own for each of the two, and the
// rotation of the result, which is rounded to the heads' dtype in between: what RMSNorm and rotary_pos_emb leave one
// after another. The module that has such a slot has others for the norms and the rotation. Those serve where no kernel
// is in this one, and are not called where one is.
struct QkNormRotary {
  static constexpr std::string_view kName = "QKNormRotary";
  static constexpr bool kEncloses = true;
  // What is enclosed of the slots below the module that owns this one: these children and what they hold.
  static constexpr std::array<std::string_view, 3> kParts = {"q_norm", "k_norm", "rotary_fn"};

  struct Spec {
    RmsNormVariant variant = RmsNormVariant::kCastBeforeWeight;
  };
  struct Norms {
    at::Tensor query_weight, key_weight;  // [D], the heads' dtype
    double eps = 0.0;
  };

  class Kernel {
   public:
    virtual ~Kernel() = default;
    // Whether results can be differentiated. References can; a kernel that cannot refuses inputs
    // that need a gradient.
    virtual bool has_backward() const { return true; }
    // As Rotary's.
    virtual std::pair<at::Tensor, at::Tensor> forward(const at::Tensor& query,
                                                      const at::Tensor& key, const Norms& norms,
                                                      const RotaryTables& tables) const = 0;
    // As Rotary's. The default calls forward().
    virtual at::Tensor append_forward(const at::Tensor& query, const at::Tensor& key,
                                      const at::Tensor& value, const Norms& norms,
                                      const RotaryTables& tables, const StepPlace& place,
                                      const at::Tensor& keys, const at::Tensor& values) const;
  };

  static std::shared_ptr<const Kernel> reference(const Spec& spec);
  // As RmsNorm's.
  static std::string variant_name(const Spec& spec);
};

// Layer name `Attention`: softmax(query key^T * scale + mask) value, query heads sharing key heads.
struct Attention {
  static constexpr std::string_view kName = "Attention";

  struct Spec {};

  class Kernel {
   public:
    virtual ~Kernel() = default;
    // Whether results can be differentiated. References can; a kernel that cannot refuses inputs
    // that need a gradient.
    virtual bool has_backward() const { return true; }
    // query [B, S, Hq, D], key and value [B, Hkv, T, D], any strides with a dense last dimension;
    // mask [B or 1, 1, S, T] in query's dtype, or undefined -> [B, S, Hq, D]. Scores and softmax in
    // float32. softcap: scores become softcap * tanh(score / softcap); 0: off.
    virtual at::Tensor forward(const at::Tensor& query, const at::Tensor& key,
                               const at::Tensor& value, const at::Tensor& mask, double scale,
                               double softcap) const = 0;
    // Whether causal_forward() is the fastest there is for such a query.
    virtual bool takes_prompt(const at::Tensor&) const { return false; }
    // S == T, query s sees keys up to its own. No soft cap. Only where takes_prompt().
    virtual at::Tensor causal_forward(const at::Tensor& query, const at::Tensor& key,
                                      const at::Tensor& value, double scale) const;
    // One query a row over a cache of T places.
    //
    // query [B, 1, Hq, D]   key, value [B, Hkv, T, D]
    // lengths [B] int32     keys in use, on the device; what lies behind them is not looked at, but the
    //                       default needs it to be finite
    // mask [B, 1, 1, T], or undefined   window   keys that a query sees, itself included; 0: all
    // The default makes one mask of the three and calls forward(). No gradient.
    virtual at::Tensor decode_forward(const at::Tensor& query, const at::Tensor& key,
                                      const at::Tensor& value, const at::Tensor& lengths,
                                      const at::Tensor& mask, double scale, double softcap,
                                      int64_t window) const;
  };

  static std::shared_ptr<const Kernel> reference(const Spec& spec);
  static std::string variant_name(const Spec& spec);
};

// Layer name `ForCausalLMLoss`: mean cross-entropy of linear(hidden, weight), straight from the last hidden
// states, so that a kernel need not keep the logits of all rows.
struct CausalLoss {
  static constexpr std::string_view kName = "ForCausalLMLoss";
  static constexpr int64_t kIgnoredLabel = -100;  // a row that does not count

  struct Spec {};

  class Kernel {
   public:
    virtual ~Kernel() = default;
    // Whether results can be differentiated. References can; a kernel that cannot refuses inputs
    // that need a gradient.
    virtual bool has_backward() const { return true; }
    // hidden [N, H], weight [V, H], labels [N] int64. softcap: logits become softcap * tanh(logits / softcap);
    // 0: off. num_items: what the sum of the losses is divided by; 0: the rows that count.
    // Returns a float32 scalar; NaN where nothing counts, as transformers has it.
    virtual at::Tensor forward(const at::Tensor& hidden, const at::Tensor& weight,
                               const at::Tensor& labels, double softcap,
                               int64_t num_items) const = 0;
  };

  static std::shared_ptr<const Kernel> reference(const Spec& spec);
  static std::string variant_name(const Spec& spec);
};

// Layer names `SwiGLUMLP` (silu), `GeGLUMLP` (gelu_tanh) and `MLP` (the others): (act(x gate^T) * (x up^T)) down^T.
// The module that has such a slot has others for the projections and the activation. Those serve where no kernel is
// in this one, and are not called where one is.
struct Mlp {
  static constexpr std::string_view kName = "MLP";
  static constexpr bool kEncloses = true;  // the other slots below the module that owns this one

  struct Spec {
    ActivationKind kind = ActivationKind::kSilu;
  };
  struct Weights {
    at::Tensor gate, up;                       // [I, H], dense rows; may be halves of one tensor
    at::Tensor down;                           // [H, I]
    at::Tensor gate_bias, up_bias, down_bias;  // [I], [I], [H], or undefined
  };

  class Kernel {
   public:
    virtual ~Kernel() = default;
    // Whether results can be differentiated. References can; a kernel that cannot refuses inputs
    // that need a gradient.
    virtual bool has_backward() const { return true; }
    // x [N..., H] -> [N..., H] in x's dtype, which the weights have too. Gate, up, the activation and the product are
    // rounded to it, as separate steps leave them.
    virtual at::Tensor forward(const at::Tensor& x, const Weights& weights) const = 0;
  };

  static std::shared_ptr<const Kernel> reference(const Spec& spec);
  // `silu`, `gelu`, `gelu_tanh`, `gelu_new`, `gelu_fast`, `quick_gelu`
  static std::string variant_name(const Spec& spec);
};

// Puts key and value [B, 1, Hkv, D] at place lengths[b] - 1 of keys and values [B, Hkv, T, D].
void append_to_cache(const at::Tensor& key, const at::Tensor& value, const StepPlace& place,
                     const at::Tensor& keys, const at::Tensor& values);

// The layer name that a spec of contract C stands for.
std::string layer_name(const RmsNorm::Spec& spec);
std::string layer_name(const Activation::Spec& spec);
std::string layer_name(const GatedActivation::Spec& spec);
std::string layer_name(const Linear::Spec& spec);
std::string layer_name(const PackedLinear::Spec& spec);
std::string layer_name(const Rotary::Spec& spec);
std::string layer_name(const QkNormRotary::Spec& spec);
std::string layer_name(const Attention::Spec& spec);
std::string layer_name(const CausalLoss::Spec& spec);
std::string layer_name(const Mlp::Spec& spec);

}  // namespace graft::layers
