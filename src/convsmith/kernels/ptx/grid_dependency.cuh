// griddepcontrol: a kernel that is launched by launch_early runs beside the end of the one before
// it. Compute capability 9.0 and newer; before, kernels follow one another anyway.
#pragma once

#include "launch.cuh"

namespace convsmith::ptx {

#ifdef CONVSMITH_SIMULATOR

// Lets the next kernel begin once all blocks of this one have come here.
inline void griddepcontrol_launch_dependents() {}

// Returns when the kernel before this one has ended, and what it has written can be read.
inline void griddepcontrol_wait() {}

#else

__device__ __forceinline__ void griddepcontrol_launch_dependents() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

__device__ __forceinline__ void griddepcontrol_wait() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

#endif

}  // namespace convsmith::ptx
