#include "graft/layers/adapter.h"
#include "graft/layers/bound_op.h"

namespace graft::layers {

namespace {

class AttentionAdapter final : public Attention::Kernel {
 public:
  AttentionAdapter(const kernel::LoadedKernel& kernel, const kernel::PackageLayer& layer)
      : repository_(kernel.repository),
        forward_(kernel, need_op(kernel, layer, "forward"),
                 {{{"out"},
                   {"query"},
                   {"key"},
                   {"value"},
                   {"mask", c10::TypeKind::TensorType, /*optional=*/true},
                   {"scale", c10::TypeKind::FloatType},
                   {"softcap", c10::TypeKind::FloatType},
                   {"causal", c10::TypeKind::BoolType}}}) {}

  bool has_backward() const override { return false; }

  at::Tensor forward(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                     const at::Tensor& mask, double scale, double softcap) const override {
    must_record(repository_, has_backward(), {&query, &key, &value});
    at::Tensor out = at::empty(query.sizes(), query.options());
    forward_(out, with_contiguous_rows(query), with_contiguous_rows(key),
             with_contiguous_rows(value),
             mask.defined() ? std::optional<at::Tensor>(with_contiguous_rows(mask)) : std::nullopt,
             scale, softcap, /*causal=*/false);
    return out;
  }

 private:
  std::string repository_;
  BoundOp<void(at::Tensor&, const at::Tensor&, const at::Tensor&, const at::Tensor&,
               const std::optional<at::Tensor>&, double, double, bool)>
      forward_;
};

}  // namespace

std::shared_ptr<const Attention::Kernel> bind(const Attention::Spec&,
                                              const kernel::LoadedKernel& kernel,
                                              const kernel::PackageLayer& layer) {
  check_contract(kernel, layer, "Attention");
  return std::make_shared<AttentionAdapter>(kernel, layer);
}

}  // namespace graft::layers
