// flash-attn2 with the stable ABI, as its CUDA build: results as tuples.

#include <string>

#include "flash_attn2_ops.h"
#include "flash_attn2_schemas.h"
#include "stable_tensor.h"

namespace graft_tests {
namespace {

// `Generator?` has no stable form; only an absent one may be passed.
using Ops = FlashAttn2<StableTensor, std::optional<int64_t>>;

std::string four(const char* arguments) {
  return std::string(arguments) + "(Tensor, Tensor, Tensor, Tensor)";
}

}  // namespace
}  // namespace graft_tests

GRAFT_OPS(ops) {
  using namespace graft_tests;
  ops.def(four(kFwd).c_str());
  ops.def(four(kVarlenFwd).c_str());
  ops.def(four(kBwd).c_str());
  ops.def(four(kVarlenBwd).c_str());
  ops.def((std::string(kFwdKvcache) + "(Tensor, Tensor)").c_str());
}

GRAFT_OPS_IMPL(CPU, ops) {
  using graft_tests::Ops;
  ops.impl("fwd", TORCH_BOX(&Ops::fwd));
  ops.impl("varlen_fwd", TORCH_BOX(&Ops::varlen_fwd));
  ops.impl("bwd", TORCH_BOX(&Ops::bwd));
  ops.impl("varlen_bwd", TORCH_BOX(&Ops::varlen_bwd));
  ops.impl("fwd_kvcache", TORCH_BOX(&Ops::fwd_kvcache));
}
