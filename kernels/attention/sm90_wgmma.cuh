// Hopper's matrix products on shared memory (wgmma), its bulk tensor copies and their barriers
// (sm_90a alone). Device code, no Torch.
// NOTE: layouts of descriptors and fragments: PTX ISA 8.0, "Asynchronous Warpgroup Level Matrix
// Instructions".
#pragma once

#include <cstdint>
#include <type_traits>

#include <cuda.h>

#include "kernels/common/vec.cuh"

namespace graft_kernels::attention::sm90 {

__device__ __forceinline__ uint32_t shared_address(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

// ---- barriers in shared memory

__device__ __forceinline__ void init_barrier(uint64_t* barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)),
               "r"(arrivals)
               : "memory");
}

__device__ __forceinline__ void arrive(uint64_t* barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(barrier))
               : "memory");
}

// One arrival, and `bytes` of copies to wait for.
__device__ __forceinline__ void arrive_expecting(uint64_t* barrier, int bytes) {
  asm volatile(
      "mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)),
      "r"(bytes)
      : "memory");
}

__device__ __forceinline__ void wait(uint64_t* barrier, int phase) {
  asm volatile(
      "{\n"
      ".reg .pred done;\n"
      "again:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@!done bra again;\n"
      "}\n" ::"r"(shared_address(barrier)),
      "r"(phase)
      : "memory");
}

// Barriers of the hardware, by number, for `threads` threads.
__device__ __forceinline__ void sync_named(int barrier, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(barrier), "r"(threads) : "memory");
}

__device__ __forceinline__ void arrive_named(int barrier, int threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(barrier), "r"(threads) : "memory");
}

// ---- copies

// A box of the tensor [batch, head, row, column] at the given place; rows beyond its end are zeros.
__device__ __forceinline__ void copy_box(void* to, const CUtensorMap* map, uint64_t* barrier,
                                         int column, int row, int head, int batch) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, "
      "%4, %5, %6}], [%2];" ::"r"(shared_address(to)),
      "l"(map), "r"(shared_address(barrier)), "r"(column), "r"(row), "r"(head), "r"(batch)
      : "memory");
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

// What this thread wrote to shared memory becomes visible to products and copies.
__device__ __forceinline__ void publish_shared() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
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

// The operands' type is part of the instruction's name, which no template can write.

#define GRAFT_WGMMA_SHARED_64(type)                                                                \
  asm volatile(                                                                                    \
      "{\n.reg .pred keep;\nsetp.ne.b32 keep, %66, 0;\n"                                           \
      "wgmma.mma_async.sync.aligned.m64n128k16.f32." type "." type                                 \
      " {%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, "    \
      "%19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, %36, " \
      "%37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, %53, %54, " \
      "%55, %56, %57, %58, %59, %60, %61, %62, %63}, %64, %65, keep, 1, 1, 0, 0;\n}\n"             \
      : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3]), "+f"(sum[4]), "+f"(sum[5]),        \
        "+f"(sum[6]), "+f"(sum[7]), "+f"(sum[8]), "+f"(sum[9]), "+f"(sum[10]), "+f"(sum[11]),      \
        "+f"(sum[12]), "+f"(sum[13]), "+f"(sum[14]), "+f"(sum[15]), "+f"(sum[16]), "+f"(sum[17]),  \
        "+f"(sum[18]), "+f"(sum[19]), "+f"(sum[20]), "+f"(sum[21]), "+f"(sum[22]), "+f"(sum[23]),  \
        "+f"(sum[24]), "+f"(sum[25]), "+f"(sum[26]), "+f"(sum[27]), "+f"(sum[28]), "+f"(sum[29]),  \
        "+f"(sum[30]), "+f"(sum[31]), "+f"(sum[32]), "+f"(sum[33]), "+f"(sum[34]), "+f"(sum[35]),  \
        "+f"(sum[36]), "+f"(sum[37]), "+f"(sum[38]), "+f"(sum[39]), "+f"(sum[40]), "+f"(sum[41]),  \
        "+f"(sum[42]), "+f"(sum[43]), "+f"(sum[44]), "+f"(sum[45]), "+f"(sum[46]), "+f"(sum[47]),  \
        "+f"(sum[48]), "+f"(sum[49]), "+f"(sum[50]), "+f"(sum[51]), "+f"(sum[52]), "+f"(sum[53]),  \
        "+f"(sum[54]), "+f"(sum[55]), "+f"(sum[56]), "+f"(sum[57]), "+f"(sum[58]), "+f"(sum[59]),  \
        "+f"(sum[60]), "+f"(sum[61]), "+f"(sum[62]), "+f"(sum[63])                                 \
      : "l"(a), "l"(b), "r"(keep))

