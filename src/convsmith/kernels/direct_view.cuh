// How the direct family sees a convolution or one of its gradients: as the contraction
//
//   out[m, column] = sum over terms of row(m, term) * patch(term, column).
//
// `view_of` says for each direction what m, the columns and the terms are, and where each operand's
// elements lie.
#pragma once

#include "launch.cuh"

namespace convsmith::direct {

enum class Direction { kForward, kInputGradient, kWeightGradient };

// What the host packs: sizes and strides (in elements) of the forward convolution, for one call.
// C and K count the channels of one group.
struct Problem {
    std::int64_t groups, N, C, H, W, K, R, S, P, Q;
    std::int64_t stride[2], padding[2], dilation[2];
    std::int64_t x_strides[4], w_strides[4], y_strides[4];
    std::int64_t splits;         // parts the terms are cut into, each summed by its own block
    std::int64_t promote_tiles;  // stages between two promotions
};

// One spatial axis of a contraction. For term t and column j along this axis,
//   source coordinate = first + column_step * j + term_step * t,
//   row operand's coordinate = row_first + row_step * t,
//   output coordinate = out_first + out_step * j.
struct Axis {
    int extent;  // of the source
    int columns, terms;
    int first, column_step, term_step;
    int row_first, row_step;
    int out_first, out_step;
};

// Strides of a tensor as a contraction sees it: along m, along the non-spatial part of the term or
// of the column, and along the two spatial axes.
struct Strides {
    std::int64_t m, term, column, spatial[2];
};

// A contraction of one group (and, for the input gradient, of one phase of the stride).
struct View {
    std::int64_t rows;                                // extent of m
    std::int64_t outer_terms;                         // extent of the non-spatial part of a term
    std::int64_t outer_columns;                       // extent of the non-spatial part of a column
    Axis axes[2];                                     // vertical, horizontal
    Strides row, source, out;                         // strides of the three operands
    std::int64_t row_group, source_group, out_group;  // from one group to the next

