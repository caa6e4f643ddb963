// cp.async: copies from global to shared memory that no register waits for.
#pragma once

#include "launch.cuh"

namespace convsmith::ptx {

#ifdef CONVSMITH_SIMULATOR

// Begins to copy kBytes (4, 8 or 16); zeros take their place unless `readable`, and the global
// address is then not touched. Both addresses are multiples of kBytes.
template <int kBytes>
void cp_async(void* shared, const void* global, bool readable) {
    struct alignas(kBytes) Bytes {
        unsigned char bytes[kBytes];
    };
    *static_cast<Bytes*>(shared) = readable ? *static_cast<const Bytes*>(global) : Bytes{};
}

// Returns when the calling thread's copies have arrived; others' need a barrier besides.
inline void cp_async_wait_all() {}

// Makes a group of the copies that the calling thread has begun.
inline void cp_async_commit_group() {}

// Returns when all groups of the calling thread's but the last kGroups have arrived.
template <int kGroups>
void cp_async_wait_group() {}

#else

template <int kBytes>
__device__ __forceinline__ void cp_async(void* shared, const void* global, bool readable) {
    static_assert(kBytes == 4 || kBytes == 8 || kBytes == 16);
    const auto to = static_cast<unsigned>(__cvta_generic_to_shared(shared));
    const int bytes = readable ? kBytes : 0;
    if constexpr (kBytes == 16) {  // .cg leaves the L1 cache to others, and takes 16 bytes only
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(global),
                     "r"(bytes)
                     : "memory");
    } else {
        asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(to), "l"(global),
                     "n"(kBytes), "r"(bytes)
                     : "memory");
    }
}

__device__ __forceinline__ void cp_async_wait_all() {
    asm volatile("cp.async.wait_all;" ::: "memory");
}

__device__ __forceinline__ void cp_async_commit_group() {
    asm volatile("cp.async.commit_group;" ::: "memory");
}

template <int kGroups>
__device__ __forceinline__ void cp_async_wait_group() {
    asm volatile("cp.async.wait_group %0;" ::"n"(kGroups) : "memory");
}

#endif

}  // namespace convsmith::ptx
