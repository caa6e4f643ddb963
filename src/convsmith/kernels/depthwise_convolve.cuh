// Depthwise forward and input gradient: a block computes a tile of rows of some output planes.
#pragma once

#include "depthwise_axis.cuh"
#include "depthwise_tile.cuh"

namespace convsmith::depthwise {

constexpr int kMostThreads = 256;

// What is compiled in; everything else is told at run time. A thread computes kTileRows x
// kTileColumns outputs of kThreadFilters filters. Where several channels are summed, each filter row
// has a chain of additions of its own, which keeps the error of their many terms small.
template <bool kIsInputGradient, typename T, int R, int S, int kStrideH, int kStrideW, int kPaddingH,
          int kPaddingW, int kDilationH, int kDilationW, int kTileRows, int kTileColumns,
          int kThreadFilters, bool kAddsChannels>
struct Convolution {
    using Value = T;
    static constexpr bool kIsWeightGradient = false;
    static constexpr bool kIsGradient = kIsInputGradient;
    using Rows = Axis<kIsInputGradient, R, kStrideH, kPaddingH, kDilationH, kTileRows>;
    using Columns = Axis<kIsInputGradient, S, kStrideW, kPaddingW, kDilationW, kTileColumns>;
    static constexpr int kFilters = kThreadFilters;
    static constexpr bool kAddsRows = kAddsChannels;

    // Small filters are unrolled whole; of large ones a loop over source rows remains.
    static constexpr int kProducts = R * S * kTileRows * kTileColumns * kThreadFilters;
    static constexpr bool kUnrolled = kProducts <= 1280;
    // A row of a filter in shared memory: its taps, each for all of a thread's filters.
    static constexpr int kRowValues = S * kThreadFilters;
    static constexpr int kRowPitch = (kRowValues + 3) / 4 * 4;
    static constexpr int kFilterPitch = R * kRowPitch;
    static constexpr bool kKeepsFilter = kUnrolled && R * kRowPitch <= 40;

    static constexpr int kVector = 16 / sizeof(T);  // elements of the longest access
    // Columns before the first that is needed, so that loads of 16 bytes stay aligned.
    static constexpr int kLead = ((Columns::kFirst % kVector) + kVector) % kVector;
};

// What the host packs for one call. "Source" is x or dy, "out" is y or dx. A bundle is kFilters
// neighbouring planes of the output, all of one group and one image.
struct ConvolveProblem {
    std::int64_t images, groups;
    std::int64_t sums;     // source channels of a group: those that are summed over
    std::int64_t outputs;  // output channels of a group
    std::int64_t source_size[2], out_size[2];
    std::int64_t source_strides[4], out_strides[4];
    std::int64_t filter_strides[5];  // group, output channel, source channel, row, column
    std::int64_t bundles;            // bundles of a block
    std::int64_t thread_tiles[2];    // of a block: rows and columns of threads of a bundle
    std::int64_t channels;           // source channels of a bundle that are in shared memory at once
    std::int64_t row_pitch, plane_pitch;  // of the source tile
    std::int64_t threads;                 // of a block
};

// Where a bundle's tensors begin.
struct Bundle {
    std::int64_t source, out, filter;
    int first_output;    // in its group
    int output_channel;  // of all
};

// A number of equal parts that something is cut into.
struct Cut {
    std::int64_t bundles, blocks;  // in all
    int bundles_per_group, bands[2];

    template <typename S>
    static __host__ __device__ Cut of(const ConvolveProblem& problem) {
        Cut cut;
        const auto parts = [](std::int64_t whole, std::int64_t part) {
            return (whole + part - 1) / part;
        };
        cut.bundles_per_group = static_cast<int>(parts(problem.outputs, S::kFilters));
        cut.bundles = problem.images * problem.groups * cut.bundles_per_group;
        cut.bands[0] = static_cast<int>(
            parts(problem.out_size[0], problem.thread_tiles[0] * S::Rows::kTile));
        cut.bands[1] = static_cast<int>(
            parts(problem.out_size[1], problem.thread_tiles[1] * S::Columns::kTile));
        cut.blocks = parts(cut.bundles, problem.bundles) * cut.bands[0] * cut.bands[1];
        return cut;
    }
};

// How finished outputs lie in shared memory: in runs, each as long as it is contiguous in the tensor
// and as far from a 16-byte boundary as there, so that it is stored 16 bytes at a time whatever the
// tensor's width. A run is everything, a plane's part, or a row's.
template <typename T>
struct Runs {
    static constexpr int kVector = 16 / sizeof(T);
    enum class Kind { kAll, kPlane, kRow, kElement } kind;
    int planes, rows, columns, pitch, per_plane;
    std::int64_t row_stride, width;

