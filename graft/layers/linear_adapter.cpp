#include "graft/layers/adapter.h"
#include "graft/layers/bound_op.h"

namespace graft::layers {

namespace {

// Rows of x up to which joined products share a call. Above, a matrix product is worth its call, and
// results that are not views serve what follows better.
constexpr int64_t kMaxJoinedRows = 16;

std::optional<at::Tensor> optional_tensor(const at::Tensor& tensor) {
  return tensor.defined() ? std::optional<at::Tensor>(tensor) : std::nullopt;
}

class LinearAdapter final : public Linear::Kernel {
 public:
  LinearAdapter(const kernel::LoadedKernel& kernel, const kernel::PackageLayer& layer)
      : repository_(kernel.repository),
        forward_(kernel, need_op(kernel, layer, "forward"),
                 {{{"out"}, {"x"}, {"weight"}, optional("bias")}}),
        join_forward_(optional_op<JoinForward>(kernel, layer, "join_forward",
                                               {{{"out"},
                                                 {"x"},
                                                 {"first"},
                                                 {"second"},
                                                 optional("third"),
                                                 optional("first_bias"),
                                                 optional("second_bias"),
                                                 optional("third_bias")}})) {}

  bool has_backward() const override { return false; }

  bool joins(const Linear::Kernel& other) const override {
    const auto* same = dynamic_cast<const LinearAdapter*>(&other);
    return same != nullptr && same->forward_.handle() == forward_.handle();
  }

  at::Tensor forward(const at::Tensor& x, const at::Tensor& weight,
                     const at::Tensor& bias) const override {
    must_record(repository_, has_backward(), {&x, &weight, &bias});
    at::Tensor out = make_out(x, weight.size(0));
    forward_(out, with_contiguous_rows(x), weight, optional_tensor(bias));
    return out;
  }

  Linear::Products join_forward(const at::Tensor& x,
                                const Linear::Factors& factors) const override {
    const bool joint = join_forward_ && (factors.size() == 2 || factors.size() == 3) &&
                       x.numel() <= kMaxJoinedRows * x.size(-1);
    if (!joint) {
      return Linear::Kernel::join_forward(x, factors);
    }
    int64_t columns = 0;
    for (const auto& [weight, bias] : factors) {
      must_record(repository_, has_backward(), {&x, &weight, &bias});
      columns += weight.size(0);
    }
    at::Tensor out = make_out(x, columns);
    const auto [third, third_bias] =
        factors.size() == 3 ? factors[2] : std::pair<at::Tensor, at::Tensor>();
    (*join_forward_)(out, with_contiguous_rows(x), factors[0].first, factors[1].first,
                     optional_tensor(third), optional_tensor(factors[0].second),
                     optional_tensor(factors[1].second), optional_tensor(third_bias));
    Linear::Products products;
    int64_t column = 0;
    for (const auto& [weight, bias] : factors) {
      products.push_back(out.narrow(-1, column, weight.size(0)));
      column += weight.size(0);
    }
    return products;
  }

 private:
  using OptionalTensor = std::optional<at::Tensor>;
  using JoinForward = BoundOp<void(at::Tensor&, const at::Tensor&, const at::Tensor&,
                                   const at::Tensor&, const OptionalTensor&, const OptionalTensor&,
                                   const OptionalTensor&, const OptionalTensor&)>;

  static constexpr ContractValue optional(std::string_view name) {
    return {name, c10::TypeKind::TensorType, /*optional=*/true};
  }

  static at::Tensor make_out(const at::Tensor& x, int64_t columns) {
    c10::SmallVector<int64_t, 4> sizes(x.sizes().begin(), x.sizes().end());
    sizes.back() = columns;
    return at::empty(sizes, x.options());
  }

  std::string repository_;
  BoundOp<void(at::Tensor&, const at::Tensor&, const at::Tensor&, const OptionalTensor&)> forward_;
  std::optional<JoinForward> join_forward_;
};

}  // namespace

std::shared_ptr<const Linear::Kernel> bind(const Linear::Spec&, const kernel::LoadedKernel& kernel,
                                           const kernel::PackageLayer& layer) {
  check_contract(kernel, layer, "Linear");
  return std::make_shared<LinearAdapter>(kernel, layer);
}

}  // namespace graft::layers
