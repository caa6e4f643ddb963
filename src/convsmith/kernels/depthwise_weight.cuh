// Depthwise weight gradient: a block sums over its share of the images and rows, for some filters.
//
// Filters of few taps: each thread owns a tile of dy and keeps a sum for every tap (`Kept`).
// Others: each thread owns a tile of taps, and all of a warp go over the same dy (`Spread`). In
// both, what a block sums is added up in float64 and rounded once.
#pragma once

#include <algorithm>
#include <type_traits>

#include "depthwise_kept.cuh"
#include "depthwise_spread.cuh"
#include "depthwise_tile.cuh"
#include "ptx/grid_dependency.cuh"

namespace convsmith::depthwise {

// What is compiled in of a weight gradient. Tiles are of dy (kept sums) or of taps (spread sums).
// Tiles hold whole rows, or any part of planes, as in Convolution.
template <typename T, int R, int S, int kStrideH_, int kStrideW_, int kPaddingH, int kPaddingW,
          int kDilationH_, int kDilationW_, int kTileRows, int kTileColumns, int kThreadChannels,
          bool kSumsBias, bool kSpreadsTaps, bool kKeepsTotals, bool kTakesWholeRows, int kTogether,
          int kTileStages, int kMostThreads, int kResidentBlocks>
struct WeightGradient {
    using Value = T;
    static constexpr bool kIsWeightGradient = true;
    static constexpr bool kIsGradient = false;
    static constexpr bool kSpreads = kSpreadsTaps;
    static constexpr bool kHasTotals = kKeepsTotals;  // else all of a thread's are one chain
    static constexpr int kR = R, kS = S;
    static constexpr int kStrideH = kStrideH_, kStrideW = kStrideW_;
    static constexpr int kDilationH = kDilationH_, kDilationW = kDilationW_;
    static constexpr int kChannels = kThreadChannels;
    static constexpr int kTaps = R * S;
    static constexpr bool kHasBias = kSumsBias;  // the gradient of the bias is the last value
    static constexpr int kValues = kChannels * kTaps + kHasBias;
    // Sums of a thread that are added up together, in as few turns as at most 32 make.
    static constexpr int kTurns = (kValues + 31) / 32;
    static constexpr int kAtOnce = kSpreadsTaps ? kTileColumns : (kValues + kTurns - 1) / kTurns;
    static constexpr int kColumnPitch = kTogether;
    static constexpr bool kInterleaved = kTogether > 1;
    static_assert(!kInterleaved || (kThreadChannels == 1 && !kSpreadsTaps));
    static constexpr bool kWholeRows = kTakesWholeRows;
    static_assert(!kWholeRows || (!kInterleaved && !kSpreadsTaps));
    static constexpr bool kChecksRows = kWholeRows && kPaddingH > 0;
    static constexpr int kStages = kTileStages;
    static constexpr int kThreads = kMostThreads, kBlocks = kResidentBlocks;  // of a multiprocessor

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
    static constexpr int kLead = kInterleaved ? 0 : ((-kPaddingW % kVector) + kVector) % kVector;
    static constexpr int kLeft = kLead - Columns::kFirst;  // columns before x's first

