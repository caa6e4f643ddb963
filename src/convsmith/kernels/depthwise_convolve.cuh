// Depthwise forward and input gradient. A block goes over many tiles, each a part of the rows of
// some output planes; while it computes one, the next is on its way to shared memory.
#pragma once

#include <algorithm>
#include <type_traits>

#include "depthwise_store.cuh"
#include "depthwise_thread.cuh"
#include "depthwise_tile.cuh"

namespace convsmith::depthwise {

// What is compiled in; everything else is told at run time. A thread computes kTileRows x
// kTileColumns outputs of kThreadFilters filters, each summed over kSums channels: in one chain of
// additions, or, where there are many terms (kHasRowSums), in one for each filter row and one of
// those. A tile holds whole rows of contiguous columns (kWholeRows), or any part of planes with
// what lies outside of them as zeros; kTogether > 1 planes of a channels_last tensor lie
// interleaved in it. Where a thread's outputs are as high as a plane, the source's has kSpannedRows
// rows; else that is 0. Threads store their outputs where they belong (kStoresDirectly), or the
// block does, from shared memory.
template <bool kIsInputGradient, typename T, int R, int S, int kStrideH, int kStrideW,
          int kPaddingH, int kPaddingW, int kDilationH, int kDilationW, int kTileRows,
          int kTileColumns, int kThreadFilters, int kGroupOutputs, int kSums, bool kHasRowSums,
          bool kTakesWholeRows, int kSpannedRows, int kTogether, bool kStoresDirectly,
          int kTileStages, int kMostThreads, int kResidentBlocks>
struct Convolution {
    using Value = T;
    static constexpr bool kIsWeightGradient = false;
    static constexpr bool kIsGradient = kIsInputGradient;
    using Rows = Axis<kIsInputGradient, R, kStrideH, kPaddingH, kDilationH, kTileRows>;
    using Columns = Axis<kIsInputGradient, S, kStrideW, kPaddingW, kDilationW, kTileColumns>;
    static constexpr int kFilters = kThreadFilters;
    static constexpr int kOutputs = kGroupOutputs;  // of a group, and bundles of them
    static constexpr int kBundlesOfGroup = (kOutputs + kFilters - 1) / kFilters;
    static constexpr int kChannels = kSums < 8 ? kSums : 8;  // in shared memory at once
    static constexpr int kTurns = (kSums + kChannels - 1) / kChannels;
    static constexpr int kAllChannels = kSums;
    static constexpr bool kSumsByRow = kHasRowSums;
    static constexpr int kColumnPitch = kTogether;
    static constexpr bool kInterleaved = kTogether > 1;
    static_assert(!kInterleaved || (kSums == 1 && kThreadFilters == 1));
    static constexpr bool kWholeRows = kTakesWholeRows;
    static_assert(!kWholeRows || !kInterleaved);
    static constexpr bool kDirect = kStoresDirectly;
    static_assert(!kDirect || (kWholeRows && kTurns == 1));
    // Whether outputs that exist may meet rows that do not, and have to do without them. Of a
    // thread that spans planes it is known which ones.
    static constexpr bool kChecksRows = kWholeRows && (kIsInputGradient ? R > 1 : kPaddingH > 0);
    static constexpr int kPlaneRows = kSpannedRows;
    static constexpr int kStages = kTileStages;
    static constexpr int kThreads = kMostThreads, kBlocks = kResidentBlocks;  // of a multiprocessor

    // Small filters are unrolled whole; of large ones a loop over source rows remains.
    static constexpr int kProducts = R * S * kTileRows * kTileColumns * kThreadFilters;
    static constexpr bool kUnrolled = kProducts <= 1600;
    // A filter row in shared memory: its taps, each for all of a thread's filters.
    static constexpr int kFilterRow = (S * kThreadFilters + 3) / 4 * 4;
    static constexpr int kFilterPitch = R * kFilterRow;
    static constexpr bool kKeepsFilter = kUnrolled && kFilterPitch <= 56;

