// A kernel that counts its calls in data with a name that every process sees: two versions of it in
// one process must not count together.

#include <cstdint>

#include <torch/csrc/stable/ops.h>

#include "kernels/common/registration.h"

__attribute__((visibility("default"))) int64_t graft_test_twin_count = 0;

namespace {

template <int64_t kStep>
struct Counter {
  static inline int64_t count = 0;
};

int64_t count(const torch::stable::Tensor&) {
  graft_test_twin_count += TWIN_STEP;
  Counter<0>::count += TWIN_STEP;
  return graft_test_twin_count * 1000 + Counter<0>::count;
}

}  // namespace

GRAFT_OPS(ops) { ops.def("count(Tensor x) -> int"); }

GRAFT_OPS_IMPL(CPU, ops) { ops.impl("count", TORCH_BOX(&count)); }
