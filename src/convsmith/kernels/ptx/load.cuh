// ld.global.nc under a predicate: a load that a branch would otherwise have to guard.
#pragma once

#include "launch.cuh"

namespace convsmith::ptx {

#ifdef CONVSMITH_SIMULATOR

// *address where `readable`, else `otherwise`; the address is not touched unless `readable`.
template <typename T>
T load_if(bool readable, const T* address, T otherwise) {
    return readable ? *address : otherwise;
}

#else

__device__ __forceinline__ float load_if(bool readable, const float* address, float otherwise) {
    asm volatile("{.reg .pred p; setp.ne.s32 p, %1, 0; @p ld.global.nc.f32 %0, [%2];}"
                 : "+f"(otherwise)
                 : "r"(static_cast<int>(readable)), "l"(address));
    return otherwise;
}

__device__ __forceinline__ double load_if(bool readable, const double* address, double otherwise) {
    asm volatile("{.reg .pred p; setp.ne.s32 p, %1, 0; @p ld.global.nc.f64 %0, [%2];}"
                 : "+d"(otherwise)
                 : "r"(static_cast<int>(readable)), "l"(address));
    return otherwise;
}

// The two 16-bit types; both are plain 16-bit patterns to the instruction.
template <typename T>
__device__ __forceinline__ T load_if(bool readable, const T* address, T otherwise) {
    static_assert(sizeof(T) == sizeof(unsigned short));
    auto& bits = reinterpret_cast<unsigned short&>(otherwise);
    asm volatile("{.reg .pred p; setp.ne.s32 p, %1, 0; @p ld.global.nc.u16 %0, [%2];}"
                 : "+h"(bits)
                 : "r"(static_cast<int>(readable)), "l"(address));
    return otherwise;
}

#endif

}  // namespace convsmith::ptx