    // Whether threads of two pairs alternate: where those of one read every other vector of x.
    static constexpr bool kAlternates =
        !kSpreads && !kInterleaved && Columns::kAdvance % (2 * kVector) == 0;
};

// What the host packs for one call. A bundle is kChannels input channels and `bundle_filters`
// filters of one group; each pair of a bundle and a filter has its own threads. A block has several
// bundles only where each group is a single one, so that their planes follow one another in both
// tensors.
struct WeightProblem {
    std::int64_t images, groups;
    std::int64_t channels, filters;  // of a group
    std::int64_t x_size[2], y_size[2];
    std::int64_t x_strides[4], y_strides[4], w_strides[4];
    std::int64_t bundles;         // of a block
    std::int64_t bundle_filters;  // filters of a bundle
    std::int64_t part_size[2];    // rows and columns of dy that are in shared memory at once
    // Kept: threads down and across dy, each with one or more tiles below one another. Spread: runs
    // and tiles of taps.
    std::int64_t pair_threads[2];
    std::int64_t splits;  // parts that images and rows are cut into
    std::int64_t chain;  // between two compensated additions: kept, parts of dy; spread, rows of dy
    std::int64_t x_rows, x_row_pitch;  // of the tile of x in shared memory: rows, and columns
    std::int64_t x_plane_pitch,
        x_elements;            // elements from one plane of it to the next, and of all
    std::int64_t y_row_pitch;  // columns of the tile of dy
    std::int64_t threads;      // of a block
};

// How the work is cut, in numbers of parts.
struct WeightCut {
    int filter_blocks, channel_blocks;  // of a group
    int bundles, sets, bands[2];
    std::int64_t items;  // images times bands
    int share, longer;   // items of a split, and how many of the splits have one more

    // dy as it is loaded: where parts are planes without gaps, each plane is one row.
    struct Loaded {
        std::int64_t size[2], strides[4], row_pitch;
    } y;

    template <typename S>
    static WeightCut of(const WeightProblem& problem) {
        const auto parts = [](std::int64_t whole, std::int64_t part) {
            return static_cast<int>((whole + part - 1) / part);
        };
        WeightCut cut;
        cut.filter_blocks = parts(problem.filters, problem.bundle_filters);
        cut.channel_blocks = parts(problem.channels, S::kChannels);
        cut.bundles = static_cast<int>(problem.groups) * cut.filter_blocks * cut.channel_blocks;
        cut.sets = parts(cut.bundles, problem.bundles);
        cut.bands[0] = parts(problem.y_size[0], problem.part_size[0]);
        cut.bands[1] = parts(problem.y_size[1], problem.part_size[1]);
        cut.items = problem.images * cut.bands[0] * cut.bands[1];
        cut.share = static_cast<int>(cut.items / problem.splits);
        cut.longer = static_cast<int>(cut.items % problem.splits);
        const auto& size = problem.y_size;
        const auto& strides = problem.y_strides;
        cut.y = {{size[0], size[1]},
                 {strides[0], strides[1], strides[2], strides[3]},
                 problem.y_row_pitch};
        if (S::kWholeRows && cut.bands[0] == 1 && strides[2] == size[1] &&
            problem.y_row_pitch == size[1]) {
            const std::int64_t plane = size[0] * size[1];
            cut.y = {{1, plane}, {strides[0], strides[1], plane, 1}, plane};
        }
        return cut;
    }

    // The first channel and filter of a bundle, in its group.
    struct Bundle {
        int group, first_channel, first_filter;
    };

    template <typename S>
    __device__ Bundle bundle(const WeightProblem& problem, int index) const {
        const int block = index / channel_blocks;
        return {block / filter_blocks, index % channel_blocks * S::kChannels,
                block % filter_blocks * static_cast<int>(problem.bundle_filters)};
    }
};

// Rows of the tile of dy: of a plane that is smaller than a part, whole rows hold only what there
// is.
template <typename S>
__host__ __device__ int y_tile_rows(const WeightProblem& problem) {
    const auto rows = static_cast<int>(problem.part_size[0]);
    const auto height = static_cast<int>(problem.y_size[0]);
    return S::kWholeRows && height < rows ? height : rows;
}

// What one block sums: some bundles, of some items.
struct WeightShare {
    int split, first_item, items;
    WeightCut::Bundle bundle;  // the first one; others are those of the groups that follow
    int bundles;
    int x_planes, y_planes;  // that exist
    std::int64_t x, y;       // where the first ones begin

