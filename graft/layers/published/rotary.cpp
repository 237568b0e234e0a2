#include "graft/layers/bound_op.h"
#include "graft/layers/gradient.h"
#include "graft/layers/published/contracts.h"
#include "graft/layers/published/published_op.h"

namespace graft::layers::published {

namespace {

constexpr char kSchema[] =
    "apply_rotary(Tensor x1, Tensor x2, Tensor cos, Tensor sin, Tensor! out1, Tensor! out2, bool "
    "conj) "
    "-> ()";

class PublishedRotary final : public Rotary::Kernel,
                              public std::enable_shared_from_this<PublishedRotary> {
 public:
  explicit PublishedRotary(const kernel::LoadedKernel& kernel)
      : repository_(kernel.repository), op_(kernel, {kSchema}) {}

  std::pair<at::Tensor, at::Tensor> forward(const at::Tensor& query, const at::Tensor& key,
                                            const RotaryTables& tables) const override {
    return {turned(query, tables), turned(key, tables)};
  }

 private:
  at::Tensor turned(const at::Tensor& x, const RotaryTables& tables) const {
    const bool records = needs_gradient({&x});
    at::Tensor out = rotate(x, tables.cos, tables.sin, /*conj=*/false);
    if (records) {
      record(repository_, {out}, {x}, {tables.cos, tables.sin},
             [self = shared_from_this()](const Tensors& saved, const Tensors& grads) -> Tensors {
               return {self->rotate(grads[0], saved[0], saved[1], /*conj=*/true)};
             });
    }
    return out;
  }

  // x [B, S, H, D]; the op takes one dtype for all, halves of the head apart and the first half of
  // the tables.
  at::Tensor rotate(const at::Tensor& x, const at::Tensor& cos, const at::Tensor& sin,
                    bool conj) const {
    const at::AutoDispatchBelowADInplaceOrView no_autograd;
    const int64_t turned = cos.size(-1), half = turned / 2;
    op_.need(cos.is_floating_point() && x.dim() == 4, "x", "heads [B, S, H, D]", x);
    // A copy: what is not turned stays, and the rest is turned in place.
    at::Tensor out = x.to(cos.scalar_type(), /*non_blocking=*/false, /*copy=*/true,
                          at::MemoryFormat::Contiguous);
    const at::Tensor first = out.narrow(-1, 0, half), second = out.narrow(-1, half, half);
    op_(first, second, cos.narrow(-1, 0, half).unsqueeze(2), sin.narrow(-1, 0, half).unsqueeze(2),
        first, second, conj);
    return out.to(x.scalar_type());
  }

  std::string repository_;
  PublishedOp op_;
};

}  // namespace

std::shared_ptr<const Rotary::Kernel> bind_rotary(const kernel::LoadedKernel& kernel,
                                                  const kernel::PackageLayer& layer) {
  variant_number(kernel, layer, "half_split");
  return std::make_shared<PublishedRotary>(kernel);
}

}  // namespace graft::layers::published
