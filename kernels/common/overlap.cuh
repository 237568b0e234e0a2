// Programmatic dependent launch: the start of a kernel overlaps the end of the one before it. Device
// code, no Torch; nothing happens before sm_90.
//
// A kernel that was launched to overlap (cuda_launch.h) may touch nothing that earlier kernels write, nor
// write anything that they read, before wait_for_previous(). Every thread calls it. Weights that it reads before ask for
// launch_reading_ahead().
#pragma once

namespace graft_kernels {

// Waits until all kernels before this one are done and what they wrote can be read.
__device__ __forceinline__ void wait_for_previous() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// Lets the next kernel's blocks start as soon as there is room for them.
__device__ __forceinline__ void let_next_start() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

}  // namespace graft_kernels