    template <typename S>
    static __device__ WeightShare of(const WeightProblem& problem, const WeightCut& cut,
                                     unsigned block) {
        WeightShare share;
        share.split = divide(block, cut.sets);
        share.first_item = share.split * cut.share + min(share.split, cut.longer);
        share.items = cut.share + (share.split < cut.longer ? 1 : 0);
        const int first = static_cast<int>(block) * static_cast<int>(problem.bundles);
        share.bundles = min(static_cast<int>(problem.bundles), cut.bundles - first);
        // Planes past a group's last channel or filter do not exist; a block then has one bundle.
        const auto bundle = share.bundle = cut.bundle<S>(problem, first);
        const std::int64_t channel = bundle.group * problem.channels + bundle.first_channel;
        const std::int64_t filter = bundle.group * problem.filters + bundle.first_filter;
        share.x_planes = static_cast<int>(min(std::int64_t{share.bundles} * S::kChannels,
                                              problem.groups * problem.channels - channel));
        share.y_planes = static_cast<int>(
            min(share.bundles * problem.bundle_filters, problem.groups * problem.filters - filter));
        share.x = channel * problem.x_strides[1];
        share.y = filter * problem.y_strides[1];
        return share;
    }
};

// Where an item's part of dy and the x that it meets lie in the tensors, for the planes of a block;
// and what of it exists.
struct WeightPlace {
    std::int64_t x, y;            // where the first elements are
    int x_row, x_column, x_rows;  // of x: what is in memory, which may begin outside
    int y_row, y_column;          // of dy
    int rows, columns;            // of dy, that exist

    template <typename S>
    static __device__ WeightPlace of(const WeightProblem& problem, const WeightCut& cut,
                                     const WeightShare& share, int item) {
        using Rows = typename S::Rows;
        const auto y_rows = static_cast<int>(problem.part_size[0]);
        const auto y_columns = static_cast<int>(problem.part_size[1]);
        auto rest = static_cast<unsigned>(share.first_item + item);
        const unsigned bands_across = cut.bands[1];
        const int image = divide(rest, cut.bands[0] * bands_across);
        const int band = divide(rest, bands_across);
        WeightPlace place;
        place.y_row = band * y_rows;
        place.y_column = static_cast<int>(rest) * y_columns;
        place.rows = min(y_rows, static_cast<int>(problem.y_size[0]) - place.y_row);
        place.columns = min(y_columns, static_cast<int>(problem.y_size[1]) - place.y_column);
        const int met = place.y_row * S::kStrideH - Rows::kOffset;
        const int met_rows = (y_rows / Rows::kTile - 1) * Rows::kAdvance + Rows::kExtent;
        place.x_row = S::kWholeRows ? max(met, 0) : met;
        place.x_rows = min(met + met_rows, static_cast<int>(problem.x_size[0])) - place.x_row;
        place.x_column =
            S::kWholeRows ? 0 : place.y_column * S::kStrideW - S::Columns::kOffset - S::kLead;
        place.x = share.x + image * problem.x_strides[0] + place.x_row * problem.x_strides[2] +
                  place.x_column * problem.x_strides[3];
        place.y = share.y + image * problem.y_strides[0] + place.y_row * problem.y_strides[2] +
                  place.y_column * problem.y_strides[3];
        return place;
    }
};

// Shared memory of a block: what its threads tell each other; totals in float64; then kStages times
// a tile of x and one of dy. While sums are added up, the sums of all threads lie in the place of
// the stages. Sizes in elements of T.
template <typename S>
struct WeightShared {
    struct Head {
        ptx::Barrier barriers[S::kStages];  // at which bulk copies to a stage arrive
        WeightShare share;
        WeightPlace places[3];  // of the last item, this one and the next
    };
    static constexpr int kHeadBytes = 256;
    static_assert(sizeof(Head) <= kHeadBytes);
    std::size_t totals_bytes;
    int y, stage;

