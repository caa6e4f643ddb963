// Values of dy and of x on their way to 16-bit operands.
#pragma once

#include "implicit_gemm_weight_problem.cuh"
#include "ptx/max.cuh"

namespace convsmith::implicit_gemm {

template <typename S>
__device__ __forceinline__ float widened(typename S::Value value) {
    return static_cast<float>(Element<typename S::Value>::widen(value));
}

// The power of two that values of x or of dy are multiplied by.
template <typename S>
struct Scale {
    static constexpr int kUsualExponent = 10;  // suits the most usual magnitudes
    static constexpr int kMostRise = 20;
    static constexpr int kBestExponent = 14;  // of what is scaled
    static constexpr int kSuiting = 6;        // binades below that, in which a scale is kept

    int exponent = S::kScales ? kUsualExponent : 0;
    int least = 127;  // that there was a need for

    // Whether it suits values, of which the largest magnitude is finite; another one is taken if
    // not.
    __device__ __forceinline__ bool suits(unsigned largest_bits) {
        const int largest = static_cast<int>(largest_bits >> 23) - 127;
        const int wanted = min(min(max(kBestExponent - largest, -126), 127), least + kMostRise);
        const bool fits =
            largest_bits == 0 || (wanted >= exponent && wanted <= exponent + kSuiting);
        if (!fits) exponent = wanted;
        if (largest_bits != 0) least = min(least, exponent);
        return fits;
    }
};

// Whether all bits of some exponent are ones: then adding to the last of them carries.
template <typename Operand>
__device__ __forceinline__ bool has_special(const Vector<Operand, kVector>& operands) {
    constexpr bool kIsHalf = std::is_same_v<Operand, __half>;
    constexpr unsigned kExponents = kIsHalf ? 0x7c007c00u : 0x7f807f80u;
    constexpr unsigned kLast = kIsHalf ? 0x04000400u : 0x00800080u;
    const auto& words = reinterpret_cast<const Vector<unsigned, kVector / 2>&>(operands);
    unsigned carries = 0;
#pragma unroll
    for (int i = 0; i < kVector / 2; ++i) carries |= (words.values[i] & kExponents) + kLast;
    return (carries & 0x80008000u) != 0;
}

// The larger of `largest` and a vector's largest magnitude, or NaN; of 16-bit values, infinity
// where they are not all finite.
template <typename S>
__device__ __forceinline__ float larger_of(float largest,
                                           const typename S::Value (&values)[kVector]) {
    if constexpr (S::kScales) {
        float pairs[kVector / 2];
#pragma unroll
        for (int c = 0; c < kVector; c += 2) {
            pairs[c / 2] = ptx::max_or_nan(fabsf(values[c]), fabsf(values[c + 1]));
        }
        return ptx::max_or_nan(ptx::max_or_nan(largest, ptx::max_or_nan(pairs[0], pairs[1])),
                               ptx::max_or_nan(pairs[2], pairs[3]));
    } else {
        Vector<typename S::Operand, kVector> operands;
#pragma unroll
        for (int c = 0; c < kVector; ++c) operands.values[c] = values[c];
        return has_special(operands) ? float_of_bits(kInfinityBits) : largest;
    }
}

}  // namespace convsmith::implicit_gemm
