// Which of the compiled instruction sets runs. Every *_simd.cpp is compiled once for each.
#pragma once

namespace graft_kernels {

enum class Isa { kPlain, kAvx2, kAvx512 };

// The best set that this processor has; GRAFT_CPU_ISA=plain|avx2|avx512 asks for a lesser one
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
// AVX-512.
bool multiplies_bf16();

}  // namespace graft_kernels