    explicit WeightShared(const WeightProblem& problem) {
        using T = typename S::Value;
        const std::int64_t pairs = problem.bundles * problem.bundle_filters;
        const std::int64_t sums_bytes = S::kAtOnce * (problem.threads + 1) * sizeof(double);
        const std::int64_t sums = sums_bytes / static_cast<int>(S::kStages * sizeof(T));
        totals_bytes = (pairs * S::kValues * sizeof(double) + 15) / 16 * 16;
        y = static_cast<int>((problem.x_elements + 7) / 8 * 8);
        const std::int64_t both = y + pairs * y_tile_rows<S>(problem) * problem.y_row_pitch;
        stage = static_cast<int>(((both > sums ? both : sums) + 7) / 8 * 8);
    }
};

// Where a pair's value `index` belongs: an element of dw, or of db; nowhere if it is of a filter or
// channel that does not exist, or a bias gradient that is not this bundle's.
template <typename S, typename Store>
__device__ __forceinline__ void place_value(const WeightProblem& problem,
                                            const WeightCut::Bundle& bundle, int filter, int index,
                                            Store store) {
    const int k = bundle.first_filter + filter;
    const int c = bundle.first_channel + index / S::kTaps;
    if (k >= problem.filters) return;
    const std::int64_t channel = bundle.group * problem.filters + k;
    if (S::kHasBias && index == S::kValues - 1) {
        if (bundle.first_channel == 0) store(true, channel, channel);
        return;
    }
    if (c >= problem.channels) return;
    const int r = index % S::kTaps / S::kS, s = index % S::kS;
    const auto* strides = problem.w_strides;
    store(false, (channel * problem.channels + c) * S::kTaps + r * S::kS + s,
          channel * strides[0] + c * strides[1] + r * strides[2] + s * strides[3]);
}

// Sums a block's share. `partial` holds [split][dw contiguous, then db] in float64; with one split
// the results go to their tensors at once.
template <typename S>
__global__ void __launch_bounds__(S::kThreads, S::kBlocks)
    weight_gradient(const WeightProblem problem, const WeightCut cut, const WeightShared<S> parts,
                    const typename S::Value* __restrict__ upstream,
                    const typename S::Value* __restrict__ input,
                    typename S::Value* __restrict__ gradient,
                    typename S::Value* __restrict__ bias_gradient, double* __restrict__ partial,
                    RowPlan x_plan, RowPlan y_plan) {
    using T = typename S::Value;
    using Rows = typename S::Rows;
    using Columns = typename S::Columns;
    const int thread = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);

    auto& head = *shared_memory<typename WeightShared<S>::Head>();
    auto* totals = reinterpret_cast<double*>(shared_memory<unsigned char>() + parts.kHeadBytes);
    T* shared = reinterpret_cast<T*>(reinterpret_cast<unsigned char*>(totals) + parts.totals_bytes);
    const WeightShare& share = head.share;
    const int filters = static_cast<int>(problem.bundle_filters);

    // A thread's place: a pair of a bundle and a filter, and there its tile. With kept sums,
    // threads of the same rows of neighbouring pairs follow one another: they meet the same rows
    // that do not exist.
    const int down = static_cast<int>(problem.pair_threads[0]);
    const int across = static_cast<int>(problem.pair_threads[1]);
    const int pair_threads = down * across;
    const int all_pairs = static_cast<int>(problem.bundles) * filters;
    int of_pairs = S::kInterleaved ? thread / S::kColumnPitch : thread;
    if (S::kAlternates && all_pairs % 2 == 0) {
        const int of_two = thread % (2 * across);  // lines, of which threads take turns
        of_pairs += of_two % 2 * across + of_two / 2 - of_two;
    }
    const int line = of_pairs / across, my_column = of_pairs % across;
    const int my_pair = S::kInterleaved ? thread % S::kColumnPitch
                        : S::kSpreads   ? line / down
                                        : line % all_pairs;
    const int my_row = S::kInterleaved ? line : S::kSpreads ? line % down : line / all_pairs;
    const int of_pair = my_row * across + my_column;

