// redux.sync: the largest of what the lanes of a warp hold.
#pragma once

#include "launch.cuh"

namespace convsmith::ptx {

#ifdef CONVSMITH_SIMULATOR

inline unsigned reduce_max(unsigned value, int line = __builtin_LINE()) {
    for (int mask = 16; mask > 0; mask /= 2) {
        value = max(value, static_cast<unsigned>(simulator::exchange(value, mask, line)));
    }
    return value;
}

#else

__device__ __forceinline__ unsigned reduce_max(unsigned value) {
    unsigned largest;
    asm volatile("redux.sync.max.u32 %0, %1, 0xffffffff;" : "=r"(largest) : "r"(value));
    return largest;
}

#endif

}  // namespace convsmith::ptx
