// Which of the compiled instruction sets runs. Every *_simd.cpp is compiled once for each.
#pragma once

namespace graft_kernels {

enum class Isa { kPlain, kAvx2, kAvx512 };

// The best set that this processor has; GRAFT_CPU_ISA=plain|avx2|avx512|avx512_bf16 asks for a lesser one
// (tests). Read once per process.
Isa current_isa();

// One implementation per instruction set -> the one for this processor.
template <typename T>
const T& choose_isa(const T& plain, const T& avx2, const T& avx512) {
  switch (current_isa()) {
    case Isa::kAvx512:
      return avx512;
    case Isa::kAvx2:
      return avx2;
    case Isa::kPlain:
      break;
  }
  return plain;
}

// Whether the processor multiplies pairs of bfloat16 by itself (AVX512_BF16), and the set in use is
// AVX-512: what libtorch's products make use of, whatever GRAFT_CPU_ISA leaves out of ours.
bool multiplies_bf16();

// What our own products may use above plain AVX-512. `avx512` leaves all of it out, `avx512_bf16` the tiles.
bool multiplies_pairs();  // of bfloat16 (AVX512_BF16)
bool multiplies_bytes();  // in fours (AVX512_VNNI)
bool multiplies_tiles();  // of bfloat16 (AMX_BF16); asks the system for them, once

}  // namespace graft_kernels
