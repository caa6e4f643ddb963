// Depthwise weight gradient of many taps: a thread owns a tile of taps, and all of a warp go over
// the same dy.
#pragma once

#include "compensated.cuh"
#include "depthwise_thread.cuh"

namespace convsmith::depthwise {

// A thread's sums where it owns a tile of taps; those of a run of dy columns are added to long ones
// with compensation.
template <typename S>
struct Spread {
    using T = typename S::Value;
    using Rows = typename S::Rows;
    using Columns = typename S::Columns;
    float sums[Rows::kTile][Columns::kTile] = {};
    float totals[Rows::kTile][Columns::kTile] = {};
    float bias = 0;

    // Adds the products of one part of dy, of whose columns this thread takes one run; `chain` rows
    // of it are one chain of additions.
    __device__ __forceinline__ void add(const T* x, int x_row_pitch, const T* y, int y_row_pitch,
                                        int rows, int columns, int my_run, int chain) {
        const int first = my_run * S::kRun;
        if (first >= columns) return;
        x += first * S::kStrideW;
        y += first;
        // Threads of a warp take the same branch, whichever runs they have.
        const bool is_whole = columns % S::kRun == 0;
        for (int row = 0; row < rows; row += chain) {
            const T* source = x + row * S::kStrideH * x_row_pitch;
            const T* upstream = y + row * y_row_pitch;
            if (is_whole) {
                add_run<true>(source, x_row_pitch, upstream, y_row_pitch, min(chain, rows - row),
                              columns - first);
            } else {
                add_run<false>(source, x_row_pitch, upstream, y_row_pitch, min(chain, rows - row),
                               columns - first);
            }
#pragma unroll
            for (int t = 0; t < Rows::kTile; ++t) {
#pragma unroll
                for (int s = 0; s < Columns::kTile; ++s) add_compensated(totals[t][s], sums[t][s]);
            }
        }
    }

  private:
    // Adds the products of a run, of which there are `columns`, at all its rows.
    template <bool kIsWhole>
    __device__ __forceinline__ void add_run(const T* x, int x_row_pitch, const T* y,
                                            int y_row_pitch, int rows, int columns) {
        const int sources = S::kDilationH * (Rows::kTile - 1) + S::kStrideH * (rows - 1) + 1;
        for (int source = 0; source < sources; ++source) {
            Window<T, Columns, S::kLead> window;
            window.load(x + source * x_row_pitch);
#pragma unroll
            for (int t = 0; t < Rows::kTile; ++t) {
                const int distance = source - S::kDilationH * t;
                const int p = distance / S::kStrideH;
                if (distance < 0 || distance % S::kStrideH != 0 || p >= rows) continue;
                Window<T, Axis<false, 1, 1, 0, 1, S::kRun>, 0> upstream;
                upstream.load(y + p * y_row_pitch);
#pragma unroll
                for (int q = 0; q < S::kRun; ++q) {
                    // Outside of dy nothing is added, for zero times infinity is not zero.
                    if (!kIsWhole && q >= columns) break;
#pragma unroll
                    for (int s = 0; s < Columns::kTile; ++s) {
                        sums[t][s] += upstream.at(q) * window.at(Columns::source(s, q));
                    }
                }
            }
        }
    }
};

// Adds the totals that the threads of a bundle hold of the same taps, in a fixed order.
template <typename S>
__device__ void add_spread(Spread<S>& mine, double* scratch, double* totals, int bundles,
                           int runs) {
    using Rows = typename S::Rows;
    using Columns = typename S::Columns;
    constexpr int kTiles = S::kTapRows * S::kTapColumns;
    const int thread = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
#pragma unroll
    for (int t = 0; t < Rows::kTile; ++t) {
        __syncthreads();
#pragma unroll
        for (int s = 0; s < Columns::kTile; ++s) {
            scratch[s * threads + thread] = double{mine.totals[t][s]} + double{mine.sums[t][s]};
        }
        __syncthreads();
        for (int task = thread; task < bundles * kTiles * Columns::kTile; task += threads) {
            const int s = task % Columns::kTile, tile = task / Columns::kTile % kTiles;
            const int bundle = task / Columns::kTile / kTiles;
            const int row = tile / S::kTapColumns * Rows::kTile + t;
            const int column = tile % S::kTapColumns * Columns::kTile + s;
            if (row >= S::kR || column >= S::kS) continue;
            double total = 0;
            for (int run = 0; run < runs; ++run) {
                total += scratch[s * threads + (bundle * runs + run) * kTiles + tile];
            }
            totals[bundle * S::kValues + row * S::kS + column] = total;
        }
    }
    __syncthreads();
    if constexpr (S::kHasBias) {  // of which every thread has summed some elements of dy
        scratch[thread] = mine.bias;
        __syncthreads();
        if (thread < bundles) {
            double total = 0;
            for (int i = 0; i < runs * kTiles; ++i) total += scratch[thread * runs * kTiles + i];
            totals[thread * S::kValues + S::kValues - 1] = total;
        }
        __syncthreads();
    }
}

}  // namespace convsmith::depthwise
