// cp.async.bulk: copies of whole runs by the copy engine, which take one thread one instruction.
// Compute capability 9.0 and newer.
#pragma once

#include "ptx/mbarrier.cuh"

namespace convsmith::ptx {

#ifdef CONVSMITH_SIMULATOR

inline constexpr bool kHasBulkCopies = true;

// Copies as the engine does; of other addresses than multiples of 16 the sanitizer tells.
inline void copy_pieces(void* to, const void* from, int bytes) {
    struct alignas(16) Piece {
        unsigned char bytes[16];
    };
    for (int i = 0; i < bytes / 16; ++i) {
        static_cast<Piece*>(to)[i] = static_cast<const Piece*>(from)[i];
    }
}

// Begins to copy `bytes` from global to shared memory, which then arrive at `barrier`. Both
// addresses and the number of bytes are multiples of 16.
inline void cp_async_bulk(void* shared, const void* global, int bytes, Barrier* barrier) {
    copy_pieces(shared, global, bytes);
    barrier->missing_bytes -= bytes;
    barrier->end_phase_if_complete();
}

// Begins to copy `bytes` from shared to global memory; multiples of 16 again.
inline void cp_async_bulk_store(void* global, const void* shared, int bytes) {
    copy_pieces(global, shared, bytes);
}

// Makes a group of the copies to global memory that the calling thread has begun.
inline void cp_async_bulk_commit_group() {}

// Returns when the calling thread's groups have read what they copy.
inline void cp_async_bulk_wait_group_read() {}

// Returns when the calling thread's groups are in global memory.
inline void cp_async_bulk_wait_group() {}

// Lets copies that follow read and write where the calling thread has used shared memory.
inline void fence_proxy_async() {}

#else

#if __CUDA_ARCH__ >= 900
inline constexpr bool kHasBulkCopies = true;
#else
inline constexpr bool kHasBulkCopies = false;  // and what waits for copies finds none
#endif

__device__
__forceinline__ void cp_async_bulk(void* shared, const void* global, int bytes, Barrier* barrier) {
    asm volatile(
        "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::
            "r"(static_cast<unsigned>(__cvta_generic_to_shared(shared))),
        "l"(global), "r"(bytes), "r"(static_cast<unsigned>(__cvta_generic_to_shared(barrier)))
        : "memory");
}

__device__ __forceinline__ void cp_async_bulk_store(void* global, const void* shared, int bytes) {
    asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;" ::"l"(global),
                 "r"(static_cast<unsigned>(__cvta_generic_to_shared(shared))), "r"(bytes)
                 : "memory");
}

__device__ __forceinline__ void cp_async_bulk_commit_group() {
#if __CUDA_ARCH__ >= 900
    asm volatile("cp.async.bulk.commit_group;" ::: "memory");
#endif
}

__device__ __forceinline__ void cp_async_bulk_wait_group_read() {
#if __CUDA_ARCH__ >= 900
    asm volatile("cp.async.bulk.wait_group.read 0;" ::: "memory");
#endif
}

__device__ __forceinline__ void cp_async_bulk_wait_group() {
#if __CUDA_ARCH__ >= 900
    asm volatile("cp.async.bulk.wait_group 0;" ::: "memory");
#endif
}

__device__ __forceinline__ void fence_proxy_async() {
#if __CUDA_ARCH__ >= 900
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
}

#endif

}  // namespace convsmith::ptx