    // Columns before the first that is needed, so that loads of 16 bytes stay aligned.
    static constexpr int kVector = 16 / sizeof(T);
    static constexpr int kLead =
        kInterleaved ? 0 : ((Columns::kFirst % kVector) + kVector) % kVector;
    static constexpr int kLeft = kLead - Columns::kFirst;  // columns before the source's first
    static_assert(!kWholeRows || kLeft >= 0, "padding beyond the filter is for partial tiles");
};

// What the host packs for one call. "Source" is x or dy, "out" is y or dx. A bundle is the kFilters
// output planes of a thread, all of one group and one image. A block has several bundles only where
// each group is a single one, so that their planes follow one another in both tensors.
struct ConvolveProblem {
    std::int64_t images, groups;
    std::int64_t source_size[2], out_size[2];
    std::int64_t source_strides[4], out_strides[4];
    std::int64_t filter_strides[5];       // group, output channel, source channel, row, column
    std::int64_t bundles;                 // of a block
    std::int64_t thread_tiles[2];         // rows and columns of threads of a bundle
    std::int64_t row_tiles;               // rows of threads' tiles that a block's tile has
    std::int64_t source_rows, row_pitch;  // of the source tile: rows, and columns
    std::int64_t plane_pitch;             // elements from one plane of it to the next
    std::int64_t source_elements;         // of all of it
    std::int64_t threads, blocks;
};

// How the work is cut, in numbers of parts.
struct Cut {
    int sets_of_image, bands[2];
    unsigned tiles;  // fewer than 2 ** 31

    static constexpr unsigned kTooMany = 0x80000000;

    template <typename S>
    static Cut of(const ConvolveProblem& problem) {
        const auto parts = [](std::int64_t whole, std::int64_t part) {
            return static_cast<int>((whole + part - 1) / part);
        };
        Cut cut;
        cut.sets_of_image = parts(problem.groups * S::kBundlesOfGroup, problem.bundles);
        cut.bands[0] = parts(problem.out_size[0], problem.row_tiles * S::Rows::kTile);
        cut.bands[1] = parts(problem.out_size[1], problem.thread_tiles[1] * S::Columns::kTile);
        const std::int64_t tiles = problem.images * cut.sets_of_image * cut.bands[0] * cut.bands[1];
        cut.tiles = tiles < kTooMany ? static_cast<unsigned>(tiles) : kTooMany;
        return cut;
    }
};

// Where a tile lies in the tensors, and what of it exists.
struct Place {
    std::int64_t source, filters, out;  // where its first elements are
    int first_output;                   // of its outputs' planes, among those of an image
    int bundles, planes;                // that exist; planes of outputs
    int row, rows, columns;             // of the outputs: the first row, and how many exist
    // Of the source: what is in memory, which may begin outside.
    int first_source_row, source_rows, first_source_column;

