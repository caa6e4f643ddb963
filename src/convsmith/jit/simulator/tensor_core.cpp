// The sums of tensor cores, to the bit (MMA-Sim, arXiv 2511.10909). Kernels for them spend most of
// their time here, so the loops are such that the compiler makes vectors of them: no branches, and
// exponents of 16 bits.
#include <algorithm>
#include <cmath>
#include <cstdint>

#include "simulator.h"

namespace convsmith::simulator {
namespace {

// Exponents beyond those of any number and of any product of two. That of zero and infinity counts
// as infinite.
constexpr int kOfZero = -1024, kOfInfinity = 4096;
constexpr int kBelowNumbers = -512, kAboveNumbers = 512;

constexpr int kFractionBits = 10;  // of every significand: half's, of which bfloat16 fills seven

float widen(__half value) { return __half2float(value); }
float widen(__nv_bfloat16 value) { return __bfloat162float(value); }

template <typename T>
struct Format {
    static constexpr int kFraction = std::is_same_v<T, __half> ? 10 : 7;
    static constexpr int kFields = 1 << (15 - kFraction);  // values of the exponent's field
    static constexpr int kBias = kFields / 2 - 1;
};

// 2**exponent, by what vectors can do.
template <typename Float>
Float power_of_two(int exponent) {
    if constexpr (std::is_same_v<Float, double>) {
        return bits_of<double>(static_cast<std::uint64_t>(exponent + 1023) << 52);
    } else {
        return bits_of<float>(static_cast<std::uint32_t>(exponent + 127) << 23);
    }
}

// Of float's subnormals as well, since they are no subnormals of double; -1023 of zero, 1024 of
// infinities and NaN.
int exponent_of(double value) {
    return static_cast<int>(bits_of<std::uint64_t>(value) >> 52 & 0x7ff) - 1023;
}

float towards_zero(double value) {
    const auto nearest = static_cast<float>(value);
    if (std::isinf(nearest) || std::fabs(nearest) <= std::fabs(value)) return nearest;
    return bits_of<float>(bits_of<std::uint32_t>(nearest) - 1);
}

template <typename T>
float sum_of_zeros_or_infinities(float sum, const Terms<T>& a, const Terms<T>& b) {
    double exact = sum;
    for (int k = 0; k < kTerms; ++k) exact += double{widen(a.values[k])} * widen(b.values[k]);
    return static_cast<float>(exact);
}

}  // namespace

template <typename T>
Terms<T> terms_of(const CoreMatrix<T> (&cores)[kTerms / 8], int first, int stride) {
    Terms<T> terms;
    for (int k = 0; k < kTerms; k += 8) {
        for (int i = 0; i < 8; ++i) terms.values[k + i] = cores[k / 8].values[first + i * stride];
    }
    for (int k = 0; k < kTerms; ++k) {
        using F = Format<T>;
        const auto bits = bits_of<std::int16_t>(terms.values[k]);
        const int magnitude = bits & 0x7fff;
        const int field = magnitude >> F::kFraction;
        const int fraction = magnitude & ((1 << F::kFraction) - 1);
        const int implied = (field != 0) << F::kFraction;  // a subnormal has none
        const int significand = (fraction + implied) << (kFractionBits - F::kFraction);
        terms.significands[k] = static_cast<std::int16_t>(bits < 0 ? -significand : significand);
        int exponent = std::max(field, 1) - F::kBias;
        exponent = magnitude == 0 ? kOfZero : exponent;
        exponent = field == F::kFields - 1 ? kOfInfinity : exponent;
        terms.exponents[k] = static_cast<std::int16_t>(exponent);
    }
    return terms;
}

template <typename T>
float truncated_sum(float sum, const Terms<T>& a, const Terms<T>& b, int kept_bits) {
    auto largest = static_cast<std::int16_t>(exponent_of(sum));
    std::int16_t exponents[kTerms];
    for (int k = 0; k < kTerms; ++k) {
        exponents[k] = static_cast<std::int16_t>(a.exponents[k] + b.exponents[k]);
        largest = std::max(largest, exponents[k]);
    }
    if (largest < kBelowNumbers || largest > kAboveNumbers) {
        return sum_of_zeros_or_infinities(sum, a, b);
    }
    std::int16_t below[kTerms];  // by how many bits a product is shifted
    for (int k = 0; k < kTerms; ++k) {
        below[k] = std::min<std::int16_t>(static_cast<std::int16_t>(largest - exponents[k]), 64);
    }
    int total = 0;  // in units of the last bit that is kept: each product is less than 2**27
    for (int k = 0; k < kTerms; ++k) {
        const int product = a.significands[k] * b.significands[k];  // 22 bits: exact in float
        const float unit = power_of_two<float>(kept_bits - 2 * kFractionBits - below[k]);
        total += static_cast<int>(static_cast<float>(product) * unit);
    }
    const auto aligned = static_cast<std::int64_t>(sum * power_of_two<double>(kept_bits - largest));
    const auto units = static_cast<double>(aligned + total);
    return towards_zero(units * power_of_two<double>(largest - kept_bits));
}

template Terms<__half> terms_of(const CoreMatrix<__half> (&)[2], int, int);
template Terms<__nv_bfloat16> terms_of(const CoreMatrix<__nv_bfloat16> (&)[2], int, int);
template float truncated_sum(float, const Terms<__half>&, const Terms<__half>&, int);
template float truncated_sum(float, const Terms<__nv_bfloat16>&, const Terms<__nv_bfloat16>&, int);

}  // namespace convsmith::simulator
