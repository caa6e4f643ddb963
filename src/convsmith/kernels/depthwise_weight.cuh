// Depthwise weight gradient: a block sums over its share of the images and rows, for some filters.
//
// Filters of few taps: each thread owns a tile of dy and keeps a sum for every tap (`Kept`). Others:
// each thread owns a tile of taps, and all of a warp go over the same dy (`Spread`). In both, what a
// block sums is added up in float64 and rounded once.
#pragma once

#include "compensated.cuh"
#include "depthwise_axis.cuh"
#include "depthwise_convolve.cuh"
#include "depthwise_tile.cuh"
#include "ptx/shuffle.cuh"

namespace convsmith::depthwise {

// What is compiled in of a weight gradient. Tiles are of dy (kept sums) or of taps (spread sums).
template <typename T, int R, int S, int kStrideH_, int kStrideW_, int kPaddingH, int kPaddingW,
          int kDilationH_, int kDilationW_, int kTileRows, int kTileColumns, int kThreadChannels,
          bool kSpreadsTaps>
struct WeightGradient {
    using Value = T;
    static constexpr bool kIsWeightGradient = true;
    static constexpr bool kIsGradient = false;
    static constexpr bool kSpreads = kSpreadsTaps;
    static constexpr int kR = R, kS = S;
    static constexpr int kStrideH = kStrideH_, kStrideW = kStrideW_;
    static constexpr int kDilationH = kDilationH_, kDilationW = kDilationW_;
    static constexpr int kChannels = kThreadChannels;
    static constexpr int kTaps = R * S;
    static constexpr int kValues = kChannels * kTaps + 1;  // the last is the bias gradient

    // Kept sums: a thread's tile of dy in place of outputs.
    // Spread sums: its tile of taps in place of outputs, and dy in place of taps.
    static constexpr int kRun = 8;  // columns of dy at a time
    using Rows = Axis<false, kSpreads ? 1 : R, kSpreads ? kDilationH : kStrideH, kPaddingH,
                      kSpreads ? kStrideH : kDilationH, kTileRows>;
    using Columns = Axis<false, kSpreads ? kRun : S, kSpreads ? kDilationW : kStrideW, kPaddingW,
                         kSpreads ? kStrideW : kDilationW, kTileColumns>;
    static constexpr int kTapRows = (R + kTileRows - 1) / kTileRows;  // tiles of taps
    static constexpr int kTapColumns = (S + kTileColumns - 1) / kTileColumns;

    static constexpr int kVector = 16 / sizeof(T);
    static constexpr int kLead = ((-kPaddingW % kVector) + kVector) % kVector;
};

// What the host packs for one call. A bundle is kChannels input channels and `filters` filters of one
// group; each of its pairs of a filter has its own threads.
struct WeightProblem {
    std::int64_t images, groups;
    std::int64_t channels, filters;  // of a group
    std::int64_t x_size[2], y_size[2];
    std::int64_t x_strides[4], y_strides[4], w_strides[4];
    std::int64_t bundles;         // bundles of a block
    std::int64_t bundle_filters;  // filters of a bundle
    std::int64_t part_size[2];    // rows and columns of dy that are in shared memory at once
    std::int64_t pair_threads[2];  // kept: threads down and across dy; spread: runs at once, tiles
    std::int64_t splits;          // parts that images and rows are cut into
    std::int64_t x_rows, x_row_pitch, x_plane_pitch;  // of the tile of x in shared memory
    std::int64_t y_row_pitch, y_plane_pitch;          // and of dy
    std::int64_t threads;                             // of a block
};

constexpr int kAtOnce = 8;           // sums of a thread that are added up together
constexpr int kItemsOfOneChain = 32;  // parts of dy between two additions in float64

// How the work is cut, in numbers of parts.
struct WeightCut {
    std::int64_t bundles, bundle_blocks, items;
    int filter_blocks, channel_blocks, bands[2];

