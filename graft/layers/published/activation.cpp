#include <fmt/format.h>

#include "graft/layers/bound_op.h"
#include "graft/layers/published/contracts.h"
#include "graft/layers/published/published_op.h"

namespace graft::layers::published {

namespace {

PublishedOp bind_op(const kernel::LoadedKernel& kernel, const kernel::PackageLayer& layer) {
  const std::string& op = layers::need_op(kernel, layer, "forward").op;
  return PublishedOp(kernel, {fmt::format("{}(Tensor! out, Tensor input) -> ()", op)});
}

void check_dtype(const PublishedOp& op, const at::Tensor& x) {
  const auto dtype = x.scalar_type();
  op.need(dtype == at::kFloat || dtype == at::kHalf || dtype == at::kBFloat16, "input",
          "float32, float16 or bfloat16", x);
}

class PublishedActivation final : public Activation::Kernel {
 public:
  PublishedActivation(const kernel::LoadedKernel& kernel, const kernel::PackageLayer& layer)
      : op_(bind_op(kernel, layer)) {}

  bool has_backward() const override { return false; }

  at::Tensor forward(const at::Tensor& x) const override {
    must_record(op_.repository(), has_backward(), {&x});
    check_dtype(op_, x);
    const at::Tensor dense = x.contiguous();
    at::Tensor out = at::empty(x.sizes(), x.options());
    op_(out, dense);
    return out;
  }

 private:
  PublishedOp op_;
};

// gate and up as the halves of one dense tensor [N..., 2 I]: a view where they lie so.
at::Tensor joined(const at::Tensor& gate, const at::Tensor& up) {
  const int64_t width = gate.size(-1);
  bool halves = gate.is_alias_of(up) && gate.sizes() == up.sizes() &&
                gate.strides() == up.strides() && gate.numel() > 0 &&
                up.storage_offset() == gate.storage_offset() + width && gate.stride(-1) == 1;
  int64_t expected = 2 * width;
  for (int64_t d = gate.dim() - 2; halves && d >= 0; --d) {
    halves = gate.size(d) == 1 || gate.stride(d) == expected;
    expected *= gate.size(d);
  }
  if (!halves) {
    return at::cat({gate, up}, -1);
  }
  std::vector<int64_t> sizes = gate.sizes().vec();
  sizes.back() = 2 * width;
  return gate.as_strided({gate.numel() / width, 2 * width}, {2 * width, 1}).view(sizes);
}

class PublishedGatedActivation final : public GatedActivation::Kernel {
 public:
  PublishedGatedActivation(const kernel::LoadedKernel& kernel, const kernel::PackageLayer& layer)
      : op_(bind_op(kernel, layer)) {}

  bool has_backward() const override { return false; }

  at::Tensor forward(const at::Tensor& gate, const at::Tensor& up) const override {
    must_record(op_.repository(), has_backward(), {&gate, &up});
    check_dtype(op_, gate);
    at::Tensor out = at::empty(gate.sizes(), gate.options());
    op_(out, joined(gate, up));
    return out;
  }

 private:
  PublishedOp op_;
};

}  // namespace

std::shared_ptr<const Activation::Kernel> bind_activation(const kernel::LoadedKernel& kernel,
                                                          const kernel::PackageLayer& layer) {
  return std::make_shared<PublishedActivation>(kernel, layer);
}

std::shared_ptr<const GatedActivation::Kernel> bind_gated_activation(
    const kernel::LoadedKernel& kernel, const kernel::PackageLayer& layer) {
  return std::make_shared<PublishedGatedActivation>(kernel, layer);
}

}  // namespace graft::layers::published
