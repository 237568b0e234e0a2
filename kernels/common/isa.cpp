#include "kernels/common/isa.h"

#include <cstdlib>
#include <cstring>

#include <sys/syscall.h>
#include <unistd.h>

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

// Whether GRAFT_CPU_ISA lets our products use what stands above plain AVX-512.
bool allows(bool in_bf16_set) {
  const char* asked = std::getenv("GRAFT_CPU_ISA");
  const bool lesser =
      asked != nullptr && (std::strcmp(asked, "avx512") == 0 ||
                           (!in_bf16_set && std::strcmp(asked, "avx512_bf16") == 0));
  return current_isa() == Isa::kAvx512 && !lesser;
}

// Linux gives a process tiles when it asks (ARCH_REQ_XCOMP_PERM for XTILEDATA).
bool request_tiles() {
  constexpr long kRequestPermission = 0x1023, kTileData = 18;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
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

bool multiplies_pairs() {
  static const bool has = allows(/*in_bf16_set=*/true) && multiplies_bf16();
  return has;
}

bool multiplies_bytes() {
  static const bool has = allows(/*in_bf16_set=*/true) && __builtin_cpu_supports("avx512vnni");
  return has;
}

bool multiplies_tiles() {
  static const bool has = allows(/*in_bf16_set=*/false) && multiplies_bf16() &&
                          __builtin_cpu_supports("amx-tile") &&
                          __builtin_cpu_supports("amx-bf16") && request_tiles();
  return has;
}

}  // namespace graft_kernels
