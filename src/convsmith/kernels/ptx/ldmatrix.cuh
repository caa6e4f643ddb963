// ldmatrix: a warp's fragments of a 16-bit matrix in shared memory, in the registers of its lanes.
// Compute capability 7.5 and newer.
#pragma once

#include "launch.cuh"

namespace convsmith::ptx {

// A thread's elements of 16 rows by 16 terms of an MN-major operand A, as wgmma takes them from
// registers: two neighbours of terms each, of
//   rows 0 to 7, terms 0 to 7;  rows 8 to 15, terms 0 to 7;  and terms 8 to 15, likewise
using Fragments = unsigned[4];

// Fragments of the matrix whose element (row, k) lies at row / 8 * `of_rows` + k * 16 + row % 8 * 2
// bytes from `start`, a multiple of 16; the warp's lanes have the same ones.
#ifdef CONVSMITH_SIMULATOR

inline void ldmatrix_x4_trans(Fragments& fragments, const void* start, int of_rows) {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    for (int i = 0; i < 4; ++i) {
        const auto* row = static_cast<const unsigned char*>(start) + i % 2 * of_rows +
                          (i / 2 * 8 + lane % 4 * 2) * 16;
        std::uint16_t pair[2];
        for (int k = 0; k < 2; ++k) {
            pair[k] = reinterpret_cast<const std::uint16_t*>(row + k * 16)[lane / 4];
        }
        fragments[i] = pair[0] | static_cast<unsigned>(pair[1]) << 16;
    }
}

#else

__device__
__forceinline__ void ldmatrix_x4_trans(Fragments& fragments, const void* start, int of_rows) {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    const auto* row = static_cast<const unsigned char*>(start) + lane / 8 % 2 * of_rows +
                      (lane / 16 * 8 + lane % 8) * 16;
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(fragments[0]), "=r"(fragments[1]), "=r"(fragments[2]), "=r"(fragments[3])
                 : "r"(static_cast<unsigned>(__cvta_generic_to_shared(row)))
                 : "memory");
}

#endif

}  // namespace convsmith::ptx
