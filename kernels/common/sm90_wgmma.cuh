// Hopper's matrix products on shared memory (wgmma) and what goes with them (sm_90a alone). Device code, no Torch.
// NOTE: layouts of descriptors and fragments: PTX ISA 8.0, "Asynchronous Warpgroup Level Matrix
// Instructions".
#pragma once

#include <cstdint>
#include <type_traits>

#include <cuda.h>

#include "kernels/common/sm90_barriers.cuh"
#include "kernels/common/vec.cuh"

namespace graft_kernels::sm90 {

// Brings the 128 bytes around an address into the second-level cache.
__device__ __forceinline__ void prefetch_line(const void* from) {
  asm volatile("prefetch.global.L2 [%0];" ::"l"(from));
}

// to[] += from[], float32, by the copy engine; in no order with others' additions.
__device__ __forceinline__ void add_bytes(float* to, const void* from, int bytes) {
  asm volatile(
      "cp.reduce.async.bulk.global.shared::cta.bulk_group.add.f32 [%0], [%1], %2;\n"
      "cp.async.bulk.commit_group;" ::"l"(to),
      "r"(shared_address(from)), "r"(bytes)
      : "memory");
}

// Waits until what this thread's additions read may be written again.
__device__ __forceinline__ void wait_additions_read() {
  asm volatile("cp.async.bulk.wait_group.read 0;" ::: "memory");
}

// Waits until this thread's additions are done.
__device__ __forceinline__ void wait_additions() {
  asm volatile("cp.async.bulk.wait_group 0;" ::: "memory");
}

// Four 8x8 matrices; lane l gives the address of row l % 8 of matrix l / 8.
__device__ __forceinline__ void store_matrices(void* to, const uint32_t (&from)[4]) {
  asm volatile(
      "stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(shared_address(to)),
      "r"(from[0]), "r"(from[1]), "r"(from[2]), "r"(from[3])
      : "memory");
}

// Four 8x8 matrices, turned; lane l gives the address of row l % 8 of matrix l / 8.
__device__ __forceinline__ void store_matrices_turned(void* to, const uint32_t (&from)[4]) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(
                   shared_address(to)),
               "r"(from[0]), "r"(from[1]), "r"(from[2]), "r"(from[3])
               : "memory");
}

// ---- registers

template <int kRegisters>
__device__ __forceinline__ void take_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

template <int kRegisters>
__device__ __forceinline__ void give_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

// ---- matrix products

// Tiles are boxes of 64 columns (128 bytes), rows 128 bytes apart, swizzled by 128 bytes.
inline constexpr int kBoxColumns = 64;

// A box's rows against the contracted dimension along the columns.
__device__ __forceinline__ uint64_t describe_rows(const void* tile) {
  constexpr uint64_t kSwizzle128 = uint64_t{1} << 62, kEightRows = uint64_t{1024 / 16} << 32;
  return kSwizzle128 | kEightRows | (uint64_t{1} << 16) | ((shared_address(tile) & 0x3FFFFU) >> 4);
}

// The contracted dimension along the rows; boxes `box_bytes` apart hold the further columns.
__device__ __forceinline__ uint64_t describe_columns(const void* tile, int box_bytes) {
  constexpr uint64_t kSwizzle128 = uint64_t{1} << 62, kEightRows = uint64_t{1024 / 16} << 32;
  return kSwizzle128 | kEightRows | (static_cast<uint64_t>(box_bytes / 16) << 16) |
         ((shared_address(tile) & 0x3FFFFU) >> 4);
}

__device__ __forceinline__ void fence_products() {
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}

__device__ __forceinline__ void commit_products() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}

template <int kPending>
__device__ __forceinline__ void wait_products() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}

// An arrival behind the arithmetic that `positive` comes of, which is no less than zero or not a number: its sign, that
// is nothing, is added to the address. The assembler moves waits for products before arithmetic, but not before arrivals.
__device__ __forceinline__ void arrive_behind(uint64_t* barrier, float positive) {
  asm volatile(
      "{\n"
      ".reg .b32 sign, at;\n"
      "shr.u32 sign, %1, 31;\n"
      "add.u32 at, %0, sign;\n"
      "mbarrier.arrive.shared::cta.b64 _, [at];\n"
      "}\n" ::"r"(shared_address(barrier)),
      "r"(__float_as_uint(positive))
      : "memory");
}

