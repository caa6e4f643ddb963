// mbarrier: a barrier in shared memory that counts arrivals, and bytes that copies bring. A phase
// ends when both are complete; phases alternate between parity 0, which is the first, and 1.
#pragma once

#include "launch.cuh"

namespace convsmith::ptx {

#ifdef CONVSMITH_SIMULATOR

// Eight bytes, as on a GPU; only the functions below and copies look inside.
struct alignas(8) Barrier {
    std::int32_t missing_bytes;
    std::uint16_t arrivals;                  // of a phase
    std::uint16_t missing : 15, parity : 1;  // arrivals that this phase lacks; and its parity

    void end_phase_if_complete() {
        if (missing != 0 || missing_bytes != 0) return;
        missing = arrivals;
        parity ^= 1;
    }
};

// One thread makes a barrier of so many arrivals a phase; others may use it after a barrier.
inline void mbarrier_init(Barrier* barrier, int arrivals) {
    const auto count = static_cast<std::uint16_t>(arrivals);
    *barrier = {0, count, count, 0};
}

// Makes the barriers that the calling thread has made known to asynchronous copies.
inline void fence_mbarrier_init() {}

// One arrival.
inline void mbarrier_arrive(Barrier* barrier) {
    --barrier->missing;
    barrier->end_phase_if_complete();
}

// One arrival, after which the phase lacks `bytes` more that copies have to bring.
inline void mbarrier_arrive_expect_tx(Barrier* barrier, int bytes) {
    barrier->missing_bytes += bytes;
    --barrier->missing;
    barrier->end_phase_if_complete();
}

// Returns when the phase of `parity` has ended.
inline void mbarrier_wait(Barrier* barrier, int parity, int line = __builtin_LINE()) {
    simulator::wait_until([=] { return barrier->parity != parity; }, "an mbarrier", line);
}

#else

struct alignas(8) Barrier {
    std::uint64_t state;
};

__device__ __forceinline__ void mbarrier_init(Barrier* barrier, int arrivals) {
    const auto address = static_cast<unsigned>(__cvta_generic_to_shared(barrier));
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(address), "r"(arrivals)
                 : "memory");
}

__device__ __forceinline__ void fence_mbarrier_init() {
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

__device__ __forceinline__ void mbarrier_arrive(Barrier* barrier) {
    const auto address = static_cast<unsigned>(__cvta_generic_to_shared(barrier));
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(address) : "memory");
}

__device__ __forceinline__ void mbarrier_arrive_expect_tx(Barrier* barrier, int bytes) {
    const auto address = static_cast<unsigned>(__cvta_generic_to_shared(barrier));
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(address), "r"(bytes)
                 : "memory");
}

__device__ __forceinline__ void mbarrier_wait(Barrier* barrier, int parity) {
    const auto address = static_cast<unsigned>(__cvta_generic_to_shared(barrier));
    int is_over = 0;
    while (is_over == 0) {
        asm volatile(
            "{.reg .pred p; mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2; "
            "selp.b32 %0, 1, 0, p;}"
            : "=r"(is_over)
            : "r"(address), "r"(parity)
            : "memory");
    }
}

#endif

}  // namespace convsmith::ptx