    static __host__ __device__ int pitch_of(std::int64_t elements) {
        return static_cast<int>((elements + 2 * kVector - 1) / kVector * kVector);
    }

    __device__ Runs(const ConvolveProblem& problem, bool one_filter, int planes_here, int rows_here,
                    int columns_here)
        : planes(planes_here), rows(rows_here), columns(columns_here) {
        const auto* strides = problem.out_strides;
        const auto* size = problem.out_size;
        row_stride = strides[2];
        width = size[1];
        const bool whole_rows = strides[2] == size[1] && columns == size[1];
        const std::int64_t plane = size[0] * size[1];
        const bool whole_planes =
            whole_rows && rows == size[0] && strides[1] == plane &&
            strides[0] == plane * problem.groups * problem.outputs && one_filter;
        kind = strides[3] != 1 ? Kind::kElement
               : whole_planes  ? Kind::kAll
               : whole_rows    ? Kind::kPlane
                               : Kind::kRow;
        const int run_rows = kind == Kind::kRow || kind == Kind::kElement ? 1 : rows;
        const int run_planes = kind == Kind::kAll ? planes : 1;
        per_plane = rows / run_rows;
        pitch = pitch_of(std::int64_t{run_planes} * run_rows * columns);
    }

    __device__ int count() const { return kind == Kind::kAll ? 1 : planes * per_plane; }
    __device__ int length() const {
        return columns * (kind == Kind::kAll ? planes * rows : kind == Kind::kPlane ? rows : 1);
    }

    // Elements from a 16-byte boundary to `element` of the tensor.
    static __device__ __forceinline__ int lead(const T* element) {
        return static_cast<int>(reinterpret_cast<std::uintptr_t>(element) / sizeof(T) % kVector);
    }

    // The place in shared memory of a row's first element. `first` is where in the tensor all of it
    // begins, `element` where that row does.
    __device__ __forceinline__ int place(int plane, int row, const T* first,
                                         const T* plane_first, const T* element) const {
        switch (kind) {
            case Kind::kAll:
                return lead(first) + (plane * rows + row) * columns;
            case Kind::kPlane:
                return plane * pitch + lead(plane_first) + row * columns;
            case Kind::kRow:
                return (plane * rows + row) * pitch + lead(element);
            default:
                return (plane * rows + row) * pitch;
        }
    }
};

// Stores `count` of kCount neighbouring values, as long a run at a time as `to` is aligned for.
template <int kCount, typename T>
__device__ __forceinline__ void store_values(T* to, const float (&values)[kCount], int count) {
    constexpr int kMost = 16 / sizeof(T);
    constexpr int kRun = kCount % kMost == 0 ? kMost : kCount % 4 == 0 ? 4 : kCount % 2 == 0 ? 2 : 1;
    const auto address = reinterpret_cast<std::uintptr_t>(to);
    if (kRun > 1 && count >= kCount && address % (kRun * sizeof(T)) == 0) {
#pragma unroll
        for (int i = 0; i < kCount; i += kRun) {
            Vector<T, kRun> run;
#pragma unroll
            for (int v = 0; v < kRun; ++v) run.values[v] = Element<T>::narrow(values[i + v]);
            *reinterpret_cast<Vector<T, kRun>*>(to + i) = run;
        }
    } else if (kRun > 2 && count >= kCount && address % (kRun / 2 * sizeof(T)) == 0) {
#pragma unroll
        for (int i = 0; i < kCount; i += kRun / 2) {
            Vector<T, kRun / 2> run;
#pragma unroll
            for (int v = 0; v < kRun / 2; ++v) run.values[v] = Element<T>::narrow(values[i + v]);
            *reinterpret_cast<Vector<T, kRun / 2>*>(to + i) = run;
        }
    } else {
#pragma unroll
        for (int i = 0; i < kCount; ++i) {
            if (i < count) to[i] = Element<T>::narrow(values[i]);
        }
    }
}

// The longest run of elements, up to 16 bytes, that tiles `advance` elements apart can load at once.
template <typename T>
constexpr int run_of(int advance) {
    int run = 16 / sizeof(T);
    while (advance % run != 0) run /= 2;
    return run;
}

// A thread's window of one source row: the columns that its outputs meet, and what lies before them
// up to the last aligned address.
template <typename T, typename Columns, int kLead, int kRun = run_of<T>(Columns::kAdvance)>
struct Window {
    static constexpr int kSkipped = kLead % kRun;
    static constexpr int kRuns = (kSkipped + Columns::kExtent + kRun - 1) / kRun;
    float values[kRuns * kRun];

