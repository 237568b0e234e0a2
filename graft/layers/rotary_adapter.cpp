#include "graft/layers/adapter.h"
#include "graft/layers/bound_op.h"
#include "graft/layers/gradient.h"
#include "graft/layers/published/contracts.h"

namespace graft::layers {

namespace {

class RotaryAdapter final : public Rotary::Kernel,
                            public std::enable_shared_from_this<RotaryAdapter> {
 public:
  RotaryAdapter(const kernel::LoadedKernel& kernel, const kernel::PackageLayer& layer)
      : repository_(kernel.repository),
        has_backward_(layer.has_backward),
        interleaved_(variant_number(kernel, layer, "half_split") != 0),
        forward_(kernel, need_op(kernel, layer, "forward"),
                 {{{"query_out"},
                   {"key_out"},
                   {"query"},
                   {"key"},
                   {"cos"},
                   {"sin"},
                   {"interleaved", c10::TypeKind::BoolType},
                   {"inverse", c10::TypeKind::BoolType}}}),
        append_(optional_op<Append>(kernel, layer, "append_forward",
                                    {{{"query_out"},
                                      {"keys"},
                                      {"values"},
                                      {"query"},
                                      {"key"},
                                      {"value"},
                                      {"cos"},
                                      {"sin"},
                                      {"lengths"},
                                      {"positions"},
                                      {"interleaved", c10::TypeKind::BoolType}}})) {}

  bool has_backward() const override { return has_backward_; }

  std::pair<at::Tensor, at::Tensor> forward(const at::Tensor& query, const at::Tensor& key,
                                            const RotaryTables& tables) const override {
    const bool records = must_record(repository_, has_backward_, {&query, &key});
    auto rotated = rotate(query, key, tables.cos, tables.sin, /*inverse=*/false);
    if (records) {
      // A rotation's gradient is the rotation the other way; an output that nothing depends on
      // has none.
      record(repository_, {rotated.first, rotated.second}, {query, key}, {tables.cos, tables.sin},
             [self = shared_from_this(), query_sizes = query.sizes().vec(),
              key_sizes = key.sizes().vec(),
              options = query.options()](const Tensors& saved, const Tensors& grads) -> Tensors {
               const auto back =
                   self->rotate(grads[0].defined() ? grads[0] : at::zeros(query_sizes, options),
                                grads[1].defined() ? grads[1] : at::zeros(key_sizes, options),
                                saved[0], saved[1], /*inverse=*/true);
               return {back.first, back.second};
             });
    }
    return rotated;
  }

  at::Tensor append_forward(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                            const RotaryTables& tables, const StepPlace& place,
                            const at::Tensor& keys, const at::Tensor& values) const override {
    if (!append_) {
      return Rotary::Kernel::append_forward(query, key, value, tables, place, keys, values);
    }
    must_record(repository_, /*has_backward=*/false, {&query, &key, &value});
    at::Tensor query_out = at::empty(query.sizes(), query.options());
    at::Tensor all_keys = keys, all_values = values;
    (*append_)(query_out, all_keys, all_values, with_contiguous_rows(query),
               with_contiguous_rows(key), with_contiguous_rows(value), tables.cos.squeeze(0),
               tables.sin.squeeze(0), place.lengths, place.positions, interleaved_);
    return query_out;
  }

 private:
  using Append = BoundOp<void(at::Tensor&, at::Tensor&, at::Tensor&, const at::Tensor&,
                              const at::Tensor&, const at::Tensor&, const at::Tensor&,
                              const at::Tensor&, const at::Tensor&, const at::Tensor&, bool)>;

  std::pair<at::Tensor, at::Tensor> rotate(const at::Tensor& query, const at::Tensor& key,
                                           const at::Tensor& cos, const at::Tensor& sin,
                                           bool inverse) const {
    at::Tensor query_out = at::empty(query.sizes(), query.options());
    at::Tensor key_out = at::empty(key.sizes(), key.options());
    forward_(query_out, key_out, with_contiguous_rows(query), with_contiguous_rows(key), cos, sin,
             interleaved_, inverse);
    return {query_out, key_out};
  }

  std::string repository_;
  bool has_backward_;
  bool interleaved_;
  BoundOp<void(at::Tensor&, at::Tensor&, const at::Tensor&, const at::Tensor&, const at::Tensor&,
               const at::Tensor&, bool, bool)>
      forward_;
  std::optional<Append> append_;
};

}  // namespace

std::shared_ptr<const Rotary::Kernel> bind(const Rotary::Spec&, const kernel::LoadedKernel& kernel,
                                           const kernel::PackageLayer& layer) {
  check_contract(kernel, layer, "Rotary");
  if (!layer.published.empty()) {
    return published::bind_rotary(kernel, layer);
  }
  return std::make_shared<RotaryAdapter>(kernel, layer);
}

}  // namespace graft::layers
