// bar and setmaxnreg: barriers of some of a block's warps, and registers that warpgroups hand to
// one another.
#pragma once

#include "launch.cuh"

namespace convsmith::ptx {

#ifdef CONVSMITH_SIMULATOR

// Returns when `threads` threads have come to barrier `id` (1 to 15), this one among them.
inline void bar_sync(int id, int threads, int line = __builtin_LINE()) {
    simulator::named_barrier(id, threads, true, line);
}

// Orders what the lanes of a warp do in memory.
inline void warp_sync(int line = __builtin_LINE()) { simulator::exchange(0, 0, line); }

// Counts as one that has come, and goes on.
inline void bar_arrive(int id, int threads, int line = __builtin_LINE()) {
    simulator::named_barrier(id, threads, false, line);
}

// The whole warpgroup has kRegisters a thread from here on: fewer than before, or more. What all of
// a block's have may not exceed what the launch gave them.
template <int kRegisters>
void setmaxnreg_dec() {}
template <int kRegisters>
void setmaxnreg_inc() {}

#else

__device__ __forceinline__ void bar_sync(int id, int threads) {
    asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

__device__ __forceinline__ void warp_sync() { __syncwarp(); }

__device__ __forceinline__ void bar_arrive(int id, int threads) {
    asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

template <int kRegisters>
__device__ __forceinline__ void setmaxnreg_dec() {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

template <int kRegisters>
__device__ __forceinline__ void setmaxnreg_inc() {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

#endif

}  // namespace convsmith::ptx
