// ld.global.nc under a predicate: a load that a branch would otherwise have to guard.
#pragma once

#include "element.cuh"
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

__device__ __forceinline__ Vector<float, 4> load_if(bool readable, const Vector<float, 4>* address,
                                                    Vector<float, 4> otherwise) {
    float* values = otherwise.values;
    asm volatile(
        "{.reg .pred p; setp.ne.s32 p, %4, 0; @p ld.global.nc.v4.f32 {%0, %1, %2, %3}, [%5];}"
        : "+f"(values[0]), "+f"(values[1]), "+f"(values[2]), "+f"(values[3])
        : "r"(static_cast<int>(readable)), "l"(address));
    return otherwise;
}

template <typename T>
__device__ __forceinline__ Vector<T, 4> load_if(bool readable, const Vector<T, 4>* address,
                                                Vector<T, 4> otherwise) {
    static_assert(sizeof(T) == sizeof(unsigned short));
    auto* words = reinterpret_cast<unsigned*>(otherwise.values);
    asm volatile("{.reg .pred p; setp.ne.s32 p, %2, 0; @p ld.global.nc.v2.b32 {%0, %1}, [%3];}"
                 : "+r"(words[0]), "+r"(words[1])
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
