#include "kernels/common/isa.h"

#include <cstdlib>
#include <cstring>

namespace graft_kernels {

namespace {

Isa best_isa() {
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq")) {
    return Isa::kAvx512;
  }
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
      __builtin_cpu_supports("f16c")) {
    return Isa::kAvx2;
  }
  return Isa::kPlain;
}

Isa choose() {
  const Isa best = best_isa();
  const char* asked = std::getenv("GRAFT_CPU_ISA");
  Isa wanted = best;
  if (asked != nullptr && std::strcmp(asked, "plain") == 0) {
    wanted = Isa::kPlain;
  } else if (asked != nullptr && std::strcmp(asked, "avx2") == 0) {
    wanted = Isa::kAvx2;
  }
  return wanted < best ? wanted : best;
}

}  // namespace

Isa current_isa() {
  static const Isa isa = choose();
  return isa;
}

bool multiplies_bf16() {
  static const bool has = __builtin_cpu_supports("avx512bf16");
  return has && current_isa() == Isa::kAvx512;
}

}  // namespace graft_kernels