    // `row` is the source tile's row at the first column of the thread's tile.
    __device__ __forceinline__ void load(const T* row) {
#pragma unroll
        for (int run = 0; run < kRuns; ++run) {
            const auto loaded =
                *reinterpret_cast<const Vector<T, kRun>*>(row + kLead - kSkipped + run * kRun);
#pragma unroll
            for (int v = 0; v < kRun; ++v) {
                values[run * kRun + v] = Element<T>::widen(loaded.values[v]);
            }
        }
    }

    __device__ __forceinline__ float at(int column) const {
        return values[column - Columns::kFirst + kSkipped];
    }
};

// A thread's outputs.
template <typename S>
struct Sums {
    using T = typename S::Value;
    using Rows = typename S::Rows;
    using Columns = typename S::Columns;
    using Four = Vector<float, 4>;
    using SourceWindow = Window<T, Columns, S::kLead>;
    static constexpr int kFours = S::kRowPitch / 4;
    float values[S::kFilters][Rows::kTile][Columns::kTile];

    // Adds a filter row's products with a window to the outputs of row `out`, tap after tap, which is
    // the order in which PyTorch adds. `taps(i)` gives four values of the filter row.
    template <typename Taps>
    __device__ __forceinline__ void add_row(int out, const SourceWindow& window, Taps taps) {
        float sums[S::kFilters][Columns::kTile];
#pragma unroll
        for (int f = 0; f < S::kFilters; ++f) {
#pragma unroll
            for (int u = 0; u < Columns::kTile; ++u) {
                sums[f][u] = S::kAddsRows ? 0.0f : values[f][out][u];
            }
        }
#pragma unroll
        for (int i = 0; i < kFours; ++i) {
            const Four four = taps(i);
#pragma unroll
            for (int v = 0; v < 4; ++v) {
                const int tap = (4 * i + v) / S::kFilters, f = (4 * i + v) % S::kFilters;
                if (tap >= Columns::kTaps) continue;
#pragma unroll
                for (int u = 0; u < Columns::kTile; ++u) {
                    if (!Columns::meets(u, tap)) continue;
                    sums[f][u] += four.values[v] * window.at(Columns::source(u, tap));
                }
            }
        }
#pragma unroll
        for (int f = 0; f < S::kFilters; ++f) {
#pragma unroll
            for (int u = 0; u < Columns::kTile; ++u) {
                values[f][out][u] = S::kAddsRows ? values[f][out][u] + sums[f][u] : sums[f][u];
            }
        }
    }

