// What one thread of the depthwise family does with a tile in shared memory: it slides a window
// over source rows, and adds its products with a filter to a few outputs in registers.
#pragma once

#include "depthwise_axis.cuh"
#include "element.cuh"

namespace convsmith::depthwise {

// The longest run of elements, up to 16 bytes, that threads `advance` elements apart can load at
// once.
template <typename T>
constexpr int run_of(int advance) {
    int run = 16 / sizeof(T);
    while (advance % run != 0) run /= 2;
    return run;
}

// A thread's window of one source row: the columns that its outputs meet. Neighbouring columns lie
// kPitch elements apart. Where they are contiguous, what lies before them up to the last aligned
// address is loaded too; kLead says how many columns the tile holds for that.
template <typename T, typename Columns, int kLead, int kPitch = 1,
          int kRun = (kPitch > 1) ? 1 : run_of<T>(Columns::kAdvance)>
struct Window {
    static constexpr int kSkipped = kLead % kRun;
    static constexpr int kRuns = (kSkipped + Columns::kExtent + kRun - 1) / kRun;
    float values[kRuns * kRun];

    // `row` is the tile's row at the first column of the thread's outputs.
    __device__ __forceinline__ void load(const T* row) {
#pragma unroll
        for (int i = 0; i < kRuns; ++i) {
            const T* from = row + (kLead - kSkipped + i * kRun) * kPitch;
            const auto run = *reinterpret_cast<const Vector<T, kRun>*>(from);
#pragma unroll
            for (int v = 0; v < kRun; ++v) values[i * kRun + v] = Element<T>::widen(run.values[v]);
        }
    }

    __device__ __forceinline__ float at(int column) const {
        return values[column - Columns::kFirst + kSkipped];
    }
};

// A thread's outputs: of kFilters filters, a tile of rows and columns.
template <typename S>
struct Sums {
    using T = typename S::Value;
    using Rows = typename S::Rows;
    using Columns = typename S::Columns;
    using Taps = Vector<T, 4>;
    using SourceWindow = Window<T, Columns, S::kLead, S::kColumnPitch>;
    static constexpr int kFilters = S::kFilters;
    static constexpr int kRowVectors = S::kFilterRow / 4;
    float values[kFilters][Rows::kTile][Columns::kTile];

    // Adds the products of one source channel. `tile` is where the source lies that the thread's
    // first output scales to, row `first_row` of `height`; rows outside are skipped where
    // kChecksRows.
    __device__ __forceinline__ void add_channel(const T* tile, int row_pitch, const T* filter,
                                                int first_row, int height) {
        const auto* taps = reinterpret_cast<const Taps*>(filter);
        float kept[S::kKeepsFilter ? Rows::kTaps : 1][S::kFilterRow];
        if constexpr (S::kKeepsFilter) {
#pragma unroll
            for (int r = 0; r < Rows::kTaps; ++r) {
#pragma unroll
                for (int i = 0; i < kRowVectors; ++i) {
                    const Taps four = taps[r * kRowVectors + i];
#pragma unroll
                    for (int v = 0; v < 4; ++v) {
                        kept[r][4 * i + v] = Element<T>::widen(four.values[v]);
                    }
                }
            }
        }
        constexpr int kUnroll = S::kUnrolled ? Rows::kExtent : 1;
#pragma unroll kUnroll
        for (int row = 0; row < Rows::kExtent; ++row) {
            const int source = Rows::kTapStep > 0 ? Rows::kFirst + row : Rows::kLast - row;
            const bool exists = S::kPlaneRows > 0 ? is_within(source, S::kPlaneRows)
                                                  : is_within(first_row + source, height);
            if (S::kChecksRows && !exists) continue;
            SourceWindow window;
            window.load(tile + source * row_pitch);
#pragma unroll
            for (int t = 0; t < Rows::kTile; ++t) {
                const int tap = Rows::tap(t, source);
                if (tap == Rows::kNone) continue;
                if constexpr (S::kKeepsFilter) {
                    add_row(t, window, [&](int i, int v) { return kept[tap][4 * i + v]; });
                } else {
                    Taps four;
                    add_row(t, window, [&](int i, int v) {
                        if (v == 0) four = taps[tap * kRowVectors + i];
                        return Element<T>::widen(four.values[v]);
                    });
                }
            }
        }
    }

  private:
    // Adds a filter row's products with a window to the outputs of row `out`, tap after tap, which
    // is the order in which PyTorch adds. `value_at(i, v)` gives value 4 * i + v of the filter row.
    template <typename ValueAt>
    __device__ __forceinline__ void add_row(int out, const SourceWindow& window, ValueAt value_at) {
        float sums[kFilters][Columns::kTile];
#pragma unroll
        for (int f = 0; f < kFilters; ++f) {
#pragma unroll
            for (int u = 0; u < Columns::kTile; ++u) {
                sums[f][u] = S::kSumsByRow ? 0.0f : values[f][out][u];
            }
        }
#pragma unroll
        for (int i = 0; i < kRowVectors; ++i) {
#pragma unroll
            for (int v = 0; v < 4; ++v) {
                const float value = value_at(i, v);
                const int tap = (4 * i + v) / kFilters, f = (4 * i + v) % kFilters;
                if (tap >= Columns::kTaps) continue;
#pragma unroll
                for (int u = 0; u < Columns::kTile; ++u) {
                    if (!Columns::meets(u, tap)) continue;
                    sums[f][u] += value * window.at(Columns::source(u, tap));
                }
            }
        }
#pragma unroll
        for (int f = 0; f < kFilters; ++f) {
#pragma unroll
            for (int u = 0; u < Columns::kTile; ++u) {
                values[f][out][u] = S::kSumsByRow ? values[f][out][u] + sums[f][u] : sums[f][u];
            }
        }
    }
};

}  // namespace convsmith::depthwise
