// elect.sync: one lane for what a warp does once.
#pragma once

#include "launch.cuh"

namespace convsmith::ptx {

#ifdef CONVSMITH_SIMULATOR

// Whether this lane is the one; all 32 lanes must call it together.
inline bool elect_sync() { return threadIdx.x % 32 == 0; }

#else

__device__ __forceinline__ bool elect_sync() {
#if __CUDA_ARCH__ >= 900
    unsigned is_elected;
    asm volatile(
        "{ .reg .pred elected; elect.sync _|elected, 0xffffffff; selp.u32 %0, 1, 0, elected; }"
        : "=r"(is_elected));
    return is_elected != 0;
#else
    return threadIdx.x % 32 == 0;
#endif
}

#endif

}  // namespace convsmith::ptx