    template <typename S>
    static __device__ Place of(const ConvolveProblem& problem, const Cut& cut, unsigned tile) {
        using Rows = typename S::Rows;
        using Columns = typename S::Columns;
        unsigned rest = tile;
        const unsigned bands_across = cut.bands[1], bands = cut.bands[0] * bands_across;
        const int image = divide(rest, bands * cut.sets_of_image);
        const int set = divide(rest, bands), band = divide(rest, bands_across);
        const int bundles = static_cast<int>(problem.bundles);
        const int group = S::kBundlesOfGroup == 1 ? set * bundles : set / S::kBundlesOfGroup;
        const int first = S::kBundlesOfGroup == 1 ? 0 : set % S::kBundlesOfGroup * S::kFilters;
        const int tile_rows = static_cast<int>(problem.row_tiles) * Rows::kTile;
        const int tile_columns = static_cast<int>(problem.thread_tiles[1]) * Columns::kTile;
        const int column = static_cast<int>(rest) * tile_columns;

        Place place;
        place.first_output = group * S::kOutputs + first;
        place.bundles =
            min(bundles, static_cast<int>(problem.groups) * S::kBundlesOfGroup - set * bundles);
        place.planes = S::kBundlesOfGroup == 1 ? place.bundles * S::kFilters
                                               : min(S::kFilters, S::kOutputs - first);
        place.row = band * tile_rows;
        place.rows = min(tile_rows, static_cast<int>(problem.out_size[0]) - place.row);
        place.columns = min(tile_columns, static_cast<int>(problem.out_size[1]) - column);

        const auto height = static_cast<int>(problem.source_size[0]);
        const int met = place.row / Rows::kScale * Rows::kStep + Rows::kFirst;
        const int met_rows =
            (static_cast<int>(problem.row_tiles) - 1) * Rows::kAdvance + Rows::kExtent;
        place.first_source_row = S::kWholeRows ? max(met, 0) : met;
        place.source_rows = min(met + met_rows, height) - place.first_source_row;
        place.first_source_column =
            S::kWholeRows ? 0
                          : column / Columns::kScale * Columns::kStep + Columns::kFirst - S::kLead;

        const auto* strides = problem.source_strides;
        place.source = image * strides[0] + std::int64_t{group} * S::kAllChannels * strides[1] +
                       place.first_source_row * strides[2] + place.first_source_column * strides[3];
        place.filters = group * problem.filter_strides[0] + first * problem.filter_strides[1];
        strides = problem.out_strides;
        place.out = image * strides[0] + place.first_output * strides[1] + place.row * strides[2] +
                    column * strides[3];
        return place;
    }
};

// Shared memory of a block: what its threads tell each other; then, in elements of T, kStages times
// a source tile, in whose place the finished outputs may lie afterwards, and its filters.
template <typename S>
struct ConvolveShared {
    struct Head {
        ptx::Barrier barriers[S::kStages];  // at which bulk copies to a stage arrive
        Place places[3];                    // of the last tile, this one and the next
    };
    static constexpr int kHeadBytes = 256;
    static_assert(sizeof(Head) <= kHeadBytes);
    int tile, stage;

