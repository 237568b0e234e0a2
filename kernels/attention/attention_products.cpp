#include <cstdlib>
#include <cstring>

#include <sys/syscall.h>
#include <unistd.h>

#include "kernels/attention/attention_blocks.h"
#include "kernels/common/isa.h"

namespace graft_kernels::attention {

namespace {

// Linux gives a process tiles when it asks (ARCH_REQ_XCOMP_PERM for XTILEDATA).
bool request_tiles() {
  constexpr long kRequestPermission = 0x1023, kTileData = 18;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}

// GRAFT_CPU_ISA: `avx512` leaves pairs and tiles out, `avx512_bf16` the tiles.
Products best_products() {
  const char* asked = std::getenv("GRAFT_CPU_ISA");
  const auto asks = [&](const char* isa) {
    return asked != nullptr && std::strcmp(asked, isa) == 0;
  };
  if (!multiplies_bf16() || asks("avx512")) {
    return Products::kFloats;
  }
  const bool tiles = !asks("avx512_bf16") && __builtin_cpu_supports("amx-tile") &&
                     __builtin_cpu_supports("amx-bf16") && request_tiles();
  return tiles ? Products::kTiles : Products::kPairs;
}

}  // namespace

Products products_for(Dtype dtype) {
  static const Products best = best_products();
  return dtype == Dtype::kBfloat16 ? best : Products::kFloats;
}

}  // namespace graft_kernels::attention