#define GRAFT_WGMMA_SHARED_32(type, turns)                                                        \
  asm volatile(                                                                                   \
      "{\n.reg .pred keep;\nsetp.ne.b32 keep, %34, 0;\n"                                          \
      "wgmma.mma_async.sync.aligned.m64n64k16.f32." type "." type                                 \
      " {%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, "             \
      "%17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, "              \
      "%32, %33, keep, 1, 1, " turns ";\n}\n"                                                     \
      : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3]), "+f"(sum[4]), "+f"(sum[5]),       \
        "+f"(sum[6]), "+f"(sum[7]), "+f"(sum[8]), "+f"(sum[9]), "+f"(sum[10]), "+f"(sum[11]),     \
        "+f"(sum[12]), "+f"(sum[13]), "+f"(sum[14]), "+f"(sum[15]), "+f"(sum[16]), "+f"(sum[17]), \
        "+f"(sum[18]), "+f"(sum[19]), "+f"(sum[20]), "+f"(sum[21]), "+f"(sum[22]), "+f"(sum[23]), \
        "+f"(sum[24]), "+f"(sum[25]), "+f"(sum[26]), "+f"(sum[27]), "+f"(sum[28]), "+f"(sum[29]), \
        "+f"(sum[30]), "+f"(sum[31])                                                              \
      : "l"(a), "l"(b), "r"(keep))

#define GRAFT_WGMMA_REGISTERS_64(type)                                                             \
  asm volatile(                                                                                    \
      "{\n.reg .pred keep;\nsetp.ne.b32 keep, %69, 0;\n"                                           \
      "wgmma.mma_async.sync.aligned.m64n128k16.f32." type "." type                                 \
      " {%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, "    \
      "%19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, %36, " \
      "%37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, %53, %54, " \
      "%55, %56, %57, %58, %59, %60, %61, %62, %63}, {%64, %65, %66, %67}, %68, keep, 1, 1, "      \
      "1;\n}\n"                                                                                    \
      : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3]), "+f"(sum[4]), "+f"(sum[5]),        \
        "+f"(sum[6]), "+f"(sum[7]), "+f"(sum[8]), "+f"(sum[9]), "+f"(sum[10]), "+f"(sum[11]),      \
        "+f"(sum[12]), "+f"(sum[13]), "+f"(sum[14]), "+f"(sum[15]), "+f"(sum[16]), "+f"(sum[17]),  \
        "+f"(sum[18]), "+f"(sum[19]), "+f"(sum[20]), "+f"(sum[21]), "+f"(sum[22]), "+f"(sum[23]),  \
        "+f"(sum[24]), "+f"(sum[25]), "+f"(sum[26]), "+f"(sum[27]), "+f"(sum[28]), "+f"(sum[29]),  \
        "+f"(sum[30]), "+f"(sum[31]), "+f"(sum[32]), "+f"(sum[33]), "+f"(sum[34]), "+f"(sum[35]),  \
        "+f"(sum[36]), "+f"(sum[37]), "+f"(sum[38]), "+f"(sum[39]), "+f"(sum[40]), "+f"(sum[41]),  \
        "+f"(sum[42]), "+f"(sum[43]), "+f"(sum[44]), "+f"(sum[45]), "+f"(sum[46]), "+f"(sum[47]),  \
        "+f"(sum[48]), "+f"(sum[49]), "+f"(sum[50]), "+f"(sum[51]), "+f"(sum[52]), "+f"(sum[53]),  \
        "+f"(sum[54]), "+f"(sum[55]), "+f"(sum[56]), "+f"(sum[57]), "+f"(sum[58]), "+f"(sum[59]),  \
        "+f"(sum[60]), "+f"(sum[61]), "+f"(sum[62]), "+f"(sum[63])                                 \
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(1))

