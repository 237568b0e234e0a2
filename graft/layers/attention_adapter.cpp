#include "graft/layers/adapter.h"
#include "graft/layers/bound_op.h"
#include "graft/tensor/device.h"

namespace graft::layers {

namespace {

// Where a kernel for prompts is asked: Hopper's tensor cores, 16-bit heads of 64 or 128; bfloat16 on processors that
// multiply pairs of it. Elsewhere PyTorch's fused kernels are ahead.
constexpr int64_t kLeastPromptQueries = 64;
constexpr int kPromptCapability = 90;

bool takes_prompt_on_cpu(const at::Tensor& query) {
  static const bool multiplies_bf16 = __builtin_cpu_supports("avx512bf16");
  return multiplies_bf16 && query.scalar_type() == at::kBFloat16 && query.size(-1) <= 256;
}

bool takes_prompt_on_cuda(const at::Tensor& query) {
  const bool is_16_bit = query.scalar_type() == at::kHalf || query.scalar_type() == at::kBFloat16;
  const int64_t head_dim = query.size(-1);
  return is_16_bit && (head_dim == 64 || head_dim == 128) &&
         tensor::capability(query.device()) == kPromptCapability;
}

constexpr ContractValue optional(std::string_view name) {
  return {name, c10::TypeKind::TensorType, /*optional=*/true};
}

constexpr ContractValue kScale = {"scale", c10::TypeKind::FloatType};
constexpr ContractValue kSoftcap = {"softcap", c10::TypeKind::FloatType};
constexpr ContractValue kCausal = {"causal", c10::TypeKind::BoolType};

std::optional<at::Tensor> optional_tensor(const at::Tensor& tensor) {
  return tensor.defined() ? std::optional<at::Tensor>(with_contiguous_rows(tensor)) : std::nullopt;
}

class AttentionAdapter final : public Attention::Kernel {
 public:
  AttentionAdapter(const kernel::LoadedKernel& kernel, const kernel::PackageLayer& layer)
      : repository_(kernel.repository),
        forward_(kernel, need_op(kernel, layer, "forward"),
                 {{{"out"},
                   {"query"},
                   {"key"},
                   {"value"},
                   optional("mask"),
                   kScale,
                   kSoftcap,
                   kCausal}}),
        decode_(optional_op<Decode>(kernel, layer, "decode",
                                    {{{"out"},
                                      optional("lse"),
                                      {"query"},
                                      {"key"},
                                      {"value"},
                                      optional("lengths"),
                                      optional("block_table"),
                                      optional("mask"),
                                      optional("sinks"),
                                      kScale,
                                      kSoftcap,
                                      {"window", c10::TypeKind::IntType},
                                      kCausal,
                                      {"splits", c10::TypeKind::IntType}}})) {}

  bool has_backward() const override { return false; }

  at::Tensor forward(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                     const at::Tensor& mask, double scale, double softcap) const override {
    return run(query, key, value, mask, scale, softcap, /*causal=*/false);
  }

  bool takes_prompt(const at::Tensor& query) const override {
    if (query.size(1) < kLeastPromptQueries) {
      return false;
    }
    return query.is_cpu() ? takes_prompt_on_cpu(query)
                          : query.is_cuda() && takes_prompt_on_cuda(query);
  }

  at::Tensor causal_forward(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                            double scale) const override {
    return run(query, key, value, {}, scale, /*softcap=*/0.0, /*causal=*/true);
  }

  at::Tensor decode_forward(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                            const at::Tensor& lengths, const at::Tensor& mask, double scale,
                            double softcap, int64_t window) const override {
    if (!decode_ || !query.is_cuda()) {  // the op is CUDA's alone
      return Attention::Kernel::decode_forward(query, key, value, lengths, mask, scale, softcap,
                                               window);
    }
    must_record(repository_, has_backward(), {&query, &key, &value});
    at::Tensor out = at::empty(query.sizes(), query.options());
    (*decode_)(out, std::nullopt, with_contiguous_rows(query), with_contiguous_rows(key),
               with_contiguous_rows(value), lengths, std::nullopt, optional_tensor(mask),
               std::nullopt, scale, softcap, window, /*causal=*/true, /*splits=*/0);
    return out;
  }

 private:
  using OptionalTensor = std::optional<at::Tensor>;
  using Decode = BoundOp<void(at::Tensor&, const OptionalTensor&, const at::Tensor&,
                              const at::Tensor&, const at::Tensor&, const OptionalTensor&,
                              const OptionalTensor&, const OptionalTensor&, const OptionalTensor&,
                              double, double, int64_t, bool, int64_t)>;

  at::Tensor run(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                 const at::Tensor& mask, double scale, double softcap, bool causal) const {
    must_record(repository_, has_backward(), {&query, &key, &value});
    at::Tensor out = at::empty(query.sizes(), query.options());
    forward_(out, with_contiguous_rows(query), with_contiguous_rows(key),
             with_contiguous_rows(value), optional_tensor(mask), scale, softcap, causal);
    return out;
  }

  std::string repository_;
  BoundOp<void(at::Tensor&, const at::Tensor&, const at::Tensor&, const at::Tensor&,
               const OptionalTensor&, double, double, bool)>
      forward_;
  std::optional<Decode> decode_;
};

}  // namespace

std::shared_ptr<const Attention::Kernel> bind(const Attention::Spec&,
                                              const kernel::LoadedKernel& kernel,
                                              const kernel::PackageLayer& layer) {
  check_contract(kernel, layer, "Attention");
  return std::make_shared<AttentionAdapter>(kernel, layer);
}

}  // namespace graft::layers