    explicit ConvolveShared(const ConvolveProblem& problem) {
        using T = typename S::Value;
        const std::int64_t planes = problem.bundles * S::kChannels;
        const std::int64_t out_rows = problem.row_tiles * S::Rows::kTile;
        const std::int64_t out_columns = problem.thread_tiles[1] * S::Columns::kTile;
        const std::int64_t run =
            S::kInterleaved ? out_columns : PlanarStore<T>::pitch_of(out_columns);
        const std::int64_t out = S::kDirect ? 0 : problem.bundles * S::kFilters * out_rows * run;
        tile = static_cast<int>((std::max(problem.source_elements, out) + 7) / 8 * 8);
        stage = tile + static_cast<int>((planes * S::kFilterPitch + 7) / 8 * 8);
    }
};

template <typename S>
__global__ void __launch_bounds__(S::kThreads, S::kBlocks)
    convolve(const ConvolveProblem problem, const Cut cut, const ConvolveShared<S> parts,
             const typename S::Value* __restrict__ source,
             const typename S::Value* __restrict__ filter,
             const typename S::Value* __restrict__ bias, typename S::Value* __restrict__ out,
             RowPlan source_plan, const OutShape out_shape) {
    using T = typename S::Value;
    using Rows = typename S::Rows;
    using Columns = typename S::Columns;
    constexpr int kFilters = S::kFilters;
    const int thread = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
    auto& head = *shared_memory<typename ConvolveShared<S>::Head>();
    T* shared = reinterpret_cast<T*>(shared_memory<unsigned char>() + parts.kHeadBytes);

    // Work out what holds for all tiles of this block.
    const int bundles = static_cast<int>(problem.bundles);
    const int row_pitch = static_cast<int>(problem.row_pitch) * S::kColumnPitch;
    const int plane_pitch = S::kInterleaved ? 1 : static_cast<int>(problem.plane_pitch);

    const auto loader = [&] {
        const int width = static_cast<int>(problem.source_size[1]);
        if constexpr (S::kWholeRows) {
            return RowLoader<T>(width, source_plan, problem.source_strides[2], row_pitch);
        } else {
            return TileLoader<T, S::kInterleaved>(TileShape{
                bundles * S::kChannels, static_cast<int>(problem.source_rows),
                static_cast<int>(problem.row_pitch), static_cast<int>(problem.source_size[0]),
                width, problem.source_strides[1], problem.source_strides[2],
                problem.source_strides[3], source_plan.run});
        }
    }();

    using Store =
        std::conditional_t<S::kInterleaved, InterleavedStore<T, S::kColumnPitch>, PlanarStore<T>>;
    const Store store(out_shape);

    // A thread's place in a tile: a bundle, and a tile of its outputs. Threads of the same rows of
    // neighbouring bundles follow one another: they meet the same rows that do not exist.
    const int down = static_cast<int>(problem.thread_tiles[0]);
    const int across = static_cast<int>(problem.thread_tiles[1]);
    const int of_bundles = S::kInterleaved ? thread / S::kColumnPitch : thread;
    const int line = of_bundles / across;
    const int my_bundle = S::kInterleaved ? thread % S::kColumnPitch : line % bundles;
    const int my_row = (S::kInterleaved ? line : line / bundles) * Rows::kTile;
    const int my_column = of_bundles % across * Columns::kTile;
    const bool has_outputs = my_row < down * Rows::kTile;
    const int corner = my_bundle * S::kChannels * plane_pitch +
                       of_bundles % across * Columns::kAdvance * S::kColumnPitch;

    // Outputs that pass through a tile's memory overwrite the zeros between its rows; else they
    // stay.
    const auto clear_sides = [&](T* stage) {
        if constexpr (S::kWholeRows) {
            loader.template clear_sides<Columns::kZerosBefore, Columns::kZerosAfter>(
                stage + S::kLeft, plane_pitch, bundles * S::kChannels,
                static_cast<int>(problem.source_rows));
        }
    };

    // Begins to bring the filters of so many source planes. Some neighbouring threads take a
    // filter, each a few of its elements; offsets in a filter fit 32 bits.
    const auto load_filters = [&](T* to, const T* filters, int first_channel, int planes,
                                  int out_planes) {
        const int across = S::kFilterPitch <= 8    ? 8
                           : S::kFilterPitch <= 16 ? 16
                           : S::kFilterPitch <= 64 ? 32
                                                   : threads & -threads;
        const int first_plane = thread / across, planes_at_once = threads / across;
        const auto stride = [&](int axis) {
            return static_cast<int>(problem.filter_strides[axis]);
        };
#pragma unroll 1
        for (int i = thread % across; i < S::kFilterPitch; i += across) {
            const int r = i / S::kFilterRow;
            const int s = i % S::kFilterRow / kFilters, f = i % S::kFilterRow % kFilters;
            const bool there =
                s < Columns::kTaps && (S::kBundlesOfGroup == 1 ? f < S::kOutputs : f < out_planes);
            const T* from = filters + (f * stride(1) + r * stride(3) + s * stride(4));
#pragma unroll 2
            for (int plane = first_plane; plane < planes; plane += planes_at_once) {
                const int bundle = plane / S::kChannels, channel = plane % S::kChannels;
                move<1>(to + plane * S::kFilterPitch + i,
                        from + (bundle * stride(0) + (first_channel + channel) * stride(2)), there);
            }
        }
    };

    // Begins to bring some channels of a tile into a stage: those whose turn it is.
    const auto load = [&](const Place& place, int turn, int stage_index) {
        T* stage = shared + stage_index * parts.stage;
        const int first_channel = turn * S::kChannels;
        const int channels = min(S::kChannels, S::kAllChannels - first_channel);
        // Of several turns the last one may have fewer channels; a block then has one bundle.
        const int planes = S::kTurns == 1 ? place.bundles * S::kChannels : channels;
        const T* from = source + place.source + first_channel * problem.source_strides[1];
        if constexpr (S::kWholeRows) {
            if constexpr (!S::kDirect) clear_sides(stage);
            loader.load(stage + S::kLeft, plane_pitch, from, problem.source_strides[1], planes,
                        place.source_rows, head.barriers + stage_index);
        } else {
            loader.load(stage, from, place.first_source_row, place.first_source_column, planes);
        }
        load_filters(stage + parts.tile, filter + place.filters, first_channel, planes,
                     place.planes);
    };

    // Make the barriers and the zeros that stay, and begin. One thread works out for all where the
    // tile after the next one lies.
    bool arrives_at_barrier = false;
    if constexpr (S::kWholeRows) arrives_at_barrier = RowLoader<T>::arrives_at_barrier(source_plan);
    const auto find = [&](unsigned tile, int slot) {
        if (thread == 0 && tile < cut.tiles) head.places[slot] = Place::of<S>(problem, cut, tile);
    };
    if (thread == 0 && arrives_at_barrier) {
        for (int i = 0; i < S::kStages; ++i) ptx::mbarrier_init(head.barriers + i, 1);
        ptx::fence_mbarrier_init();
    }
    find(blockIdx.x, 0);
    if constexpr (S::kDirect) {
        for (int i = 0; i < S::kStages; ++i) clear_sides(shared + i * parts.stage);
    }
    __syncthreads();
    load(head.places[0], 0, 0);
    find(blockIdx.x + gridDim.x, 1);

    int stage = 0, parity = 0, slot = 0;
    for (unsigned index = blockIdx.x; index < cut.tiles; index += gridDim.x) {
        const Place& place = head.places[slot];
        slot = slot == 2 ? 0 : slot + 1;
        const bool computes = has_outputs && my_bundle < place.bundles && my_column < place.columns;

        // Sums begin with the bias.
        float bias_values[kFilters] = {};
        if (bias != nullptr && computes) {
            const T* values = bias + place.first_output + my_bundle * S::kOutputs;
#pragma unroll
            for (int f = 0; f < kFilters; ++f) {
                if (S::kBundlesOfGroup == 1 ? f < S::kOutputs : f < place.planes) {
                    bias_values[f] = Element<T>::widen(values[f]);
                }
            }
        }
        Sums<S> sums;
        const auto begin = [&] {
#pragma unroll
            for (int f = 0; f < kFilters; ++f) {
#pragma unroll
                for (int t = 0; t < Rows::kTile; ++t) {
#pragma unroll
                    for (int u = 0; u < Columns::kTile; ++u) sums.values[f][t][u] = bias_values[f];
                }
            }
        };
        begin();

        for (int turn = 0; turn < S::kTurns; ++turn) {
            ptx::cp_async_wait_all();
            if (arrives_at_barrier) ptx::mbarrier_wait(head.barriers + stage, parity);
            if constexpr (!S::kDirect) store.wait_until_read();
            // The stage is full, and nobody reads the other one any more: copies may overwrite what
            // has been read without a fence.
            __syncthreads();
            T* tile = shared + stage * parts.stage;
            const auto load_next = [&] {
                const int other = (stage + 1) % S::kStages;
                if (turn + 1 < S::kTurns) {
                    load(place, turn + 1, other);
                } else if (index + gridDim.x < cut.tiles) {
                    load(head.places[slot], 0, other);
                }
            };
            if constexpr (S::kStages > 1) load_next();
            if (turn == 0) {
                find(index + 2 * gridDim.x, slot == 2 ? 0 : slot + 1);
            }

            // Multiply.
            const auto multiply = [&](int row) {
                const T* filters = tile + parts.tile + my_bundle * S::kChannels * S::kFilterPitch;
                const int first_row = (place.row + row) / Rows::kScale * Rows::kStep;
                const T* mine = tile + corner + (first_row - place.first_source_row) * row_pitch;
#pragma unroll 1
                for (int c = 0; c < S::kChannels; ++c) {
                    if (S::kTurns > 1 && turn * S::kChannels + c >= S::kAllChannels) continue;
                    sums.add_channel(mine + c * plane_pitch, row_pitch,
                                     filters + c * S::kFilterPitch, first_row,
                                     static_cast<int>(problem.source_size[0]));
                }
            };
            if constexpr (S::kDirect) {
                // And store, where each thread has one tile of outputs after another.
                if (computes) {
#pragma unroll 1
                    for (int row = my_row; row < place.rows; row += down * Rows::kTile) {
                        begin();
                        multiply(row);
#pragma unroll
                        for (int f = 0; f < kFilters; ++f) {
                            const int plane = my_bundle * kFilters + f;
                            if (plane >= place.planes) continue;
                            store_directly(out + place.out + plane * problem.out_strides[1] +
                                               row * problem.out_strides[2] + my_column,
                                           problem.out_strides[2], sums.values[f], place.rows - row,
                                           place.columns - my_column, out_shape.aligned);
                        }
                    }
                }
            } else {
                if (computes) multiply(my_row);

                // Store, through the memory that the source tile no longer needs.
                if (turn + 1 == S::kTurns) {
                    T* tile_out = out + place.out;
                    __syncthreads();
                    if (computes) {
#pragma unroll
                        for (int f = 0; f < kFilters; ++f) {
                            if constexpr (S::kInterleaved) {
                                store.put(tile, my_bundle, my_row, my_column, sums.values[f]);
                            } else {
                                store.put(tile, tile_out, my_bundle * kFilters + f, my_row,
                                          my_column, sums.values[f], place.rows, place.columns);
                            }
                        }
                    }
                    ptx::fence_proxy_async();
                    __syncthreads();
                    store.store(tile, tile_out, place.planes, place.rows, place.columns);
                }
            }
            if constexpr (S::kStages == 1) {
                if constexpr (!S::kDirect) store.wait_until_read();
                __syncthreads();
                load_next();
            }
            stage = (stage + 1) % S::kStages;
            if (stage == 0) parity ^= 1;
        }
    }
    if constexpr (!S::kDirect) store.wait_until_read();  // shared memory goes with the block
}

// How finished outputs are stored at `out`.
template <typename S>
OutShape out_shape_of(const ConvolveProblem& problem, const Cut& cut,
                      const typename S::Value* out) {
    using T = typename S::Value;
    const auto& strides = problem.out_strides;
    OutShape shape;
    shape.planes = static_cast<int>(problem.bundles) * S::kFilters;
    shape.rows = static_cast<int>(problem.row_tiles) * S::Rows::kTile;
    shape.columns = static_cast<int>(problem.thread_tiles[1]) * S::Columns::kTile;
    shape.plane_stride = strides[1];
    shape.row_stride = strides[2];
    shape.column_stride = strides[3];
    shape.aligned = longest_run<T>(out, S::kInterleaved ? problem.groups : problem.out_size[1],
                                   strides, S::kInterleaved);
    const std::int64_t width = problem.out_size[1], plane = problem.out_size[0] * width;
    const bool whole_rows = cut.bands[1] == 1 && strides[3] == 1 && strides[2] == width;
    const bool whole_planes =
        whole_rows && cut.bands[0] == 1 && strides[1] == plane && S::kBundlesOfGroup == 1;
    shape.run = strides[3] != 1 ? Run::kElement
                : whole_planes  ? Run::kAll
                : whole_rows    ? Run::kPlane
                                : Run::kRow;
    shape.run_pitch = PlanarStore<T>::pitch_of(whole_planes ? shape.planes * plane
                                               : whole_rows ? shape.rows * width
                                                            : std::int64_t{shape.columns});
    return shape;
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
    if (cut.tiles == Cut::kTooMany) return "depthwise: there are too many tiles";
    const std::int64_t row = problem.source_size[1] + S::Columns::kZerosBetween;
    if (S::kWholeRows && row > problem.row_pitch) return "depthwise: a tile's rows are too short";
    const ConvolveShared<S> parts(problem);
    const int source_run =
        longest_run<T>(source, S::kInterleaved ? problem.groups : problem.source_size[1],
                       problem.source_strides, S::kInterleaved);
    const RowPlan source_plan =
        plan_rows<T>(static_cast<int>(problem.source_size[1]), source_run,
                     static_cast<int>(problem.source_rows * problem.bundles * S::kChannels),
                     static_cast<int>(problem.threads));
    const OutShape out_shape = out_shape_of<S>(problem, cut, out);
    return launch(convolve<S>, dim3(static_cast<unsigned>(problem.blocks)),
                  dim3(static_cast<unsigned>(problem.threads)),
                  parts.kHeadBytes + S::kStages * parts.stage * sizeof(T), stream, problem, cut,
                  parts, source, filter, bias, out, source_plan, out_shape);
}

}  // namespace convsmith::depthwise
