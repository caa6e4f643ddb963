// The input gradient of a stride:
//
//   dx[n,c,h,w] = sum_{k,r,s} w[k,c,r,s] * dy[n, k, (h + padding_h - r * dilation_h) / stride_h,
//                                                   (w + padding_w - s * dilation_w) / stride_w]
//
// over the taps for which both are whole numbers. Rows h = stride_h * i + a of one a are a phase,
// and columns likewise. A phase is a convolution of dy, of stride 1, with some of the taps. So a
// pair of phases is to the family a filter of its own, of every channel of x:
//
//   filter = (row phase * channels + channel) * stride_w + column phase
//
// Column phases, whose elements are neighbours in dx, come last, so that a warp has them all and
// stores whole runs. Filters of a block meet all taps of their column phases. Their row phases
// share blocks too, where channels are few; or have blocks of their own, which meet the taps of one
// row phase, and are filled up with filters that do not exist.
//
// Where a phase lacks a tap that others of its block meet, the tap's weight is zero, and of an
// infinite dy the sum is not a number. Such a sum is computed once more, one product after another.
#pragma once

#include "implicit_gemm_problem.cuh"

namespace convsmith::implicit_gemm {

// What a filter of the family computes.
struct PhaseFilter {
    int channel, phase[2];  // of x: rows, and columns
    bool exists;
};

__device__ __forceinline__ PhaseFilter phase_filter(const Problem& problem, int filter) {
    const OutPhases& out = problem.out_phases;
    const auto filters = static_cast<int>(out.filters), across = static_cast<int>(out.stride[1]);
    const int row_phase = filter / filters, rest = filter % filters;
    const int channel = rest / across;
    return {
        channel,
        {row_phase, rest % across},
        row_phase < static_cast<int>(out.stride[0]) && channel < static_cast<int>(out.channels)};
}

// Rows of taps that a block meets, and the first one's place in a patch.
struct TapRows {
    int first, count;
};

__device__ __forceinline__ TapRows tap_rows(const Problem& problem, int row_phase) {
    const OutPhases& out = problem.out_phases;
    if (out.apart == 1) return {0, static_cast<int>(problem.kernel_size[0])};
    const auto stride = static_cast<int>(out.stride[0]);
    int reached = row_phase + static_cast<int>(out.padding[0]), first = 0, count = 0;
#pragma unroll 1
    for (int r = 0; r < static_cast<int>(out.kernel_size[0]); ++r) {
        if (reached % stride == 0) {
            first = reached / stride;  // the last filter row's place is the first one
            ++count;
        }
        reached -= static_cast<int>(out.dilation[0]);
    }
    return {first + static_cast<int>(problem.padding[0]), count};
}

// The filter row (or column) that a phase has at tap row (or column) `tap`, of which the first one
// is `first` into a patch; or -1.
__device__ __forceinline__ int filter_index(const Problem& problem, int axis, int phase, int first,
                                            int tap) {
    const OutPhases& out = problem.out_phases;
    const int place = first + tap * static_cast<int>(problem.dilation[axis]) -
                      static_cast<int>(problem.padding[axis]);
    const int reached =
        phase + static_cast<int>(out.padding[axis]) - place * static_cast<int>(out.stride[axis]);
    const auto dilation = static_cast<int>(out.dilation[axis]);
    const int index = reached / dilation;
    const bool exists =
        reached >= 0 && reached % dilation == 0 && index < static_cast<int>(out.kernel_size[axis]);
    return exists ? index : -1;
}

// The taps that a tile meets, in the table of their shifts.
struct Taps {
    int first, count;
};

template <typename S>
__device__ __forceinline__ Taps taps_of(const Problem& problem,
                                        const typename Shared<S>::Head& head, const Tile& tile) {
    const int padded_taps = S::padded_taps(problem);
    if constexpr (!S::kInterleaves) {
        return {0, padded_taps};
    } else {
        const OutPhases& out = problem.out_phases;
        const int kind = out.apart == 1 ? 0 : tile.first_filter / static_cast<int>(out.filters);
        return {kind * padded_taps, head.tap_counts[kind]};
    }
}

// One element of dx.
template <typename S>
__device__ __forceinline__ float input_gradient(const Problem& problem, const typename S::Value* dy,
                                                const typename S::Value* weight, int image,
                                                int group, int channel, int h, int w) {
    const OutPhases& out = problem.out_phases;
    const std::int64_t* steps = problem.weight_strides;
    dy += image * problem.in_strides[0] + group * problem.channels * problem.in_strides[1];
    weight += group * steps[0] + channel * steps[1];
    double sum = 0;
#pragma unroll 1
    for (int r = 0; r < static_cast<int>(out.kernel_size[0]); ++r) {
        const std::int64_t down = h + out.padding[0] - r * out.dilation[0];
        const std::int64_t p = down / out.stride[0];
        if (down < 0 || down % out.stride[0] != 0 || p >= problem.in_size[0]) continue;
#pragma unroll 1
        for (int s = 0; s < static_cast<int>(out.kernel_size[1]); ++s) {
            const std::int64_t across = w + out.padding[1] - s * out.dilation[1];
            const std::int64_t q = across / out.stride[1];
            if (across < 0 || across % out.stride[1] != 0 || q >= problem.in_size[1]) continue;
            const auto* value = dy + p * problem.in_strides[2] + q * problem.in_strides[3];
            const auto* factor = weight + r * steps[3] + s * steps[4];
#pragma unroll 1
            for (int k = 0; k < static_cast<int>(problem.channels); ++k) {
                using OfValue = Element<typename S::Value>;
                sum += static_cast<double>(OfValue::widen(*value)) *
                       static_cast<double>(OfValue::widen(*factor));
                value += problem.in_strides[1];
                factor += steps[2];
            }
        }
    }
    return static_cast<float>(sum);
}

}  // namespace convsmith::implicit_gemm
