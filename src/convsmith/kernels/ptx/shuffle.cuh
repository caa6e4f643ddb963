// shfl.sync: values that the lanes of a warp hand to one another.
#pragma once

#include "launch.cuh"

namespace convsmith::ptx {

// A value that all 32 lanes have, in a register that they share where the compiler finds a use.
#ifdef CONVSMITH_SIMULATOR

inline int shared_by_lanes(int value) { return value; }

#else

__device__ __forceinline__ int shared_by_lanes(int value) {
    return __shfl_sync(0xffffffffu, value, 0);
}

#endif

// The value of the lane whose number differs by `lane_mask`; all 32 lanes must call it together.
#ifdef CONVSMITH_SIMULATOR

inline double shuffle_xor(double value, int lane_mask, int line = __builtin_LINE()) {
    const auto bits = simulator::bits_of<std::uint64_t>(value);
    return simulator::bits_of<double>(simulator::exchange(bits, lane_mask, line));
}

#else

__device__ __forceinline__ double shuffle_xor(double value, int lane_mask) {
    int low = __double2loint(value), high = __double2hiint(value);
    asm volatile("shfl.sync.bfly.b32 %0, %0, %1, 31, -1;" : "+r"(low) : "r"(lane_mask));
    asm volatile("shfl.sync.bfly.b32 %0, %0, %1, 31, -1;" : "+r"(high) : "r"(lane_mask));
    return __hiloint2double(high, low);
}

#endif

}  // namespace convsmith::ptx
