// The sums of tensor cores, to the bit (MMA-Sim, arXiv 2511.10909).
#include <algorithm>
#include <cmath>
#include <cstdint>

#include "simulator.h"

namespace convsmith::simulator {
namespace {

// Exponents beyond those of any number, and such that a product of zero and infinity has the latter
// kind.
constexpr int kOfZero = -1024, kOfInfinity = 4096;
constexpr int kBelowNumbers = -512, kAboveNumbers = 512;

constexpr int kFractionBits = 10;  // of every significand: half's, of which bfloat16 fills seven
constexpr int kKeptBits = 25;      // fractional bits that are left of what is added

float widen(__half value) { return __half2float(value); }
float widen(__nv_bfloat16 value) { return __bfloat162float(value); }

template <typename T>
struct Format {
    static constexpr int kFraction = std::is_same_v<T, __half> ? 10 : 7;
    static constexpr int kFields = 1 << (15 - kFraction);  // values of the exponent's field
    static constexpr int kBias = kFields / 2 - 1;
};

float power_of_two(int exponent) {
    return bits_of<float>(static_cast<std::uint32_t>(exponent + 127) << 23);
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
    for (int k = 0; k < kTerms; ++k) {
        terms.values[k] = cores[k / 8].values[first + k % 8 * stride];
    }
    for (int k = 0; k < kTerms; ++k) {
        using F = Format<T>;
        const auto bits = bits_of<std::int16_t>(terms.values[k]);
        const int magnitude = bits & 0x7fff;
        const int field = magnitude >> F::kFraction;
        const int fraction = magnitude & ((1 << F::kFraction) - 1);
        const int implied = field == 0 ? 0 : 1 << F::kFraction;  // a subnormal has none
        const int significand = (fraction | implied) << (kFractionBits - F::kFraction);
        const int exponent = field == 0 ? 1 - F::kBias : field - F::kBias;
        terms.significands[k] = static_cast<std::int16_t>(bits < 0 ? -significand : significand);
        terms.exponents[k] = static_cast<std::int16_t>(magnitude == 0            ? kOfZero
                                                       : field == F::kFields - 1 ? kOfInfinity
                                                                                 : exponent);
    }
    return terms;
}

template <typename T>
float truncated_sum(float sum, const Terms<T>& a, const Terms<T>& b) {
    auto largest = static_cast<std::int16_t>(exponent_of(sum));
    for (int k = 0; k < kTerms; ++k) {
        const auto exponent = static_cast<std::int16_t>(a.exponents[k] + b.exponents[k]);
        largest = std::max(largest, exponent);
    }
    if (largest < kBelowNumbers || largest > kAboveNumbers) {
        return sum_of_zeros_or_infinities(sum, a, b);
    }
    // In units of the last bit that is kept: each product is less than 2**27 of them, so all
    // together are an int.
    int total = 0;
    for (int k = 0; k < kTerms; ++k) {
        const int product = a.significands[k] * b.significands[k];  // float has room for it
        const int exponent = a.exponents[k] + b.exponents[k];
        const int below = std::min(largest - exponent, 64);  // nothing is left of it long before
        const float unit = power_of_two(kKeptBits - 2 * kFractionBits - below);
        total += static_cast<int>(static_cast<float>(product) * unit);
    }
    const double units = std::trunc(std::ldexp(double{sum}, kKeptBits - largest)) + total;
    return towards_zero(std::ldexp(units, largest - kKeptBits));
}

template Terms<__half> terms_of(const CoreMatrix<__half> (&)[2], int, int);
template Terms<__nv_bfloat16> terms_of(const CoreMatrix<__nv_bfloat16> (&)[2], int, int);
template float truncated_sum(float, const Terms<__half>&, const Terms<__half>&);
template float truncated_sum(float, const Terms<__nv_bfloat16>&, const Terms<__nv_bfloat16>&);

}  // namespace convsmith::simulator