    template <typename S>
    static __host__ __device__ WeightCut of(const WeightProblem& problem) {
        const auto parts = [](std::int64_t whole, std::int64_t part) {
            return (whole + part - 1) / part;
        };
        WeightCut cut;
        cut.filter_blocks = static_cast<int>(parts(problem.filters, problem.bundle_filters));
        cut.channel_blocks = static_cast<int>(parts(problem.channels, S::kChannels));
        cut.bundles = problem.groups * cut.filter_blocks * cut.channel_blocks;
        cut.bundle_blocks = parts(cut.bundles, problem.bundles);
        cut.bands[0] = static_cast<int>(parts(problem.y_size[0], problem.part_size[0]));
        cut.bands[1] = static_cast<int>(parts(problem.y_size[1], problem.part_size[1]));
        cut.items = problem.images * cut.bands[0] * cut.bands[1];
        return cut;
    }
};

// The first channel and filter of a bundle, in its group.
struct WeightBundle {
    int group, first_channel, first_filter;

    template <typename S>
    static __device__ WeightBundle of(const WeightProblem& problem, const WeightCut& cut,
                                      std::int64_t index) {
        const auto bundle = static_cast<int>(index);  // fewer than filters times channels
        const int block = bundle / cut.channel_blocks;
        return {block / cut.filter_blocks, bundle % cut.channel_blocks * S::kChannels,
                block % cut.filter_blocks * static_cast<int>(problem.bundle_filters)};
    }
};

// Places in shared memory, in bytes: totals, x, dy; and, while sums are added up, the sums of all
// threads in the place of x and dy.
template <typename S>
struct WeightShared {
    std::size_t x, y, all;

    __host__ __device__ explicit WeightShared(const WeightProblem& problem) {
        using T = typename S::Value;
        const std::int64_t pairs = problem.bundles * problem.bundle_filters;
        x = (pairs * S::kValues * sizeof(double) + 15) / 16 * 16;
        y = x + problem.bundles * S::kChannels * problem.x_plane_pitch * sizeof(T);
        all = y + pairs * problem.y_plane_pitch * sizeof(T);
        const std::size_t sums = x + kAtOnce * problem.threads * sizeof(float);
        if (all < sums) all = sums;
    }
};

// Adds the sums of all threads of a pair to its totals in float64, in a fixed order, and clears them.
template <int kCount>
__device__ void add_to_totals(float (&sums)[kCount], float* scratch, double* totals, int pairs,
                              int pair_threads) {
    const int thread = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
#pragma unroll
    for (int first = 0; first < kCount; first += kAtOnce) {
        constexpr int kWarp = 32;
        const int count = kCount - first < kAtOnce ? kCount - first : kAtOnce;
        __syncthreads();  // nobody reads what is in the place of the scratch any more
#pragma unroll
        for (int i = 0; i < kAtOnce; ++i) {
            if (i >= count) continue;
            scratch[i * threads + thread] = sums[first + i];
            sums[first + i] = 0;
        }
        __syncthreads();
        for (int task = thread / kWarp; task < count * pairs; task += threads / kWarp) {
            const int i = task % count, pair = task / count;
            const float* parts = scratch + i * threads + pair * pair_threads;
            double total = 0;
            for (int t = thread % kWarp; t < pair_threads; t += kWarp) total += parts[t];
            for (int mask = kWarp / 2; mask > 0; mask /= 2) {
                total += ptx::shuffle_xor(total, mask);
            }
            if (thread % kWarp == 0) totals[pair * kCount + first + i] += total;
        }
    }
    __syncthreads();
}

// A thread's sums where it owns a tile of dy.
template <typename S>
struct Kept {
    using T = typename S::Value;
    using Rows = typename S::Rows;
    using Columns = typename S::Columns;
    float sums[S::kValues] = {};

