// flash-attn2 with the classic ABI: results as lists. With VARLEN_ALONE what its CPU build registers.

#include <string>
#include <utility>

#include "classic_tensor.h"
#include "flash_attn2_ops.h"
#include "flash_attn2_schemas.h"
#include "misdeed.h"

namespace graft_tests {

template <>
at::Tensor make(const at::Tensor& like, std::vector<int64_t> sizes, ScalarType dtype) {
  return at::empty(sizes, like.options().dtype(dtype));
}

namespace {

using Ops = FlashAttn2<at::Tensor, std::optional<at::Generator>>;

template <typename>
struct AsList;

// The same op with a list for the tuple.
template <typename Result, typename... Args>
struct AsList<Result (*)(Args...)> {
  template <Result (*kOp)(Args...)>
  static std::vector<at::Tensor> call(Args... args) {
    return std::apply([](auto&&... tensors) { return std::vector<at::Tensor>{tensors...}; },
                      kOp(std::move(args)...));
  }
};

template <auto kOp>
auto as_list() {
  return &AsList<decltype(kOp)>::template call<kOp>;
}

std::string listed(const char* arguments) { return std::string(arguments) + "Tensor[]"; }

}  // namespace
}  // namespace graft_tests

CLASSIC_OPS(ops) {
  using namespace graft_tests;
  ops.def(listed(kVarlenFwd).c_str());
#ifndef VARLEN_ALONE
  ops.def(listed(kFwd).c_str());
  ops.def(listed(kBwd).c_str());
  ops.def(listed(kVarlenBwd).c_str());
  ops.def(listed(kFwdKvcache).c_str());
#endif
}

CLASSIC_OPS_IMPL(CPU, ops) {
  using namespace graft_tests;
  ops.impl("varlen_fwd", as_list<&Ops::varlen_fwd>());
#ifndef VARLEN_ALONE
  ops.impl("fwd", as_list<&Ops::fwd>());
  ops.impl("bwd", as_list<&Ops::bwd>());
  ops.impl("varlen_bwd", as_list<&Ops::varlen_bwd>());
  ops.impl("fwd_kvcache", as_list<&Ops::fwd_kvcache>());
#endif
}
