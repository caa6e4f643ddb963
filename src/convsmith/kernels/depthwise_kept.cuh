// Depthwise weight gradient of few taps: a thread owns a tile of dy and keeps a sum for every tap.
#pragma once

#include "compensated.cuh"
#include "depthwise_thread.cuh"
#include "ptx/shuffle.cuh"

namespace convsmith::depthwise {

// A thread's sums where it owns a tile of dy.
template <typename S>
struct Kept {
    using T = typename S::Value;
    using Rows = typename S::Rows;
    using Columns = typename S::Columns;
    float sums[S::kValues] = {};
    float totals[S::kHasTotals ? S::kValues : 1] = {};

    // Ends a chain of additions: what the sums hold goes to the totals, without loss.
    __device__ __forceinline__ void end_chain() {
        static_assert(S::kHasTotals);
#pragma unroll
        for (int i = 0; i < S::kValues; ++i) add_compensated(totals[i], sums[i]);
    }

    // What all chains have come to; of the last one, what rounding loses of its sum is in the sums.
    __device__ __forceinline__ double total(int i) const {
        if constexpr (S::kHasTotals) return double{totals[i]} + double{sums[i]};
        return sums[i];
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
            for (int u = 0; u < (S::kHasBias ? Columns::kTile : 0); ++u) {
                if (kIsWhole || u < columns) sums[S::kValues - 1] += upstream[t].at(u);
            }
        }
#pragma unroll
        for (int c = 0; c < S::kChannels; ++c) {
#pragma unroll
            for (int row = 0; row < Rows::kExtent; ++row) {
                const int source = Rows::kFirst + row;
                if (S::kChecksRows && !is_within(first_row + source, height)) continue;
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

// Adds up what all threads of a pair have summed, in float64 and in a fixed order: first each of a
// few neighbouring threads its share, then those pairwise. `place` is a thread's among all that
// have sums, pair by pair; of others it is negative.
template <typename S>
__device__ void add_threads(const Kept<S>& mine, double* scratch, double* totals, int pairs,
                            int pair_threads, int place) {
    const int thread = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
    constexpr int kLoads = 4;       // of which a thread waits for all at once
    const int pitch = threads + 1;  // from one value's sums to the next one's, in other banks
    int log2 = 5;                   // of the threads that add up one value of one pair
    while (log2 > 0 && (S::kAtOnce * pairs) << log2 > threads) --log2;
    const int adders = 1 << log2, adder = thread & (adders - 1);
#pragma unroll
    for (int first = 0; first < S::kValues; first += S::kAtOnce) {
        const int count = S::kValues - first < S::kAtOnce ? S::kValues - first : S::kAtOnce;
        __syncthreads();  // nobody reads what is in the place of the scratch any more
#pragma unroll
        for (int i = 0; i < S::kAtOnce; ++i) {
            if (i < count && place >= 0) scratch[i * pitch + place] = mine.total(first + i);
        }
        __syncthreads();
        const int tasks = count * pairs;
        for (int begin = 0; begin < tasks; begin += threads >> log2) {
            const int task = begin + (thread >> log2), i = task % count, pair = task / count;
            const double* parts = scratch + i * pitch + pair * pair_threads;
            double total = 0;
            const int share = task < tasks ? pair_threads : 0;
            for (int t = adder; t < share; t += kLoads * adders) {
                double some[kLoads];
#pragma unroll
                for (int n = 0; n < kLoads; ++n) {
                    some[n] = t + n * adders < share ? parts[t + n * adders] : 0.0;
                }
#pragma unroll
                for (int n = 0; n < kLoads; ++n) total += some[n];
            }
            for (int mask = adders / 2; mask > 0; mask /= 2) {
                total += ptx::shuffle_xor(total, mask);
            }
            if (task < tasks && adder == 0) totals[pair * S::kValues + first + i] = total;
        }
    }
    __syncthreads();
}

}  // namespace convsmith::depthwise