    // What the tiles of x and dy are.
    const int pitch = S::kColumnPitch;
    const int x_row_pitch = static_cast<int>(problem.x_row_pitch) * pitch;
    const int y_row_pitch = static_cast<int>(problem.y_row_pitch) * pitch;
    const int x_plane_pitch = S::kInterleaved ? 1 : static_cast<int>(problem.x_plane_pitch);
    const int y_rows = static_cast<int>(problem.part_size[0]);
    const int y_plane_pitch = S::kInterleaved ? 1 : y_tile_rows<S>(problem) * y_row_pitch;
    const int height = static_cast<int>(problem.x_size[0]);
    const auto loader_of = [&](int planes, int rows, int columns, const std::int64_t (&size)[2],
                               const std::int64_t (&strides)[4], RowPlan plan) {
        if constexpr (S::kWholeRows) {
            return RowLoader<T>(static_cast<int>(size[1]), plan, strides[2], columns);
        } else {
            return TileLoader<T, S::kInterleaved>(
                TileShape{planes, rows, columns, static_cast<int>(size[0]),
                          static_cast<int>(size[1]), strides[1], strides[2], strides[3], plan.run});
        }
    };
    const auto x_loader = loader_of(
        static_cast<int>(problem.bundles) * S::kChannels, static_cast<int>(problem.x_rows),
        static_cast<int>(problem.x_row_pitch), problem.x_size, problem.x_strides, x_plan);
    const auto y_loader =
        loader_of(static_cast<int>(problem.bundles) * filters, y_rows,
                  static_cast<int>(cut.y.row_pitch), cut.y.size, cut.y.strides, y_plan);

    const auto load = [&](const WeightPlace& place, int stage_index) {
        T* stage = shared + stage_index * parts.stage;
        if constexpr (S::kWholeRows) {
            ptx::Barrier* barrier = head.barriers + stage_index;
            x_loader.load(stage + S::kLeft, x_plane_pitch, input + place.x, problem.x_strides[1],
                          share.x_planes, place.x_rows, barrier);
            y_loader.load(stage + parts.y, y_plane_pitch, upstream + place.y, problem.y_strides[1],
                          share.y_planes, min(place.rows, static_cast<int>(cut.y.size[0])),
                          barrier);
        } else {
            x_loader.load(stage, input + place.x, place.x_row, place.x_column, share.x_planes);
            y_loader.load(stage + parts.y, upstream + place.y, place.y_row, place.y_column,
                          share.y_planes);
        }
    };

    // Make the barriers and begin. One thread works out for all where the part after the next one
    // lies.
    int arrivals = 0;
    if constexpr (S::kWholeRows) {
        arrivals =
            RowLoader<T>::arrives_at_barrier(x_plan) + RowLoader<T>::arrives_at_barrier(y_plan);
    }
    if (thread == 0 && arrivals > 0) {
        for (int i = 0; i < S::kStages; ++i) ptx::mbarrier_init(head.barriers + i, arrivals);
        ptx::fence_mbarrier_init();
    }
    const auto find = [&](int item, int slot) {
        if (thread == 0 && item < share.items) {
            head.places[slot] = WeightPlace::of<S>(problem, cut, share, item);
        }
    };
    if (thread == 0) head.share = WeightShare::of<S>(problem, cut, blockIdx.x);
    find(0, 0);
    __syncthreads();
    const int items = share.items, pairs = share.bundles * filters;
    const bool computes = my_pair < pairs && my_row < down;
    if (items > 0) load(head.places[0], 0);
    find(1, 1);
    if constexpr (S::kWholeRows) {  // beside what is on its way
        for (int i = 0; i < S::kStages; ++i) {
            x_loader.template clear_sides<Columns::kZerosBefore, Columns::kZerosAfter>(
                shared + i * parts.stage + S::kLeft, x_plane_pitch,
                static_cast<int>(problem.bundles) * S::kChannels, static_cast<int>(problem.x_rows));
        }
    }

