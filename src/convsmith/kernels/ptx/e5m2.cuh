// cvt.e5m2x2: two float32 numbers to numbers of 8 bits, of which five are the exponent's, rounded
// to nearest even. What is too large becomes the largest one. Compute capability 8.9 and newer.
#pragma once

#include "launch.cuh"

namespace convsmith::ptx {

#ifdef CONVSMITH_SIMULATOR

inline unsigned to_e5m2(float value) {
    const auto bits = simulator::bits_of<unsigned>(value);
    const unsigned sign = bits >> 24 & 0x80u, magnitude = bits & 0x7fffffffu;
    if (magnitude > 0x7f800000u) return sign | 0x7fu;
    if (magnitude >= 0x47700000u) return sign | 0x7bu;  // half a place beyond the largest, or more
    if (magnitude < 0x38800000u) {  // subnormal: the addition leaves it in the last bits
        const float sum = simulator::bits_of<float>(magnitude) + 0x1p7f;
        return sign | (simulator::bits_of<unsigned>(sum) - 0x43000000u);
    }
    return sign | (magnitude - 0x38000000u + 0xfffffu + (magnitude >> 21 & 1u)) >> 21;
}

// Four of them, the first one in the lowest 8 bits.
inline unsigned to_e5m2(float a, float b, float c, float d) {
    return to_e5m2(a) | to_e5m2(b) << 8 | to_e5m2(c) << 16 | to_e5m2(d) << 24;
}

#else

__device__ __forceinline__ unsigned to_e5m2(float a, float b, float c, float d) {
    unsigned all;
    asm("{.reg .b16 low, high; cvt.rn.satfinite.e5m2x2.f32 low, %2, %1; "
        "cvt.rn.satfinite.e5m2x2.f32 high, %4, %3; mov.b32 %0, {low, high};}"
        : "=r"(all)
        : "f"(a), "f"(b), "f"(c), "f"(d));
    return all;
}

#endif

}  // namespace convsmith::ptx
