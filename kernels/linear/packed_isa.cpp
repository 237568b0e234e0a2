#include "kernels/linear/packed_isa.h"

#include <cstdlib>
#include <cstring>

#include <sys/syscall.h>
#include <unistd.h>

#include "kernels/common/isa.h"

namespace graft_kernels::linear {

namespace {

// Whether GRAFT_CPU_ISA lets a program use what stands above plain AVX-512.
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

bool multiplies_bytes() {
  static const bool has = allows(/*in_bf16_set=*/true) && __builtin_cpu_supports("avx512vnni");
  return has;
}

bool multiplies_tiles() {
  static const bool has = allows(/*in_bf16_set=*/false) && __builtin_cpu_supports("amx-tile") &&
                          __builtin_cpu_supports("amx-bf16") &&
                          __builtin_cpu_supports("avx512bf16") && request_tiles();
  return has;
}

}  // namespace graft_kernels::linear