    __device__ std::int64_t columns() const {
        return outer_columns * axes[0].columns * axes[1].columns;
    }
    __device__ std::int64_t terms() const { return outer_terms * axes[0].terms * axes[1].terms; }
};

// Division that stays 32 bits wide where it can: the 64-bit one is a long subroutine.
__device__ __forceinline__ std::int64_t divide(std::int64_t dividend, std::int64_t divisor) {
    if (((dividend | divisor) >> 32) == 0) {
        return static_cast<std::uint32_t>(dividend) / static_cast<std::uint32_t>(divisor);
    }
    return dividend / divisor;
}

// An index split into its place on three nested axes, the last one fastest.
struct Place {
    std::int64_t outer;
    int vertical, horizontal;
};

__device__ __forceinline__ Place place_of(std::int64_t index, int vertical, int horizontal) {
    const std::int64_t line = divide(index, horizontal);
    const std::int64_t outer = divide(line, vertical);
    return {outer, static_cast<int>(line - outer * vertical),
            static_cast<int>(index - line * horizontal)};
}

// Forward: columns are output positions, terms are filter taps.
__device__ inline Axis forward_axis(int source, int taps, int outputs, int stride, int padding,
                                    int dilation) {
    return {source, outputs, taps, -padding, stride, dilation, 0, 1, 0, 1};
}

// Weight gradient: columns are filter taps, terms are output positions.
__device__ inline Axis weight_gradient_axis(int source, int taps, int outputs, int stride,
                                            int padding, int dilation) {
    return {source, taps, outputs, -padding, dilation, stride, 0, 1, 0, 1};
}

// Input gradient: input position h meets tap r where h + padding - r * dilation is a multiple of
// the stride. Positions of one phase h % stride share their taps, an arithmetic progression, so
// that no product with a zero between strided outputs is ever formed.
__device__ inline Axis input_gradient_axis(int size, int taps, int outputs, int stride, int padding,
                                           int dilation, int phase) {
    int divisor = stride, remainder = dilation;  // greatest common divisor by Euclid
    while (remainder != 0) {
        const int next = divisor % remainder;
        divisor = remainder;
        remainder = next;
    }
    const int tap_step = stride / divisor;
    int first_tap = 0;
    while (first_tap < tap_step && (phase + padding - first_tap * dilation) % stride != 0) {
        ++first_tap;
    }
    const bool meets = first_tap < tap_step && first_tap < taps;
    return {outputs,
            phase < size ? (size - phase + stride - 1) / stride : 0,
            meets ? (taps - first_tap + tap_step - 1) / tap_step : 0,
            meets ? (phase + padding - first_tap * dilation) / stride : 0,
            1,
            -(dilation / divisor),
            first_tap,
            tap_step,
            phase,
            stride};
}

template <Direction kDirection>
__device__ Axis axis_of(int source, int taps, int outputs, int stride, int padding, int dilation,
                        int phase) {
    if constexpr (kDirection == Direction::kForward) {
        return forward_axis(source, taps, outputs, stride, padding, dilation);
    } else if constexpr (kDirection == Direction::kInputGradient) {
        return input_gradient_axis(source, taps, outputs, stride, padding, dilation, phase);
    } else {
        return weight_gradient_axis(source, taps, outputs, stride, padding, dilation);
    }
}

template <Direction kDirection>
__device__ View view_of(const Problem& problem, int phase) {
    View view;
    const auto* x = problem.x_strides;
    const auto* w = problem.w_strides;
    const auto* y = problem.y_strides;
    const auto axis = [&problem](int i, std::int64_t source, std::int64_t taps,
                                 std::int64_t outputs, std::int64_t phase_on_axis) {
        return axis_of<kDirection>(
            static_cast<int>(source), static_cast<int>(taps), static_cast<int>(outputs),
            static_cast<int>(problem.stride[i]), static_cast<int>(problem.padding[i]),
            static_cast<int>(problem.dilation[i]), static_cast<int>(phase_on_axis));
    };
    const int horizontal_phases = static_cast<int>(problem.stride[1]);
    view.axes[0] = axis(0, problem.H, problem.R, problem.P, phase / horizontal_phases);
    view.axes[1] = axis(1, problem.W, problem.S, problem.Q, phase % horizontal_phases);
    if constexpr (kDirection == Direction::kForward) {
        view.rows = problem.K;
        view.outer_terms = problem.C;
        view.outer_columns = problem.N;
        view.row = {w[0], w[1], 0, {w[2], w[3]}};
        view.source = {0, x[1], x[0], {x[2], x[3]}};
        view.out = {y[1], 0, y[0], {y[2], y[3]}};
    } else if constexpr (kDirection == Direction::kInputGradient) {
        view.rows = problem.C;
        view.outer_terms = problem.K;
        view.outer_columns = problem.N;
        view.row = {w[1], w[0], 0, {w[2], w[3]}};
        view.source = {0, y[1], y[0], {y[2], y[3]}};
        view.out = {x[1], 0, x[0], {x[2], x[3]}};
    } else {
        view.rows = problem.K;
        view.outer_terms = problem.N;
        view.outer_columns = problem.C;
        view.row = {y[1], y[0], 0, {y[2], y[3]}};
        view.source = {0, x[0], x[1], {x[2], x[3]}};
        view.out = {w[0], 0, w[1], {w[2], w[3]}};
    }
    const std::int64_t x_group = problem.C * x[1];
    const std::int64_t w_group = problem.K * w[0];
    const std::int64_t y_group = problem.K * y[1];
    if constexpr (kDirection == Direction::kForward) {
        view.row_group = w_group, view.source_group = x_group, view.out_group = y_group;
    } else if constexpr (kDirection == Direction::kInputGradient) {
        view.row_group = w_group, view.source_group = y_group, view.out_group = x_group;
    } else {
        view.row_group = y_group, view.source_group = x_group, view.out_group = w_group;
    }
    return view;
}

}  // namespace convsmith::direct