    // Adds the products of one source channel. `tile` is the thread's corner of its source tile.
    __device__ __forceinline__ void add_channel(const T* tile, int row_pitch, const float* filter) {
        const auto* fours = reinterpret_cast<const Four*>(filter);
        Four kept[S::kKeepsFilter ? Rows::kTaps * kFours : 1];
        if constexpr (S::kKeepsFilter) {
#pragma unroll
            for (int i = 0; i < Rows::kTaps * kFours; ++i) kept[i] = fours[i];
        }
        constexpr int kUnroll = S::kUnrolled ? Rows::kExtent : 1;
#pragma unroll kUnroll
        for (int row = 0; row < Rows::kExtent; ++row) {
            const int source = Rows::kTapStep > 0 ? Rows::kFirst + row : Rows::kLast - row;
            SourceWindow window;
            window.load(tile + (source - Rows::kFirst) * row_pitch);
#pragma unroll
            for (int t = 0; t < Rows::kTile; ++t) {
                const int tap = Rows::tap(t, source);
                if (tap == Rows::kNone) continue;
                if constexpr (S::kKeepsFilter) {
                    add_row(t, window, [&](int i) { return kept[tap * kFours + i]; });
                } else {
                    const Four* taps = fours + tap * kFours;
                    add_row(t, window, [&](int i) { return taps[i]; });
                }
            }
        }
    }
};

// Bytes of shared memory, in this order: bundles, filters, and the source tile, in whose place the
// finished outputs lie afterwards.
template <typename S>
struct ConvolveShared {
    std::size_t filters, tile, all;

    __host__ __device__ explicit ConvolveShared(const ConvolveProblem& problem) {
        using T = typename S::Value;
        filters = (problem.bundles * sizeof(Bundle) + 15) / 16 * 16;
        tile = filters + problem.bundles * problem.channels * S::kFilterPitch * sizeof(float);
        const std::size_t source =
            problem.bundles * problem.channels * problem.plane_pitch * sizeof(T);
        // In the worst case every row is a run of its own.
        const std::size_t run =
            Runs<T>::pitch_of(problem.thread_tiles[1] * S::Columns::kTile) * sizeof(T);
        const std::size_t out =
            problem.bundles * S::kFilters * problem.thread_tiles[0] * S::Rows::kTile * run;
        all = tile + (source > out ? source : out);
    }
};

template <typename S>
__global__ void __launch_bounds__(kMostThreads, 2)
    convolve(const ConvolveProblem problem,
                         const typename S::Value* __restrict__ source,
                         const typename S::Value* __restrict__ filter,
                         const typename S::Value* __restrict__ bias,
                         typename S::Value* __restrict__ out, int run_bytes) {
    using T = typename S::Value;
    using Rows = typename S::Rows;
    using Columns = typename S::Columns;
    constexpr int kFilters = S::kFilters;
    const int thread = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);

    // Find this block's bundles and its rows and columns of the output.
    const ConvolveShared<S> places(problem);
    auto* shared = shared_memory<unsigned char>();
    auto* bundles = reinterpret_cast<Bundle*>(shared);
    auto* filters = reinterpret_cast<float*>(shared + places.filters);
    T* tile = reinterpret_cast<T*>(shared + places.tile);
    const Cut cut = Cut::of<S>(problem);
    const auto bands = static_cast<unsigned>(cut.bands[0] * cut.bands[1]);
    const std::int64_t first_bundle = std::int64_t{blockIdx.x / bands} * problem.bundles;
    const int band = static_cast<int>(blockIdx.x % bands);
    const int tile_rows = static_cast<int>(problem.thread_tiles[0]);
    const int tile_columns = static_cast<int>(problem.thread_tiles[1]);
    const int first_row = band / cut.bands[1] * tile_rows * Rows::kTile;
    const int first_column = band % cut.bands[1] * tile_columns * Columns::kTile;
    const int bundles_here =
        static_cast<int>(min(problem.bundles, cut.bundles - first_bundle));
    for (int i = thread; i < bundles_here; i += threads) {
        const std::int64_t index = first_bundle + i;
        const std::int64_t group_index = index / cut.bundles_per_group;
        const std::int64_t image = group_index / problem.groups;
        const std::int64_t group = group_index - image * problem.groups;
        const int first =
            static_cast<int>(index - group_index * cut.bundles_per_group) * kFilters;
        const std::int64_t channel = group * problem.outputs + first;
        bundles[i] = {image * problem.source_strides[0] +
                          group * problem.sums * problem.source_strides[1],
                      image * problem.out_strides[0] + channel * problem.out_strides[1],
                      group * problem.filter_strides[0] + first * problem.filter_strides[1], first,
                      static_cast<int>(channel)};
    }

