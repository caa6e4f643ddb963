// max.NaN: the larger of two numbers, or NaN where one of them is. Compute capability 8.0 and
// newer.
#pragma once

#include "launch.cuh"

namespace convsmith::ptx {

#ifdef CONVSMITH_SIMULATOR

inline float max_or_nan(float a, float b) { return a > b || a != a ? a : b; }

#else

__device__ __forceinline__ float max_or_nan(float a, float b) {
    float larger;
    asm("max.NaN.f32 %0, %1, %2;" : "=f"(larger) : "f"(a), "f"(b));
    return larger;
}

#endif

}  // namespace convsmith::ptx