// Keeps the compiler from moving uses of registers that a product writes.
template <int kCount>
__device__ __forceinline__ void fence_registers(float (&values)[kCount]) {
#pragma unroll
  for (int index = 0; index < kCount; ++index) {
    asm volatile("" : "+f"(values[index])::"memory");
  }
}

// What is in `values` is not needed any more: a product writes them next.
template <int kCount>
__device__ __forceinline__ void forget_registers(float (&values)[kCount]) {
#pragma unroll
  for (int index = 0; index < kCount; ++index) {
    asm volatile("" : "=f"(values[index])::"memory");
  }
}

template <int kRows>
__device__ __forceinline__ void fence_registers(uint32_t (&values)[kRows][4]) {
#pragma unroll
  for (int index = 0; index < kRows * 4; ++index) {
    asm volatile("" : "+r"(values[index / 4][index % 4])::"memory");
  }
}

// The shape and the operands' type are part of the instruction's name, which no template can write.
// Operands are numbered after the sums.

#define GRAFT_NAMES_32                                                     \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
  "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, " \
  "%30, %31"
#define GRAFT_NAMES_64                                                     \
  GRAFT_NAMES_32                                                           \
  ", "                                                                     \
  "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, " \
  "%46, %47, %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, " \
  "%60, %61, %62, %63"
#define GRAFT_NAMES_128                                                                        \
  GRAFT_NAMES_64                                                                               \
  ", "                                                                                         \
  "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, "           \
  "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, %96, %97, " \
  "%98, %99, %100, %101, %102, %103, "                                                         \
  "%104, %105, %106, %107, %108, %109, %110, %111, %112, %113, %114, %115, %116, %117, "       \
  "%118, %119, %120, %121, %122, %123, %124, %125, %126, %127"
#define GRAFT_SUMS_8(at)                                                                     \
  "+f"(sum[at]), "+f"(sum[at + 1]), "+f"(sum[at + 2]), "+f"(sum[at + 3]), "+f"(sum[at + 4]), \
      "+f"(sum[at + 5]), "+f"(sum[at + 6]), "+f"(sum[at + 7])
#define GRAFT_SUMS_32(at) \
  GRAFT_SUMS_8(at), GRAFT_SUMS_8(at + 8), GRAFT_SUMS_8(at + 16), GRAFT_SUMS_8(at + 24)
#define GRAFT_SUMS_64 GRAFT_SUMS_32(0), GRAFT_SUMS_32(32)
#define GRAFT_SUMS_128 GRAFT_SUMS_64, GRAFT_SUMS_32(64), GRAFT_SUMS_32(96)

#define GRAFT_WGMMA_SHARED(columns, type, turns, names, first, second, third, ...)             \
  asm volatile("{\n.reg .pred keep;\nsetp.ne.b32 keep, " third                                 \
               ", 0;\n"                                                                        \
               "wgmma.mma_async.sync.aligned.m64n" columns "k16.f32." type "." type " {" names \
               "}, " first ", " second ", keep, 1, 1, " turns ";\n}\n"                         \
               : __VA_ARGS__                                                                   \
               : "l"(a), "l"(b), "r"(keep))

#define GRAFT_WGMMA_REGISTERS(columns, type, turns, names, first, second, third, fourth, fifth,   \
                              sixth, ...)                                                         \
  asm volatile("{\n.reg .pred keep;\nsetp.ne.b32 keep, " sixth                                    \
               ", 0;\n"                                                                           \
               "wgmma.mma_async.sync.aligned.m64n" columns "k16.f32." type "." type " {" names    \
               "}, {" first ", " second ", " third ", " fourth "}, " fifth ", keep, 1, 1, " turns \
               ";\n}\n"                                                                           \
               : __VA_ARGS__                                                                      \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(keep))

