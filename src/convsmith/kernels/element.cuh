// The tensors' element types, the type their products are summed in, and the way from one to the
// other. Every conversion to a narrower type rounds to nearest even.
#pragma once

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

// A run of values moved by one shared-memory instruction of up to 16 bytes.
template <typename T, int kCount>
struct alignas(kCount * sizeof(T) < 16 ? kCount * sizeof(T) : 16) Vector {
    T values[kCount];
};

}  // namespace convsmith