    using Mine = std::conditional_t<S::kSpreads, Spread<S>, Kept<S>>;
    Mine mine;
    const int chain = static_cast<int>(problem.chain);
    int stage = 0, parity = 0, slot = 0, parts_of_chain = 0;
    for (int done = 0; done < items; ++done) {
        const WeightPlace& place = head.places[slot];
        slot = slot == 2 ? 0 : slot + 1;
        ptx::cp_async_wait_all();
        if (arrivals > 0) ptx::mbarrier_wait(head.barriers + stage, parity);
        // The stage is full, and nobody reads the other one any more: copies may overwrite what has
        // been read without a fence.
        __syncthreads();
        T* x_tile = shared + stage * parts.stage;
        stage = (stage + 1) % S::kStages;
        if (stage == 0) parity ^= 1;
        if (S::kStages > 1 && done + 1 < items) load(head.places[slot], stage);
        find(done + 2, slot == 2 ? 0 : slot + 1);

        // Multiply.
        if (computes) {
            const T* x_plane = x_tile + my_pair / filters * S::kChannels * x_plane_pitch;
            const T* y_plane = x_tile + parts.y + my_pair * y_plane_pitch;
            if constexpr (S::kSpreads) {
                // Threads down are runs of columns, threads across are tiles of taps.
                const T* corner =
                    x_plane +
                    my_column / S::kTapColumns * Rows::kTile * S::kDilationH * x_row_pitch +
                    my_column % S::kTapColumns * Columns::kTile * S::kDilationW;
                mine.add(corner, x_row_pitch, y_plane, y_row_pitch, place.rows, place.columns,
                         my_row, chain);
                if constexpr (S::kHasBias) {
                    for (int i = of_pair; i < y_plane_pitch; i += pair_threads) {
                        mine.bias += Element<T>::widen(y_plane[i]);
                    }
                }
            } else {
                const int column = my_column * Columns::kTile;
#pragma unroll 1
                for (int row = my_row * Rows::kTile; row < place.rows; row += down * Rows::kTile) {
                    const int first_row = (place.y_row + row) * S::kStrideH;
                    mine.add(x_plane + (first_row - place.x_row) * x_row_pitch +
                                 my_column * Columns::kAdvance * pitch,
                             x_row_pitch, x_plane_pitch, first_row, height,
                             y_plane + row * y_row_pitch + column * pitch, y_row_pitch,
                             place.rows - row, place.columns - column);
                }
            }
        }
        if constexpr (S::kHasTotals && !S::kSpreads) {
            if (++parts_of_chain == chain) {
                mine.end_chain();
                parts_of_chain = 0;
            }
        }
        if (S::kStages == 1 && done + 1 < items) {
            __syncthreads();
            load(head.places[slot], 0);
        }
    }
    ptx::griddepcontrol_launch_dependents();  // add_parts begins, and waits for what follows
    auto* scratch = reinterpret_cast<double*>(shared);
    if constexpr (S::kSpreads) {
        add_spread(mine, scratch, totals, share.bundles, down);
    } else {
        add_threads(mine, scratch, totals, pairs, pair_threads,
                    computes ? my_pair * pair_threads + of_pair : -1);
    }

    // Hand the totals on.
    const std::int64_t count = problem.groups * problem.filters * problem.channels * S::kTaps;
    double* part = partial + share.split * (count + problem.groups * problem.filters);
#pragma unroll 1
    for (int i = thread; i < pairs * S::kValues; i += threads) {
        auto filter = static_cast<unsigned>(i / S::kValues);
        WeightCut::Bundle bundle = share.bundle;
        bundle.group += divide(filter, filters);
        place_value<S>(problem, bundle, static_cast<int>(filter), i % S::kValues,
                       [&](bool is_bias, std::int64_t number, std::int64_t place) {
                           if (problem.splits > 1) {
                               part[is_bias ? count + number : number] = totals[i];
                           } else {
                               (is_bias ? bias_gradient : gradient)[place] =
                                   Element<T>::narrow(static_cast<float>(totals[i]));
                           }
                       });
    }
}

inline constexpr int kAddThreads = 128;
inline constexpr int kAdders = 8;       // neighbouring threads that add the parts of one result
inline constexpr int kPartsAtOnce = 4;  // that a thread loads before it adds them

