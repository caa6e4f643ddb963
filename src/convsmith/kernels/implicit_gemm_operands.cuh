// Values on their way to operands of the tensor cores: scaled by a power of two, and in parts where
// 16 bits hold too little of them.
//
// Two 16-bit parts hold 22 bits of a value, often 23. What they leave of its 24 is the residue: no
// more than the last bit. With a product of the other operand's first part it is so small that
// three bits of both do, in 8 bits each. A third vector holds both, so that a product of twice as
// many terms adds up what either residue meets:
//   filters  residues of kVector channels, and their first parts
//   pixels   first parts of kVector channels, and their residues
#pragma once

#include "implicit_gemm_problem.cuh"
#include "ptx/e5m2.cuh"

namespace convsmith::implicit_gemm {

inline constexpr unsigned kInfinityBits = 0x7f800000u;

// Magnitude as an integer that orders like it.
__device__ __forceinline__ unsigned magnitude_bits(float value) {
#ifdef CONVSMITH_SIMULATOR
    return simulator::bits_of<unsigned>(value) & 0x7fffffffu;
#else
    return __float_as_uint(value) & 0x7fffffffu;
#endif
}

__device__ __forceinline__ float float_of_bits(unsigned bits) {
#ifdef CONVSMITH_SIMULATOR
    return simulator::bits_of<float>(bits);
#else
    return __uint_as_float(bits);
#endif
}

// The power of two that brings a largest magnitude, given as float bits, to [2**14, 2**15); 1 for
// what is zero, infinite or not a number.
__device__ __forceinline__ float scale_for(unsigned largest) {
    const int exponent = static_cast<int>(largest >> 23);
    if (largest == 0 || exponent == 255) return 1.0f;
    const int wanted = min(max(127 + 127 + 14 - exponent, 1), 254);
    return float_of_bits(static_cast<unsigned>(wanted) << 23);
}

enum class Side { kFilters, kPixels };

// Residues of pixels and first parts of filters are brought from the ends of the range of 8 bits to
// its middle, by factors that undo each other.
template <Side kSide>
struct ResidueScales {
    static constexpr float kOfFirst = kSide == Side::kFilters ? 0x1p-11f : 1.0f;
    static constexpr float kOfResidue = kSide == Side::kFilters ? 1.0f : 0x1p11f;
};

// A vector's values in 8 bits each, multiplied by `factor`.
__device__ __forceinline__ Vector<unsigned, kVector / 4> in_8_bits(const float (&values)[kVector],
                                                                   float factor) {
    Vector<unsigned, kVector / 4> bytes;
#pragma unroll
    for (int c = 0; c < kVector; c += 4) {
        bytes.values[c / 4] = ptx::to_e5m2(factor * values[c], factor * values[c + 1],
                                           factor * values[c + 2], factor * values[c + 3]);
    }
    return bytes;
}

// A vector's values in 16 bits each.
template <typename Operand>
__device__ __forceinline__ void narrow(const float (&values)[kVector],
                                       Vector<Operand, kVector>& rounded) {
#pragma unroll
    for (int c = 0; c < kVector; c += 2) {
        narrow_pair(values[c], values[c + 1], rounded.values + c);
    }
}

// Writes the vectors of scaled values, `step` vectors apart: one, two parts, or those and residues.
// What is not finite is all in the second part, which meets the other operand's first part, for
// others may have the other sign; unless this is not careful, and infinity becomes NaN. So it does
// where second parts meet, too: see implicit_gemm_repair.cuh.
template <int kVectors, bool kIsCareful, Side kSide, typename Operand>
__device__ __forceinline__ void write_parts(float (&values)[kVector], Vector<Operand, kVector>* to,
                                            int step) {
    Vector<Operand, kVector> rounded;
    auto* last = reinterpret_cast<Vector<unsigned, kVector / 4>*>(to + 2 * step);
    if constexpr (kVectors > 1) {
        float first[kVector];
#pragma unroll
        for (int c = 0; c < kVector; ++c) {
            const bool is_split = !kIsCareful || magnitude_bits(values[c]) < kInfinityBits;
            first[c] = is_split ? values[c] : 0.0f;
        }
        narrow(first, rounded);
#pragma unroll
        for (int c = 0; c < kVector; ++c) {
            first[c] = Element<Operand>::widen(rounded.values[c]);
            values[c] -= first[c];
        }
        to[0] = rounded;
        if constexpr (kVectors > 2) {
            last[kSide == Side::kFilters] = in_8_bits(first, ResidueScales<kSide>::kOfFirst);
        }
    }
    narrow(values, rounded);
    to[kVectors > 1 ? step : 0] = rounded;
    if constexpr (kVectors > 2) {
#pragma unroll
        for (int c = 0; c < kVector; ++c) {
            const bool is_finite = magnitude_bits(values[c]) < kInfinityBits;
            values[c] -= Element<Operand>::widen(rounded.values[c]);
            if (!is_finite) values[c] = 0;
        }
        last[kSide == Side::kPixels] = in_8_bits(values, ResidueScales<kSide>::kOfResidue);
    }
}

// Writes the vectors of values of pixels, multiplied by `scale`.
template <typename S, bool kIsCareful>
__device__ __forceinline__ void write_operands(const typename S::Value (&values)[kVector],
                                               float scale,
                                               Vector<typename S::Operand, kVector>* to, int step) {
    if constexpr (S::kScales) {
        float scaled[kVector];
#pragma unroll
        for (int c = 0; c < kVector; ++c) scaled[c] = scale * values[c];
        write_parts<S::kParts, kIsCareful, Side::kPixels>(scaled, to, step);
    } else {
        Vector<typename S::Operand, kVector> operands;
#pragma unroll
        for (int c = 0; c < kVector; ++c) operands.values[c] = values[c];
        to[0] = operands;
    }
}

}  // namespace convsmith::implicit_gemm
