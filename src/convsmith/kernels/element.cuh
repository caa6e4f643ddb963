// The tensors' element types, the type their products are summed in, and the way from one to the
// other. Every conversion to a narrower type rounds to nearest even.
#pragma once

#include <type_traits>

#include "launch.cuh"

namespace convsmith {

template <typename T>
struct Element {
    using Accumulator = T;
    static __device__ __forceinline__ T widen(T value) { return value; }
    static __device__ __forceinline__ T narrow(T value) { return value; }
};

template <>
struct Element<__half> {
    using Accumulator = float;
    static __device__ __forceinline__ float widen(__half value) { return __half2float(value); }
    static __device__ __forceinline__ __half narrow(float value) { return __float2half_rn(value); }
};

template <>
struct Element<__nv_bfloat16> {
    using Accumulator = float;
    static __device__ __forceinline__ float widen(__nv_bfloat16 value) {
        return __bfloat162float(value);
    }
    static __device__ __forceinline__ __nv_bfloat16 narrow(float value) {
        return __float2bfloat16_rn(value);
    }
};

// Narrows two values to 16 bits at once, which takes a GPU one instruction.
template <typename T>
__device__ __forceinline__ void narrow_pair(float first, float second, T* to) {
#ifdef CONVSMITH_SIMULATOR
    to[0] = Element<T>::narrow(first);
    to[1] = Element<T>::narrow(second);
#else
    if constexpr (std::is_same_v<T, __half>) {
        const __half2 both = __floats2half2_rn(first, second);
        to[0] = __low2half(both);
        to[1] = __high2half(both);
    } else {
        const __nv_bfloat162 both = __floats2bfloat162_rn(first, second);
        to[0] = both.x;
        to[1] = both.y;
    }
#endif
}

// A run of values moved by one shared-memory instruction of up to 16 bytes.
template <typename T, int kCount>
struct alignas(kCount * sizeof(T) < 16 ? kCount * sizeof(T) : 16) Vector {
    T values[kCount];
};

}  // namespace convsmith
