// What the processor multiplies besides its vectors of float32, for packed weights.
#pragma once

namespace graft_kernels::linear {

// Bytes in fours (AVX512_VNNI).
bool multiplies_bytes();

// Tiles of bfloat16 (AMX_BF16); asks the system for them, once.
bool multiplies_tiles();

// Both are false where GRAFT_CPU_ISA asks for another set than the best: `avx512` alone leaves them out,
// `avx512_bf16` leaves the tiles out.

}  // namespace graft_kernels::linear
