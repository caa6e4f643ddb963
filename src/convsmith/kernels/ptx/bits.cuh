// mov between register classes: a float's bits.
#pragma once

#include "launch.cuh"

namespace convsmith::ptx {

#ifdef CONVSMITH_SIMULATOR

inline unsigned bits_of_float(float value) { return simulator::bits_of<unsigned>(value); }
inline float float_of_bits(unsigned bits) { return simulator::bits_of<float>(bits); }

#else

__device__ __forceinline__ unsigned bits_of_float(float value) { return __float_as_uint(value); }
__device__ __forceinline__ float float_of_bits(unsigned bits) { return __uint_as_float(bits); }

#endif

}  // namespace convsmith::ptx