#define GRAFT_WGMMA_REGISTERS_32(type)                                                            \
  asm volatile(                                                                                   \
      "{\n.reg .pred keep;\nsetp.ne.b32 keep, %37, 0;\n"                                          \
      "wgmma.mma_async.sync.aligned.m64n64k16.f32." type "." type                                 \
      " {%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, "             \
      "%17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, "              \
      "{%32, %33, %34, %35}, %36, keep, 1, 1, 1;\n}\n"                                            \
      : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3]), "+f"(sum[4]), "+f"(sum[5]),       \
        "+f"(sum[6]), "+f"(sum[7]), "+f"(sum[8]), "+f"(sum[9]), "+f"(sum[10]), "+f"(sum[11]),     \
        "+f"(sum[12]), "+f"(sum[13]), "+f"(sum[14]), "+f"(sum[15]), "+f"(sum[16]), "+f"(sum[17]), \
        "+f"(sum[18]), "+f"(sum[19]), "+f"(sum[20]), "+f"(sum[21]), "+f"(sum[22]), "+f"(sum[23]), \
        "+f"(sum[24]), "+f"(sum[25]), "+f"(sum[26]), "+f"(sum[27]), "+f"(sum[28]), "+f"(sum[29]), \
        "+f"(sum[30]), "+f"(sum[31])                                                              \
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(1))

// sum[64x128] = (keep ? sum : 0) + a[64x16] b[128x16]^T, both in shared memory.
template <typename T>
__device__ __forceinline__ void multiply_shared(float (&sum)[64], uint64_t a, uint64_t b,
                                                int keep) {
  if constexpr (std::is_same_v<T, Bf16>) {
    GRAFT_WGMMA_SHARED_64("bf16");
  } else {
    GRAFT_WGMMA_SHARED_64("f16");
  }
}

// sum[64x64] likewise; kTurned: b is [16x64].
template <typename T, bool kTurned = false>
__device__ __forceinline__ void multiply_shared(float (&sum)[32], uint64_t a, uint64_t b,
                                                int keep) {
  if constexpr (kTurned && std::is_same_v<T, Bf16>) {
    GRAFT_WGMMA_SHARED_32("bf16", "0, 1");
  } else if constexpr (kTurned) {
    GRAFT_WGMMA_SHARED_32("f16", "0, 1");
  } else if constexpr (std::is_same_v<T, Bf16>) {
    GRAFT_WGMMA_SHARED_32("bf16", "0, 0");
  } else {
    GRAFT_WGMMA_SHARED_32("f16", "0, 0");
  }
}

// sum[64x2N] += a[64x16] b[16x2N], a in registers.
template <typename T, int kCount>
__device__ __forceinline__ void multiply_registers(float (&sum)[kCount], const uint32_t (&a)[4],
                                                   uint64_t b) {
  static_assert(kCount == 64 || kCount == 32);
  if constexpr (kCount == 64 && std::is_same_v<T, Bf16>) {
    GRAFT_WGMMA_REGISTERS_64("bf16");
  } else if constexpr (kCount == 64) {
    GRAFT_WGMMA_REGISTERS_64("f16");
  } else if constexpr (std::is_same_v<T, Bf16>) {
    GRAFT_WGMMA_REGISTERS_32("bf16");
  } else {
    GRAFT_WGMMA_REGISTERS_32("f16");
  }
}

#undef GRAFT_WGMMA_SHARED_64
#undef GRAFT_WGMMA_SHARED_32
#undef GRAFT_WGMMA_REGISTERS_64
#undef GRAFT_WGMMA_REGISTERS_32

}  // namespace graft_kernels::attention::sm90
