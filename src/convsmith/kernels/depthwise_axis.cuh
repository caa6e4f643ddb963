// How one spatial axis of the source and of the output meet, forward and in the input gradient:
//
//   forward          source = stride * out + dilation * tap - padding
//   input gradient   stride * source = out - dilation * tap + padding
//
// both of which are  kScale * source = kStep * out + kTapStep * tap - kOffset. All of it is known
// when the kernel is compiled, so an unrolled loop holds just the products that are there.
#pragma once

#include "launch.cuh"

namespace convsmith::depthwise {

constexpr int floor_divide(int dividend, int divisor) {
    return dividend / divisor - (dividend % divisor != 0 && (dividend < 0) != (divisor < 0));
}

constexpr int ceil_divide(int dividend, int divisor) { return -floor_divide(-dividend, divisor); }

__device__ __forceinline__ constexpr bool is_within(int place, int extent) {
    return static_cast<unsigned>(place) < static_cast<unsigned>(extent);
}

// `kOutputs` neighbouring outputs, the first one at a multiple of the stride: a thread's tile.
template <bool kIsGradient, int kFilterTaps, int kStride, int kPadding, int kDilation, int kOutputs>
struct Axis {
    static constexpr int kTaps = kFilterTaps;
    static constexpr int kTile = kOutputs;
    static constexpr int kScale = kIsGradient ? kStride : 1;
    static constexpr int kStep = kIsGradient ? 1 : kStride;
    static constexpr int kTapStep = kIsGradient ? -kDilation : kDilation;
    static constexpr int kOffset = kIsGradient ? -kPadding : kPadding;
    static_assert(kOutputs % kScale == 0, "every tile has the same phases of the stride");

    // The sources that a tile meets, counted from the one that its first output scales to.
    static constexpr int kSpan = kTapStep * (kTaps - 1);
    static constexpr int kFirst = ceil_divide((kSpan < 0 ? kSpan : 0) - kOffset, kScale);
    static constexpr int kLast =
        floor_divide(kStep * (kOutputs - 1) + (kSpan < 0 ? 0 : kSpan) - kOffset, kScale);
    static constexpr int kExtent = kLast - kFirst + 1 > 0 ? kLast - kFirst + 1 : 1;
    static constexpr int kAdvance = kStep * kOutputs / kScale;  // from one tile to the next

    // Sources before the first and after the last one that outputs which exist would meet.
    static constexpr int kZerosBefore = kFirst < 0 ? -kFirst : 0;
    static constexpr int kBeyond =
        ceil_divide(kIsGradient ? kDilation * (kTaps - 1) - kPadding : kPadding, kScale);
    static constexpr int kZerosAfter = kBeyond > 0 ? kBeyond : 0;
    // Between rows that follow one another: those after one are those before the next.
    static constexpr int kZerosBetween = kZerosBefore > kZerosAfter ? kZerosBefore : kZerosAfter;

    static constexpr int kNone = -1;

    // The source at which an output of a tile meets a tap, where `meets` says that there is one.
    static __device__ __forceinline__ constexpr bool meets(int out, int tap) {
        return (kStep * out + kTapStep * tap - kOffset) % kScale == 0;
    }
    static __device__ __forceinline__ constexpr int source(int out, int tap) {
        return (kStep * out + kTapStep * tap - kOffset) / kScale;
    }

    // The tap at which `source` and `out` of a tile meet, or kNone.
    static __device__ __forceinline__ constexpr int tap(int out, int source) {
        const int distance = kScale * source - kStep * out + kOffset;
        const int tap = distance / kTapStep;
        return distance % kTapStep == 0 && tap >= 0 && tap < kTaps ? tap : kNone;
    }
};

}  // namespace convsmith::depthwise