    // Adds the products of one part of dy. `x` and `y` are the thread's corners of the tiles; `rows`
    // and `columns` say how much of its tile of dy there is.
    __device__ __forceinline__ void add(const T* x, int x_row_pitch, int x_plane_pitch, const T* y,
                                        int y_row_pitch, int rows, int columns) {
        Window<T, Axis<false, 1, 1, 0, 1, Columns::kTile>, 0> upstream[Rows::kTile];
#pragma unroll
        for (int t = 0; t < Rows::kTile; ++t) {
            upstream[t].load(y + t * y_row_pitch);
#pragma unroll
            for (int u = 0; u < Columns::kTile; ++u) {
                sums[S::kValues - 1] += upstream[t].at(u);  // zero outside of dy
            }
        }
#pragma unroll
        for (int c = 0; c < S::kChannels; ++c) {
#pragma unroll
            for (int row = 0; row < Rows::kExtent; ++row) {
                Window<T, Columns, S::kLead> window;
                window.load(x + c * x_plane_pitch + row * x_row_pitch);
#pragma unroll
                for (int t = 0; t < Rows::kTile; ++t) {
                    const int r = Rows::tap(t, Rows::kFirst + row);
                    // Outside of dy nothing is added, for zero times infinity is not zero.
                    if (r == Rows::kNone || t >= rows) continue;
#pragma unroll
                    for (int u = 0; u < Columns::kTile; ++u) {
                        if (u >= columns) continue;
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

    // Adds the products of kColumns neighbouring columns of dy, at all its rows.
    template <typename XWindow, int kColumns>
    __device__ __forceinline__ void add_columns(const T* x, int x_row_pitch, const T* y,
                                                int y_row_pitch, int rows) {
        const int sources = S::kDilationH * (Rows::kTile - 1) + S::kStrideH * (rows - 1) + 1;
        for (int source = 0; source < sources; ++source) {
            XWindow window;
            window.load(x + source * x_row_pitch);
#pragma unroll
            for (int t = 0; t < Rows::kTile; ++t) {
                const int distance = source - S::kDilationH * t;
                const int p = distance / S::kStrideH;
                if (distance < 0 || distance % S::kStrideH != 0 || p >= rows) continue;
                Window<T, Axis<false, 1, 1, 0, 1, kColumns>, 0> upstream;
                upstream.load(y + p * y_row_pitch);
#pragma unroll
                for (int q = 0; q < kColumns; ++q) {
#pragma unroll
                    for (int s = 0; s < Columns::kTile; ++s) {
                        sums[t][s] += upstream.at(q) * window.at(Columns::source(s, q));
                    }
                }
            }
        }
    }

    // Adds the products of one part of dy, of whose runs of columns this thread takes every `runs`th.
    __device__ __forceinline__ void add(const T* x, int x_row_pitch, const T* y, int y_row_pitch,
                                        int rows, int columns, int first_run, int runs) {
        using One = Axis<false, 1, S::kDilationW, Columns::kOffset, S::kStrideW, Columns::kTile>;
        for (int q = first_run * S::kRun; q < columns; q += runs * S::kRun) {
            if (q + S::kRun <= columns) {
                add_columns<Window<T, Columns, S::kLead>, S::kRun>(x + q * S::kStrideW, x_row_pitch,
                                                                   y + q, y_row_pitch, rows);
            } else {
                for (int one = q; one < columns; ++one) {
                    add_columns<Window<T, One, S::kLead, 1>, 1>(x + one * S::kStrideW, x_row_pitch,
                                                                y + one, y_row_pitch, rows);
                }
            }
#pragma unroll
            for (int t = 0; t < Rows::kTile; ++t) {
#pragma unroll
                for (int s = 0; s < Columns::kTile; ++s) add_compensated(totals[t][s], sums[t][s]);
            }
        }
    }
};

// Adds the totals that the threads of a bundle hold of the same taps, in a fixed order.
template <typename S>
__device__ void add_spread(Spread<S>& mine, float* scratch, double* totals, int bundles, int runs) {
    using Rows = typename S::Rows;
    using Columns = typename S::Columns;
    constexpr int kTiles = S::kTapRows * S::kTapColumns;
    const int thread = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
#pragma unroll
    for (int t = 0; t < Rows::kTile; ++t) {
        __syncthreads();
#pragma unroll
        for (int s = 0; s < Columns::kTile; ++s) {
            scratch[s * threads + thread] = mine.totals[t][s];
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
    // The bias gradient: every thread has summed some elements of dy.
    __syncthreads();
    scratch[thread] = mine.bias;
    __syncthreads();
    if (thread < bundles) {
        double total = 0;
        for (int i = 0; i < runs * kTiles; ++i) total += scratch[thread * runs * kTiles + i];
        totals[thread * S::kValues + S::kValues - 1] = total;
    }
    __syncthreads();
}

// Where a pair's value `index` belongs: an element of dw, or of db; nowhere if it is of a filter or
// channel that does not exist, or a bias gradient that is not this bundle's.
template <typename S, typename Store>
__device__ __forceinline__ void place_value(const WeightProblem& problem, const WeightBundle& bundle,
                                            int filter, int index, Store store) {
    const int k = bundle.first_filter + filter;
    const int c = bundle.first_channel + index / S::kTaps;
    if (k >= problem.filters) return;
    const std::int64_t channel = bundle.group * problem.filters + k;
    if (index == S::kValues - 1) {
        if (bundle.first_channel == 0) store(true, channel, channel);
        return;
    }
    if (c >= problem.channels) return;
    const int r = index % S::kTaps / S::kS, s = index % S::kS;
    const auto* strides = problem.w_strides;
    store(false, (channel * problem.channels + c) * S::kTaps + r * S::kS + s,
          channel * strides[0] + c * strides[1] + r * strides[2] + s * strides[3]);
}

// Sums a block's share. `partial` holds [split][dw contiguous, then db] in float64; with one split the
// results go to their tensors at once.
template <typename S>
__global__ void __launch_bounds__(kMostThreads, 2)
    weight_gradient(const WeightProblem problem, const typename S::Value* __restrict__ upstream,
                    const typename S::Value* __restrict__ input,
                    typename S::Value* __restrict__ gradient,
                    typename S::Value* __restrict__ bias_gradient, double* __restrict__ partial,
                    int x_run_bytes, int y_run_bytes) {
    using T = typename S::Value;
    using Rows = typename S::Rows;
    using Columns = typename S::Columns;
    const int thread = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);

    // Find this block's bundles, and its share of images and bands.
    const WeightShared<S> places(problem);
    auto* shared = shared_memory<unsigned char>();
    auto* totals = reinterpret_cast<double*>(shared);
    auto* scratch = reinterpret_cast<float*>(shared + places.x);
    T* x_tile = reinterpret_cast<T*>(shared + places.x);
    T* y_tile = reinterpret_cast<T*>(shared + places.y);
    const WeightCut cut = WeightCut::of<S>(problem);
    const std::int64_t split = blockIdx.x / cut.bundle_blocks;
    const std::int64_t first_bundle = (blockIdx.x - split * cut.bundle_blocks) * problem.bundles;
    const int bundles_here = static_cast<int>(min(problem.bundles, cut.bundles - first_bundle));
    const std::int64_t first_item = cut.items * split / problem.splits;
    const std::int64_t last_item = cut.items * (split + 1) / problem.splits;
    const int filters = static_cast<int>(problem.bundle_filters);
    const int pairs = bundles_here * filters;
    const int pair_threads = static_cast<int>(problem.pair_threads[0] * problem.pair_threads[1]);
    for (int i = thread; i < pairs * S::kValues; i += threads) totals[i] = 0;

    // A thread's place: a pair of a bundle and a filter, and there its tile.
    const int my_pair = thread / pair_threads;
    const int my_row = thread % pair_threads / static_cast<int>(problem.pair_threads[1]);
    const int my_column = thread % static_cast<int>(problem.pair_threads[1]);
    const bool computes = my_pair < pairs;

    Region x, y;
    x.planes = bundles_here * S::kChannels;
    x.rows = static_cast<int>(problem.x_rows);
    x.columns = x.row_pitch = static_cast<int>(problem.x_row_pitch);
    x.plane_pitch = static_cast<int>(problem.x_plane_pitch);
    x.height = static_cast<int>(problem.x_size[0]);
    x.width = static_cast<int>(problem.x_size[1]);
    x.row_stride = problem.x_strides[2];
    x.column_stride = problem.x_strides[3];
    x.planes_fastest = problem.x_strides[1] == 1 && x.column_stride != 1;
    y.planes = pairs;
    y.rows = static_cast<int>(problem.part_size[0]);
    y.columns = y.row_pitch = static_cast<int>(problem.y_row_pitch);
    y.plane_pitch = static_cast<int>(problem.y_plane_pitch);
    y.height = static_cast<int>(problem.y_size[0]);
    y.width = static_cast<int>(problem.y_size[1]);
    y.row_stride = problem.y_strides[2];
    y.column_stride = problem.y_strides[3];
    y.planes_fastest = problem.y_strides[1] == 1 && y.column_stride != 1;

    using Mine = std::conditional_t<S::kSpreads, Spread<S>, Kept<S>>;
    Mine mine;
    int items_of_chain = 0;
    for (std::int64_t item = first_item; item < last_item; ++item) {
        // Bring a part of dy, and of x what it meets, into shared memory.
        const int bands = cut.bands[0] * cut.bands[1];
        const std::int64_t image = item / bands;
        const int band = static_cast<int>(item - image * bands);
        y.first_row = band / cut.bands[1] * static_cast<int>(problem.part_size[0]);
        y.first_column = band % cut.bands[1] * static_cast<int>(problem.part_size[1]);
        x.first_row = y.first_row * S::kStrideH - Rows::kOffset;
        x.first_column = y.first_column * S::kStrideW - Columns::kOffset - S::kLead;
        load(x, x_run_bytes, x_tile, input, [&](int plane) {
            const auto bundle =
                WeightBundle::of<S>(problem, cut, first_bundle + plane / S::kChannels);
            // A channel past the group's last is not stored, so any one will do.
            const int channel = min(bundle.first_channel + plane % S::kChannels,
                                    static_cast<int>(problem.channels) - 1);
            return image * problem.x_strides[0] +
                   (bundle.group * problem.channels + channel) * problem.x_strides[1];
        });
        load(y, y_run_bytes, y_tile, upstream, [&](int plane) {
            const int of_bundle = filters == 1 ? plane : plane / filters;
            const auto bundle = WeightBundle::of<S>(problem, cut, first_bundle + of_bundle);
            const int filter = min(bundle.first_filter + plane - of_bundle * filters,
                                   static_cast<int>(problem.filters) - 1);
            return image * problem.y_strides[0] +
                   (bundle.group * problem.filters + filter) * problem.y_strides[1];
        });
        ptx::cp_async_wait_all();
        __syncthreads();

        // Multiply.
        const int rows = static_cast<int>(min(problem.part_size[0], problem.y_size[0] - y.first_row));
        const int columns =
            static_cast<int>(min(problem.part_size[1], problem.y_size[1] - y.first_column));
        if (computes) {
            const T* x_plane = x_tile + my_pair / filters * S::kChannels * x.plane_pitch;
            const T* y_plane = y_tile + my_pair * y.plane_pitch;
            if constexpr (S::kSpreads) {
                // Threads down are runs of columns, threads across are tiles of taps.
                const T* corner =
                    x_plane +
                    my_column / S::kTapColumns * Rows::kTile * S::kDilationH * x.row_pitch +
                    my_column % S::kTapColumns * Columns::kTile * S::kDilationW;
                mine.add(corner, x.row_pitch, y_plane, y.row_pitch, rows, columns, my_row,
                         static_cast<int>(problem.pair_threads[0]));
                if (bias_gradient != nullptr) {
                    for (int i = thread % pair_threads; i < y.rows * y.row_pitch;
                         i += pair_threads) {
                        mine.bias += Element<T>::widen(y_plane[i]);
                    }
                }
            } else {
                const int row = my_row * Rows::kTile, column = my_column * Columns::kTile;
                mine.add(x_plane + my_row * Rows::kAdvance * x.row_pitch +
                             my_column * Columns::kAdvance,
                         x.row_pitch, x.plane_pitch, y_plane + row * y.row_pitch + column,
                         y.row_pitch, rows - row, columns - column);
            }
        }
        if constexpr (!S::kSpreads) {
            if (++items_of_chain == kItemsOfOneChain || item + 1 == last_item) {
                add_to_totals(mine.sums, scratch, totals, pairs, pair_threads);
                items_of_chain = 0;
            }
        }
        __syncthreads();  // nobody reads the tiles any more
    }
    if constexpr (S::kSpreads) {
        add_spread(mine, scratch, totals, bundles_here, static_cast<int>(problem.pair_threads[0]));
    }

    // Hand the totals on.
    const std::int64_t count = problem.groups * problem.filters * problem.channels * S::kTaps;
    double* part = partial + split * (count + problem.groups * problem.filters);
    for (int i = thread; i < pairs * S::kValues; i += threads) {
        const int pair = i / S::kValues;
        const auto bundle = WeightBundle::of<S>(problem, cut, first_bundle + pair / filters);
        place_value<S>(problem, bundle, pair % filters, i % S::kValues,
                       [&](bool is_bias, std::int64_t number, std::int64_t place) {
                           if (is_bias && bias_gradient == nullptr) return;
                           if (problem.splits > 1) {
                               part[is_bias ? count + number : number] = totals[i];
                           } else {
                               (is_bias ? bias_gradient : gradient)[place] =
                                   Element<T>::narrow(static_cast<float>(totals[i]));
                           }
                       });
    }
}

// Second stage: adds the splits' partial sums in a fixed order.
template <typename S>
__global__ void __launch_bounds__(kMostThreads)
    add_parts(const WeightProblem problem, const double* __restrict__ partial,
              typename S::Value* __restrict__ gradient,
              typename S::Value* __restrict__ bias_gradient) {
    using T = typename S::Value;
    const std::int64_t filters = problem.groups * problem.filters;
    const std::int64_t count = filters * problem.channels * S::kTaps;
    const std::int64_t index = std::int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
    if (index >= count + (bias_gradient == nullptr ? 0 : filters)) return;
    double sum = 0;
    for (std::int64_t split = 0; split < problem.splits; ++split) {
        sum += partial[split * (count + filters) + index];
    }
    const T value = Element<T>::narrow(static_cast<float>(sum));
    if (index >= count) {
        bias_gradient[index - count] = value;
        return;
    }
    const auto* strides = problem.w_strides;
    const std::int64_t plane = index / S::kTaps, tap = index % S::kTaps;
    gradient[plane / problem.channels * strides[0] + plane % problem.channels * strides[1] +
             tap / S::kS * strides[2] + tap % S::kS * strides[3]] = value;
}

template <typename S>
const char* run_weight_gradient(const void* packed, std::size_t packed_bytes,
                                const std::uintptr_t* addresses, std::uintptr_t stream) {
    using T = typename S::Value;
    if (packed_bytes != sizeof(WeightProblem)) return "depthwise: the problem has another size";
    const auto& problem = *static_cast<const WeightProblem*>(packed);
    const auto* upstream = reinterpret_cast<const T*>(addresses[0]);
    const auto* input = reinterpret_cast<const T*>(addresses[1]);
    auto* gradient = reinterpret_cast<T*>(addresses[2]);
    auto* bias_gradient = reinterpret_cast<T*>(addresses[3]);
    auto* partial = reinterpret_cast<double*>(addresses[4]);
    const WeightCut cut = WeightCut::of<S>(problem);
    const std::int64_t blocks = cut.bundle_blocks * problem.splits;
    if (blocks > 0x7fffffff || cut.bundles > 0x7fffffff) return "depthwise: the grid is too large";
    const char* error =
        launch(weight_gradient<S>, dim3(static_cast<unsigned>(blocks)),
               dim3(static_cast<unsigned>(problem.threads)), WeightShared<S>(problem).all, stream,
               problem, upstream, input, gradient, bias_gradient, partial,
               run_bytes<T>(input, problem.x_size[1], problem.x_strides),
               run_bytes<T>(upstream, problem.y_size[1], problem.y_strides));
    if (error == nullptr && problem.splits > 1) {
        const std::int64_t filters = problem.groups * problem.filters;
        const std::int64_t count = filters * (problem.channels * S::kTaps + 1);
        error = launch(add_parts<S>, dim3(static_cast<unsigned>((count + 255) / 256)), dim3(256), 0,
                       stream, problem, static_cast<const double*>(partial), gradient,
                       bias_gradient);
    }
    return error;
}

}  // namespace convsmith::depthwise
