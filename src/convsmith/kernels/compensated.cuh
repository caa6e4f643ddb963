// Long sums that err like short ones: what rounding loses of each addition is kept.
#pragma once

#include "launch.cuh"

namespace convsmith {

// More than rounding loses of any finite sum: the largest number's last place.
template <typename Accumulator>
constexpr Accumulator kLargestLoss =
    static_cast<Accumulator>(sizeof(Accumulator) == 8 ? 0x1p972 : 0x1p105);

// Adds `sum` to `total` and leaves in `sum` what rounding lost of it, with which the next sum
// begins (Dekker's Fast2Sum). fmax only replaces the NaN that an infinite sum loses, by something
// too small to matter to it.
template <typename Accumulator>
__device__ __forceinline__ void add_compensated(Accumulator& total, Accumulator& sum) {
    const Accumulator before = total;
    total = before + sum;
    const Accumulator lost = sum - (total - before);
    sum = fmax(lost, -kLargestLoss<Accumulator>);
}

}  // namespace convsmith