    // A thread's place in the block: a bundle, and a tile of its outputs.
    const int my_bundle = thread / (tile_rows * tile_columns);
    const int my_row = thread / tile_columns % tile_rows;
    const int my_column = thread % tile_columns;
    const bool computes = my_bundle < bundles_here;
    Sums<S> sums = {};
    __syncthreads();  // the bundles are there
    if (bias != nullptr && computes) {
        const Bundle& mine = bundles[my_bundle];
#pragma unroll
        for (int f = 0; f < kFilters; ++f) {
            if (mine.first_output + f >= problem.outputs) continue;
            const float value = Element<T>::widen(bias[mine.output_channel + f]);
#pragma unroll
            for (int t = 0; t < Rows::kTile; ++t) {
#pragma unroll
                for (int u = 0; u < Columns::kTile; ++u) sums.values[f][t][u] = value;
            }
        }
    }

    for (int first_channel = 0; first_channel < problem.sums;
         first_channel += static_cast<int>(problem.channels)) {
        const int channels =
            static_cast<int>(min(problem.channels, problem.sums - first_channel));

        // Bring some channels of the source and their filters into shared memory.
        Region region;
        region.planes = bundles_here * channels;
        region.rows = (tile_rows - 1) * Rows::kAdvance + Rows::kExtent;
        region.columns = static_cast<int>(problem.row_pitch);
        region.row_pitch = static_cast<int>(problem.row_pitch);
        region.plane_pitch = static_cast<int>(problem.plane_pitch);
        region.first_row = first_row / Rows::kScale * Rows::kStep + Rows::kFirst;
        region.first_column =
            first_column / Columns::kScale * Columns::kStep + Columns::kFirst - S::kLead;
        region.height = static_cast<int>(problem.source_size[0]);
        region.width = static_cast<int>(problem.source_size[1]);
        region.row_stride = problem.source_strides[2];
        region.column_stride = problem.source_strides[3];
        region.planes_fastest = problem.source_strides[1] == 1 && region.column_stride != 1;
        load(region, run_bytes, tile, source, [&](int plane) {
            const int bundle = channels == 1 ? plane : plane / channels;
            const int channel = first_channel + plane - bundle * channels;
            return bundles[bundle].source + channel * problem.source_strides[1];
        });
        const int values = bundles_here * channels * S::kFilterPitch;
        for (int i = thread; i < values; i += threads) {
            const int plane = i / S::kFilterPitch;
            const int r = i % S::kFilterPitch / S::kRowPitch;
            const int s = i % S::kRowPitch / kFilters;
            const int f = i % S::kRowPitch % kFilters;
            const int bundle = plane / channels;
            const int channel = first_channel + plane - bundle * channels;
            const Bundle& from = bundles[bundle];
            const bool there = s < Columns::kTaps && from.first_output + f < problem.outputs;
            const auto* strides = problem.filter_strides;
            filters[i] = there ? Element<T>::widen(filter[from.filter + f * strides[1] +
                                                          channel * strides[2] + r * strides[3] +
                                                          s * strides[4]])
                               : 0.0f;
        }
        ptx::cp_async_wait_all();
        __syncthreads();

        // Multiply.
        if (computes) {
            const T* corner = tile + my_row * Rows::kAdvance * region.row_pitch +
                              my_column * Columns::kAdvance;
            for (int c = 0; c < channels; ++c) {
                const int plane = my_bundle * channels + c;
                sums.add_channel(corner + plane * region.plane_pitch, region.row_pitch,
                                 filters + plane * S::kFilterPitch);
            }
        }
        __syncthreads();  // nobody reads the tile any more
    }

