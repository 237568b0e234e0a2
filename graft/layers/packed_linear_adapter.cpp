#include "graft/layers/adapter.h"
#include "graft/layers/bound_op.h"
#include "graft/layers/packed_weight.h"

namespace graft::layers {

namespace {

constexpr ContractValue integer(std::string_view name) { return {name, c10::TypeKind::IntType}; }
constexpr ContractValue optional(std::string_view name) {
  return {name, c10::TypeKind::TensorType, /*optional=*/true};
}

std::optional<at::Tensor> optional_tensor(const at::Tensor& tensor) {
  return tensor.defined() ? std::optional<at::Tensor>(tensor) : std::nullopt;
}

// The formats have ggml's numbers on both sides; layers.json says which the package has.
class PackedLinearAdapter final : public PackedLinear::Kernel {
 public:
  PackedLinearAdapter(const PackedLinear::Spec& spec, const kernel::LoadedKernel& kernel,
                      const kernel::PackageLayer& layer)
      : repository_(kernel.repository),
        pack_(kernel, need_op(kernel, layer, "pack"),
              {{{"blocks"}, integer("type"), integer("rows"), integer("columns")}}),
        forward_(kernel, need_op(kernel, layer, "forward"),
                 {{{"out"},
                   {"x"},
                   {"packed"},
                   integer("type"),
                   integer("rows"),
                   optional("bias"),
                   {"round_x", c10::TypeKind::BoolType}}}),
        join_forward_(optional_op<JoinForward>(kernel, layer, "join_forward",
                                               {{{"out"},
                                                 {"x"},
                                                 {"first"},
                                                 {"second"},
                                                 optional("third"),
                                                 integer("first_type"),
                                                 integer("second_type"),
                                                 integer("third_type"),
                                                 integer("first_rows"),
                                                 integer("second_rows"),
                                                 integer("third_rows"),
                                                 optional("first_bias"),
                                                 optional("second_bias"),
                                                 optional("third_bias"),
                                                 {"round_x", c10::TypeKind::BoolType}}})),
        layout_name_(c10::toString(pack_.handle().operator_name())) {
    variant_number(kernel, layer, PackedLinear::variant_name(spec));  // refuses a format it lacks
  }

  bool joins(const PackedLinear::Kernel& other) const override {
    const auto* same = dynamic_cast<const PackedLinearAdapter*>(&other);
    return same != nullptr && join_forward_ && same->join_forward_ &&
           same->join_forward_->handle() == join_forward_->handle();
  }

  void prepare(const PackedWeight& weight) const override { layout(weight); }

  at::Tensor forward(const at::Tensor& x, const PackedWeight& weight,
                     const at::Tensor& bias) const override {
    must_record(repository_, has_backward(), {&x, &bias});
    at::Tensor out = make_out(x, weight.rows());
    forward_(out, with_contiguous_rows(x), layout(weight), number(weight), weight.rows(),
             optional_tensor(bias), /*round_x=*/true);
    return out;
  }

  PackedLinear::Products join_forward(const at::Tensor& x,
                                      const PackedLinear::Factors& factors) const override {
    if (!join_forward_ || (factors.size() != 2 && factors.size() != 3)) {
      return PackedLinear::Kernel::join_forward(x, factors);
    }
    int64_t columns = 0;
    for (const auto& [weight, bias] : factors) {
      must_record(repository_, has_backward(), {&x, &bias});
      columns += weight->rows();
    }
    at::Tensor out = make_out(x, columns);
    const bool three = factors.size() == 3;
    const PackedWeight &first = *factors[0].first, &second = *factors[1].first;
    const PackedWeight& third = *factors[three ? 2 : 1].first;
    (*join_forward_)(out, with_contiguous_rows(x), layout(first), layout(second),
                     three ? std::optional<at::Tensor>(layout(third)) : std::nullopt, number(first),
                     number(second), number(third), first.rows(), second.rows(),
                     three ? third.rows() : 0, optional_tensor(factors[0].second),
                     optional_tensor(factors[1].second),
                     three ? optional_tensor(factors[2].second) : std::nullopt, /*round_x=*/true);
    PackedLinear::Products products;
    int64_t column = 0;
    for (const auto& [weight, bias] : factors) {
      products.push_back(out.narrow(-1, column, weight->rows()));
      column += weight->rows();
    }
    return products;
  }

 private:
  using OptionalTensor = std::optional<at::Tensor>;
  using JoinForward =
      BoundOp<void(at::Tensor&, const at::Tensor&, const at::Tensor&, const at::Tensor&,
                   const OptionalTensor&, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t,
                   const OptionalTensor&, const OptionalTensor&, const OptionalTensor&, bool)>;

  static int64_t number(const PackedWeight& weight) { return static_cast<int64_t>(weight.type()); }

  static at::Tensor make_out(const at::Tensor& x, int64_t columns) {
    c10::SmallVector<int64_t, 4> sizes(x.sizes().begin(), x.sizes().end());
    sizes.back() = columns;
    return at::empty(sizes, x.options());
  }

  at::Tensor layout(const PackedWeight& weight) const {
    return weight.layout(layout_name_, [&] {
      return pack_(weight.blocks(), number(weight), weight.rows(), weight.columns())
          .to(weight.device());
    });
  }

  std::string repository_;
  BoundOp<at::Tensor(const at::Tensor&, int64_t, int64_t, int64_t)> pack_;
  BoundOp<void(at::Tensor&, const at::Tensor&, const at::Tensor&, int64_t, int64_t,
               const OptionalTensor&, bool)>
      forward_;
  std::optional<JoinForward> join_forward_;
  std::string layout_name_;
};

}  // namespace

std::shared_ptr<const PackedLinear::Kernel> bind(const PackedLinear::Spec& spec,
                                                 const kernel::LoadedKernel& kernel,
                                                 const kernel::PackageLayer& layer) {
  check_contract(kernel, layer, PackedLinear::kName);
  return std::make_shared<PackedLinearAdapter>(spec, kernel, layer);
}

}  // namespace graft::layers