// Second stage: adds the splits' partial sums in a fixed order. What takes time is to wait for
// loads, so many are on their way at once. The workspace is small enough to count with 32 bits.
// Not __restrict__, which would let loads pass the wait for the first stage.
template <typename S>
__global__ void __launch_bounds__(kAddThreads)
    add_parts(const WeightProblem problem, const double* partial, typename S::Value* gradient,
              typename S::Value* bias_gradient) {
    using T = typename S::Value;
    const int filters = static_cast<int>(problem.groups * problem.filters);
    const int count = filters * static_cast<int>(problem.channels) * S::kTaps;
    const int thread = static_cast<int>(blockIdx.x * kAddThreads + threadIdx.x);
    const int index = thread / kAdders, adder = thread % kAdders;
    const bool exists = index < count + (bias_gradient == nullptr ? 0 : filters);
    const int splits = exists ? static_cast<int>(problem.splits) : 0;
    ptx::griddepcontrol_wait();
    double sum = 0;
#pragma unroll 1
    for (int first = adder; first < splits; first += kPartsAtOnce * kAdders) {
        double parts[kPartsAtOnce];
#pragma unroll
        for (int i = 0; i < kPartsAtOnce; ++i) {
            const int split = first + i * kAdders;
            parts[i] = split < splits ? partial[split * (count + filters) + index] : 0.0;
        }
#pragma unroll
        for (int i = 0; i < kPartsAtOnce; ++i) sum += parts[i];
    }
#pragma unroll
    for (int mask = 1; mask < kAdders; mask *= 2) sum += ptx::shuffle_xor(sum, mask);
    if (!exists || adder != 0) return;
    const T value = Element<T>::narrow(static_cast<float>(sum));
    if (index >= count) {
        bias_gradient[index - count] = value;
        return;
    }
    const auto* strides = problem.w_strides;
    const int tap = index % S::kTaps;
    auto channel = static_cast<unsigned>(index / S::kTaps);
    const int filter = divide(channel, static_cast<unsigned>(problem.channels));
    gradient[filter * strides[0] + channel * strides[1] + tap / S::kS * strides[2] +
             tap % S::kS * strides[3]] = value;
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
    const std::int64_t blocks = cut.sets * problem.splits;
    if (blocks > 0x7fffffff || cut.items > 0x7fffffff) return "depthwise: there are too many tiles";
    const std::int64_t row = problem.x_size[1] + S::Columns::kZerosBetween;
    if (S::kWholeRows && row > problem.x_row_pitch) return "depthwise: a tile's rows are too short";
    const WeightShared<S> parts(problem);
    const auto plan = [&](const T* tensor, const std::int64_t (&size)[2],
                          const std::int64_t (&strides)[4], std::int64_t rows) {
        const int run = longest_run<T>(tensor, S::kInterleaved ? problem.groups : size[1], strides,
                                       S::kInterleaved);
        return plan_rows<T>(static_cast<int>(size[1]), run, static_cast<int>(rows),
                            static_cast<int>(problem.threads));
    };
    const RowPlan x_plan = plan(input, problem.x_size, problem.x_strides,
                                problem.x_rows * problem.bundles * S::kChannels);
    const RowPlan y_plan = plan(
        upstream, cut.y.size, cut.y.strides,
        std::min(problem.part_size[0], cut.y.size[0]) * problem.bundles * problem.bundle_filters);
    const char* error = launch(
        weight_gradient<S>, dim3(static_cast<unsigned>(blocks)),
        dim3(static_cast<unsigned>(problem.threads)),
        parts.kHeadBytes + parts.totals_bytes + S::kStages * parts.stage * sizeof(T), stream,
        problem, cut, parts, upstream, input, gradient, bias_gradient, partial, x_plan, y_plan);
    if (error == nullptr && problem.splits > 1) {
        const std::int64_t filters = problem.groups * problem.filters;
        const std::int64_t count = filters * (problem.channels * S::kTaps + 1);
        error = launch_early(
            add_parts<S>,
            dim3(static_cast<unsigned>((kAdders * count + kAddThreads - 1) / kAddThreads)),
            dim3(kAddThreads), 0, stream, problem, static_cast<const double*>(partial), gradient,
            bias_gradient);
    }
    return error;
}

}  // namespace convsmith::depthwise
