#include "graft/layers/adapter.h"
#include "graft/layers/bound_op.h"

namespace graft::layers {

namespace {

// What is no tensor of what the two ops are given.
constexpr ContractValue kEps = {"eps", c10::TypeKind::FloatType};
constexpr ContractValue kVariant = {"variant", c10::TypeKind::IntType};
constexpr ContractValue kInterleaved = {"interleaved", c10::TypeKind::BoolType};

// Inference alone: in training the norms and the rotation have slots and gradients of their own.
class QkNormRotaryAdapter final : public QkNormRotary::Kernel {
 public:
  QkNormRotaryAdapter(const QkNormRotary::Spec& spec, const kernel::LoadedKernel& kernel,
                      const kernel::PackageLayer& layer)
      : repository_(kernel.repository),
        variant_(variant_number(kernel, layer, QkNormRotary::variant_name(spec))),
        forward_(kernel, need_op(kernel, layer, "forward"),
                 {{{"query_out"},
                   {"key_out"},
                   {"query"},
                   {"key"},
                   {"query_weight"},
                   {"key_weight"},
                   {"cos"},
                   {"sin"},
                   kEps,
                   kVariant,
                   kInterleaved}}),
        append_(optional_op<Append>(kernel, layer, "append_forward",
                                    {{{"query_out"},
                                      {"keys"},
                                      {"values"},
                                      {"query"},
                                      {"key"},
                                      {"value"},
                                      {"query_weight"},
                                      {"key_weight"},
                                      {"cos"},
                                      {"sin"},
                                      {"lengths"},
                                      {"positions"},
                                      kEps,
                                      kVariant,
                                      kInterleaved}})) {}

  bool has_backward() const override { return false; }

  std::pair<at::Tensor, at::Tensor> forward(const at::Tensor& query, const at::Tensor& key,
                                            const QkNormRotary::Norms& norms,
                                            const RotaryTables& tables) const override {
    refuse_gradients({&query, &key, &norms.query_weight, &norms.key_weight});
    at::Tensor query_out = at::empty(query.sizes(), query.options());
    at::Tensor key_out = at::empty(key.sizes(), key.options());
    forward_(query_out, key_out, with_contiguous_rows(query), with_contiguous_rows(key),
             norms.query_weight, norms.key_weight, tables.cos, tables.sin, norms.eps, variant_,
             kHalvesApart);
    return {query_out, key_out};
  }

  at::Tensor append_forward(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                            const QkNormRotary::Norms& norms, const RotaryTables& tables,
                            const StepPlace& place, const at::Tensor& keys,
                            const at::Tensor& values) const override {
    if (!append_) {
      return QkNormRotary::Kernel::append_forward(query, key, value, norms, tables, place, keys,
                                                  values);
    }
    refuse_gradients({&query, &key, &value, &norms.query_weight, &norms.key_weight});
    at::Tensor query_out = at::empty(query.sizes(), query.options());
    at::Tensor all_keys = keys, all_values = values;
    (*append_)(query_out, all_keys, all_values, with_contiguous_rows(query),
               with_contiguous_rows(key), with_contiguous_rows(value), norms.query_weight,
               norms.key_weight, tables.cos.squeeze(0), tables.sin.squeeze(0), place.lengths,
               place.positions, norms.eps, variant_, kHalvesApart);
    return query_out;
  }

 private:
  using In = const at::Tensor&;
  using Forward =
      BoundOp<void(at::Tensor&, at::Tensor&, In, In, In, In, In, In, double, int64_t, bool)>;
  using Append = BoundOp<void(at::Tensor&, at::Tensor&, at::Tensor&, In, In, In, In, In, In, In, In,
                              In, double, int64_t, bool)>;
  static constexpr bool kHalvesApart = false;  // the op's `interleaved`

  void refuse_gradients(std::initializer_list<const at::Tensor*> inputs) const {
    must_record(repository_, /*has_backward=*/false, inputs);
  }

  std::string repository_;
  int64_t variant_;
  Forward forward_;
  std::optional<Append> append_;
};

}  // namespace

std::shared_ptr<const QkNormRotary::Kernel> bind(const QkNormRotary::Spec& spec,
                                                 const kernel::LoadedKernel& kernel,
                                                 const kernel::PackageLayer& layer) {
  check_contract(kernel, layer, QkNormRotary::kName);
  return std::make_shared<QkNormRotaryAdapter>(spec, kernel, layer);
}

}  // namespace graft::layers