    // Arrange the outputs in runs.
    const int rows_here =
        static_cast<int>(min(problem.out_size[0] - first_row, std::int64_t{tile_rows} * Rows::kTile));
    const int columns_here = static_cast<int>(
        min(problem.out_size[1] - first_column, std::int64_t{tile_columns} * Columns::kTile));
    const Runs<T> runs(problem, kFilters == 1, bundles_here * kFilters, rows_here, columns_here);
    const std::int64_t corner =
        first_row * problem.out_strides[2] + first_column * problem.out_strides[3];
    const T* first_out = out + bundles[0].out + corner;
    if (computes) {
#pragma unroll
        for (int f = 0; f < kFilters; ++f) {
            const T* plane_out =
                out + bundles[my_bundle].out + f * problem.out_strides[1] + corner;
#pragma unroll
            for (int t = 0; t < Rows::kTile; ++t) {
                const int row = my_row * Rows::kTile + t;
                const int column = my_column * Columns::kTile;
                if (row >= rows_here || column >= columns_here) continue;
                const int place = runs.place(my_bundle * kFilters + f, row, first_out, plane_out,
                                             plane_out + row * problem.out_strides[2]);
                store_values(tile + place + column, sums.values[f][t], columns_here - column);
            }
        }
    }
    __syncthreads();

    // Store them.
    const auto plane_at = [&](int plane) {
        const Bundle& bundle = bundles[plane / kFilters];
        return bundle.out + plane % kFilters * problem.out_strides[1] + corner;
    };
    const auto is_there = [&](int plane) {
        return kFilters == 1 ||
               bundles[plane / kFilters].first_output + plane % kFilters < problem.outputs;
    };
    if (runs.kind == Runs<T>::Kind::kElement) {
        const bool planes_fastest = problem.out_strides[1] == 1;
        const int inner = planes_fastest ? runs.planes : columns_here;
        const int outer = planes_fastest ? columns_here : runs.planes;
        for (Counter at(thread, threads, planes_fastest ? rows_here : outer,
                        planes_fastest ? outer : rows_here, inner);
             at.more(); at.advance()) {
            const int plane = planes_fastest ? at.inner : at.outer;
            const int row = planes_fastest ? at.outer : at.middle;
            const int column = planes_fastest ? at.middle : at.inner;
            if (!is_there(plane)) continue;
            out[plane_at(plane) + row * problem.out_strides[2] + column * problem.out_strides[3]] =
                tile[(plane * rows_here + row) * runs.pitch + column];
        }
        return;
    }
    constexpr int kVector = S::kVector;
    const int length = runs.length();
    for (Counter at(thread, threads, runs.count(), 1, runs.pitch / kVector); at.more();
         at.advance()) {
        const int run = at.outer;
        const int plane = run / runs.per_plane;
        if (!is_there(plane)) continue;
        const std::int64_t row = run - plane * runs.per_plane;
        T* first = out + plane_at(plane) + row * problem.out_strides[2];
        const int lead = Runs<T>::lead(first);
        const int element = at.inner * kVector;  // from the boundary before the run's first
        const T* from = tile + run * runs.pitch + element;
        T* to = first - lead + element;
        if (element >= lead && element + kVector <= lead + length) {
            using Sixteen = Vector<T, kVector>;
            *reinterpret_cast<Sixteen*>(to) = *reinterpret_cast<const Sixteen*>(from);
        } else {
#pragma unroll
            for (int v = 0; v < kVector; ++v) {
                if (element + v >= lead && element + v < lead + length) to[v] = from[v];
            }
        }
    }
}

template <typename S>
const char* run_convolve(const void* packed, std::size_t packed_bytes,
                         const std::uintptr_t* addresses, std::uintptr_t stream) {
    using T = typename S::Value;
    if (packed_bytes != sizeof(ConvolveProblem)) return "depthwise: the problem has another size";
    const auto& problem = *static_cast<const ConvolveProblem*>(packed);
    const auto* source = reinterpret_cast<const T*>(addresses[0]);
    const auto* filter = reinterpret_cast<const T*>(addresses[1]);
    const auto* bias = S::kIsGradient ? nullptr : reinterpret_cast<const T*>(addresses[2]);
    auto* out = reinterpret_cast<T*>(addresses[S::kIsGradient ? 2 : 3]);
    const Cut cut = Cut::of<S>(problem);
    if (cut.blocks > 0x7fffffff) return "depthwise: the grid is too large";
    return launch(convolve<S>, dim3(static_cast<unsigned>(cut.blocks)),
                  dim3(static_cast<unsigned>(problem.threads)), ConvolveShared<S>(problem).all,
                  stream, problem, source, filter, bias, out,
                  run_bytes<T>(source, problem.source_size[1], problem.source_strides));
}

}  // namespace convsmith::depthwise