// sum[64x2N] = (keep ? sum : 0) + a[64x16] b[2Nx16]^T, both in shared memory; kTurned: b is [16x2N].
template <typename T, bool kTurned = false, int kCount>
__device__ __forceinline__ void multiply_shared(float (&sum)[kCount], uint64_t a, uint64_t b,
                                                int keep) {
  static_assert(kCount == 128 || kCount == 64 || kCount == 32);
  static_assert(!kTurned || kCount == 128 || kCount == 32);
  constexpr bool kBf16 = std::is_same_v<T, Bf16>;
  if constexpr (kCount == 128 && kTurned && kBf16) {
    GRAFT_WGMMA_SHARED("256", "bf16", "0, 1", GRAFT_NAMES_128, "%128", "%129", "%130",
                       GRAFT_SUMS_128);
  } else if constexpr (kCount == 128 && kTurned) {
    GRAFT_WGMMA_SHARED("256", "f16", "0, 1", GRAFT_NAMES_128, "%128", "%129", "%130",
                       GRAFT_SUMS_128);
  } else if constexpr (kCount == 128 && kBf16) {
    GRAFT_WGMMA_SHARED("256", "bf16", "0, 0", GRAFT_NAMES_128, "%128", "%129", "%130",
                       GRAFT_SUMS_128);
  } else if constexpr (kCount == 128) {
    GRAFT_WGMMA_SHARED("256", "f16", "0, 0", GRAFT_NAMES_128, "%128", "%129", "%130",
                       GRAFT_SUMS_128);
  } else if constexpr (kCount == 64 && kBf16) {
    GRAFT_WGMMA_SHARED("128", "bf16", "0, 0", GRAFT_NAMES_64, "%64", "%65", "%66", GRAFT_SUMS_64);
  } else if constexpr (kCount == 64) {
    GRAFT_WGMMA_SHARED("128", "f16", "0, 0", GRAFT_NAMES_64, "%64", "%65", "%66", GRAFT_SUMS_64);
  } else if constexpr (kTurned && kBf16) {
    GRAFT_WGMMA_SHARED("64", "bf16", "0, 1", GRAFT_NAMES_32, "%32", "%33", "%34", GRAFT_SUMS_32(0));
  } else if constexpr (kTurned) {
    GRAFT_WGMMA_SHARED("64", "f16", "0, 1", GRAFT_NAMES_32, "%32", "%33", "%34", GRAFT_SUMS_32(0));
  } else if constexpr (kBf16) {
    GRAFT_WGMMA_SHARED("64", "bf16", "0, 0", GRAFT_NAMES_32, "%32", "%33", "%34", GRAFT_SUMS_32(0));
  } else {
    GRAFT_WGMMA_SHARED("64", "f16", "0, 0", GRAFT_NAMES_32, "%32", "%33", "%34", GRAFT_SUMS_32(0));
  }
}

// sum[64x2N] = (keep ? sum : 0) + a[64x16] b[16x2N], a in registers; not kTurned: b is [2Nx16].
template <typename T, bool kTurned = true, int kCount>
__device__ __forceinline__ void multiply_registers(float (&sum)[kCount], const uint32_t (&a)[4],
                                                   uint64_t b, int keep = 1) {
  static_assert(kCount == 64 || (kCount == 32 && kTurned));
  constexpr bool kBf16 = std::is_same_v<T, Bf16>;
  if constexpr (kCount == 64 && kTurned && kBf16) {
    GRAFT_WGMMA_REGISTERS("128", "bf16", "1", GRAFT_NAMES_64, "%64", "%65", "%66", "%67", "%68",
                          "%69", GRAFT_SUMS_64);
  } else if constexpr (kCount == 64 && kTurned) {
    GRAFT_WGMMA_REGISTERS("128", "f16", "1", GRAFT_NAMES_64, "%64", "%65", "%66", "%67", "%68",
                          "%69", GRAFT_SUMS_64);
  } else if constexpr (kCount == 64 && kBf16) {
    GRAFT_WGMMA_REGISTERS("128", "bf16", "0", GRAFT_NAMES_64, "%64", "%65", "%66", "%67", "%68",
                          "%69", GRAFT_SUMS_64);
  } else if constexpr (kCount == 64) {
    GRAFT_WGMMA_REGISTERS("128", "f16", "0", GRAFT_NAMES_64, "%64", "%65", "%66", "%67", "%68",
                          "%69", GRAFT_SUMS_64);
  } else if constexpr (kBf16) {
    GRAFT_WGMMA_REGISTERS("64", "bf16", "1", GRAFT_NAMES_32, "%32", "%33", "%34", "%35", "%36",
                          "%37", GRAFT_SUMS_32(0));
  } else {
    GRAFT_WGMMA_REGISTERS("64", "f16", "1", GRAFT_NAMES_32, "%32", "%33", "%34", "%35", "%36",
                          "%37", GRAFT_SUMS_32(0));
  }
}

#undef GRAFT_NAMES_32
#undef GRAFT_NAMES_64
#undef GRAFT_NAMES_128
#undef GRAFT_SUMS_8
#undef GRAFT_SUMS_32
#undef GRAFT_SUMS_64
#undef GRAFT_SUMS_128
#undef GRAFT_WGMMA_SHARED
#undef GRAFT_WGMMA_REGISTERS

}  // namespace graft_kernels::sm90
