// red.global.add: adds to memory, and nobody waits for it. What one thread adds to an address is
// added in its order. Subnormal sums become zero.
#pragma once

#include "launch.cuh"

namespace convsmith::ptx {

#ifdef CONVSMITH_SIMULATOR

inline void add_to_memory(float* address, float value) { *address += value; }

#else

__device__ __forceinline__ void add_to_memory(float* address, float value) {
    asm volatile("red.global.add.f32 [%0], %1;" ::"l"(address), "f"(value) : "memory");
}

#endif

}  // namespace convsmith::ptx
