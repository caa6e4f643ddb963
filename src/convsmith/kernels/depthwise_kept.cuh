// Depthwise weight gradient of few taps: a thread owns a tile of dy and keeps a sum for every tap.
#pragma once

#include "compensated.cuh"
#include "depthwise_thread.cuh"
#include "ptx/shuffle.cuh"

namespace convsmith::depthwise {

inline constexpr int kAtOnce = 8;  // sums of a thread that are added up together

// A thread's sums where it owns a tile of dy.
template <typename S>
struct Kept {
    using T = typename S::Value;
    using Rows = typename S::Rows;
    using Columns = typename S::Columns;
    float sums[S::kValues] = {};
    float totals[S::kValues] = {};

    // Ends a chain of additions: what the sums hold goes to the totals, without loss.
    __device__ __forceinline__ void end_chain() {
#pragma unroll
        for (int i = 0; i < S::kValues; ++i) add_compensated(totals[i], sums[i]);
    }

    // Adds the products of one part of dy. `y` is where the thread's tile of dy begins, of which
    // there are `rows` and `columns`; `x` is where the source of its first element lies, row
    // `first_row` of `height`.
    __device__ __forceinline__ void add(const T* x, int x_row_pitch, int x_plane_pitch,
                                        int first_row, int height, const T* y, int y_row_pitch,
                                        int rows, int columns) {
        if (rows >= Rows::kTile && columns >= Columns::kTile) {
            add_part<true>(x, x_row_pitch, x_plane_pitch, first_row, height, y, y_row_pitch, rows,
                           columns);
        } else {
            add_part<false>(x, x_row_pitch, x_plane_pitch, first_row, height, y, y_row_pitch, rows,
                            columns);
        }
    }

  private:
    template <bool kIsWhole>
    __device__ __forceinline__ void add_part(const T* x, int x_row_pitch, int x_plane_pitch,
                                             int first_row, int height, const T* y, int y_row_pitch,
                                             int rows, int columns) {
        constexpr int kPitch = S::kColumnPitch;
        Window<T, Axis<false, 1, 1, 0, 1, Columns::kTile>, 0, kPitch> upstream[Rows::kTile];
#pragma unroll
        for (int t = 0; t < Rows::kTile; ++t) {
            if (!kIsWhole && t >= rows) continue;
            upstream[t].load(y + t * y_row_pitch);
#pragma unroll
            for (int u = 0; u < Columns::kTile; ++u) {
                if (kIsWhole || u < columns) sums[S::kValues - 1] += upstream[t].at(u);
            }
        }
#pragma unroll
        for (int c = 0; c < S::kChannels; ++c) {
#pragma unroll
            for (int row = 0; row < Rows::kExtent; ++row) {
                const int source = Rows::kFirst + row;
                if (S::kChecksRows &&
                    static_cast<unsigned>(first_row + source) >= static_cast<unsigned>(height)) {
                    continue;
                }
                Window<T, Columns, S::kLead, kPitch> window;
                window.load(x + c * x_plane_pitch + source * x_row_pitch);
#pragma unroll
                for (int t = 0; t < Rows::kTile; ++t) {
                    const int r = Rows::tap(t, source);
                    // Outside of dy nothing is added, for zero times infinity is not zero.
                    if (r == Rows::kNone || (!kIsWhole && t >= rows)) continue;
#pragma unroll
                    for (int u = 0; u < Columns::kTile; ++u) {
                        if (!kIsWhole && u >= columns) continue;
#pragma unroll
                        for (int s = 0; s < S::kS; ++s) {
                            sums[c * S::kTaps + r * S::kS + s] +=
                                upstream[t].at(u) * window.at(Columns::source(u, s));
                        }
                    }
                }
            }
        }
    }
};

// Adds up the sums of all threads of a pair in float64, in a fixed order. A thread holds each of
// them as a rounded total and what rounding lost. A pair's threads are `step` apart, and begin
// `pair_step` after those of the pair before.
template <int kCount>
__device__ void add_threads(const float (&rounded)[kCount], const float (&lost)[kCount],
                            double* scratch, double* totals, int pairs, int pair_threads,
                            int pair_step, int step) {
    constexpr int kWarp = 32;
    const int thread = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
#pragma unroll
    for (int first = 0; first < kCount; first += kAtOnce) {
        const int count = kCount - first < kAtOnce ? kCount - first : kAtOnce;
        __syncthreads();  // nobody reads what is in the place of the scratch any more
#pragma unroll
        for (int i = 0; i < kAtOnce; ++i) {
            if (i >= count) continue;
            scratch[i * threads + thread] = double{rounded[first + i]} + double{lost[first + i]};
        }
        __syncthreads();
        for (int task = thread / kWarp; task < count * pairs; task += threads / kWarp) {
            const int i = task % count, pair = task / count;
            const double* parts = scratch + i * threads + pair * pair_step;
            double total = 0;
            for (int t = thread % kWarp; t < pair_threads; t += kWarp) total += parts[t * step];
            for (int mask = kWarp / 2; mask > 0; mask /= 2) {
                total += ptx::shuffle_xor(total, mask);
            }
            if (thread % kWarp == 0) totals[pair * kCount + first + i] = total;
        }
    }
    __syncthreads();
}

}  // namespace convsmith::depthwise
