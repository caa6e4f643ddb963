// The direct family: the plain sum of a 2D convolution and of its two gradients, for every kernel
// size, stride, padding, dilation, group count and tensor layout.
//
//   forward          y[n,k,p,q]  = b[k] + sum_{c,r,s} w[k,c,r,s] * x[n, c, h(p,r), w(q,s)]
//   input gradient   dx[n,c,h,w] =        sum_{k,r,s} w[k,c,r,s] * dy[n, k, p(h,r), q(w,s)]
//   weight gradient  dw[k,c,r,s] =        sum_{n,p,q} dy[n,k,p,q] * x[n, c, h(p,r), w(q,s)]
//   with h(p,r) = p * stride_h - padding_h + r * dilation_h, and likewise for w.
//
// All three are one contraction, out[m, column] = sum over terms of row(m, term) * patch(term,
// column): the patch operand is gathered from a source tensor in place, a term and a column each
// contributing a shift, and reads zero outside the source. Only what m, the columns and the terms
// mean differs, and `view_of` says so for each direction.
//
// A block of 128 threads computes kTileM x 128 outputs of one group, eight terms at a time, through
// two shared-memory stages; each thread keeps kTileM / 8 x 8 sums in registers. Sums are two-level:
// every `promote_tiles` stages the registers are added to a second set in shared memory, and what
// that addition rounds away is kept, so that a sum of any length errs like one of that many stages.
#pragma once

#include <climits>

#include "compensated.cuh"
#include "direct_view.cuh"
#include "element.cuh"
#include "ptx/load.cuh"

namespace convsmith::direct {

// What is compiled in; everything else is told at run time.
template <Direction kDirection, typename T, int kTileRows>
struct Specialisation {
    using Value = T;
    static constexpr Direction direction = kDirection;
    static constexpr int kTileM = kTileRows;
};

constexpr int kThreads = 128;
constexpr int kTileN = kThreads;  // while loading and storing, a thread owns a column
constexpr int kTileK = 8;
constexpr int kThreadN = 8;  // columns of a thread's register tile, in two runs of four
constexpr int kRun = 4;
constexpr int kTilesPerTable = kThreads / kTileK;

// Blocks a multiprocessor should hold: as many as their sums leave registers for.
template <typename Accumulator>
constexpr int kBlocksPerMultiprocessor = sizeof(Accumulator) == 8 ? 2 : 3;

// What the loaders must know of one term: where it lies in either operand, in bytes, and how far it
// shifts a column's window. A block works these out for kThreads terms at a time, a term a thread,
// so that no loader ever divides.
struct alignas(16) Term {
    std::int64_t source_bytes;
    int h_shift, w_shift;
};

constexpr int kNoRow = -1;             // a term past the end has no row operand ...
constexpr int kOutside = INT_MIN / 2;  // ... and its shift leads outside of every source

struct TermTable {
    Term terms[2][kThreads];
    std::int64_t row_bytes[2][kThreads];

    template <typename T>
    __device__ void fill(const View& view, std::int64_t batch, std::int64_t term,
                         std::int64_t term_end) {
        const int half = static_cast<int>(batch % 2);
        if (term >= term_end) {
            terms[half][threadIdx.x] = {0, kOutside, kOutside};
            row_bytes[half][threadIdx.x] = kNoRow;
            return;
        }
        const Place at = place_of(term, view.axes[0].terms, view.axes[1].terms);
        const int h_shift = at.vertical * view.axes[0].term_step;
        const int w_shift = at.horizontal * view.axes[1].term_step;
        const std::int64_t source = at.outer * view.source.term + h_shift * view.source.spatial[0] +
                                    w_shift * view.source.spatial[1];
        const std::int64_t row =
            at.outer * view.row.term +
            (view.axes[0].row_first + std::int64_t{at.vertical} * view.axes[0].row_step) *
                view.row.spatial[0] +
            (view.axes[1].row_first + std::int64_t{at.horizontal} * view.axes[1].row_step) *
                view.row.spatial[1];
        const auto size = static_cast<std::int64_t>(sizeof(T));
        terms[half][threadIdx.x] = {source * size, h_shift, w_shift};
        row_bytes[half][threadIdx.x] = row * size;
    }
};

// The patch operand's side of a thread: one column of the tile, eight terms at a time.
template <typename T>
struct PatchLoader {
    std::uintptr_t window;  // address of the window's start, which may lie outside the source
    int h, w;               // the same as coordinates
    unsigned height, width;
    T otherwise;  // zero, or one in the column whose sums are the bias gradient
    T values[kTileK];

    __device__ PatchLoader(const View& view, const T* source, std::int64_t column, bool has_ones)
        : height(static_cast<unsigned>(view.axes[0].extent)),
          width(static_cast<unsigned>(view.axes[1].extent)) {
        const std::int64_t columns = view.columns();
        const Place at = place_of(column, view.axes[0].columns, view.axes[1].columns);
        h = view.axes[0].first + at.vertical * view.axes[0].column_step;
        w = view.axes[1].first + at.horizontal * view.axes[1].column_step;
        const std::int64_t offset =
            at.outer * view.source.column + h * view.source.spatial[0] + w * view.source.spatial[1];
        window = reinterpret_cast<std::uintptr_t>(source) + offset * sizeof(T);
        otherwise = Element<T>::narrow(has_ones && column == columns ? 1 : 0);
        if (column >= columns) h = kOutside;
    }

    __device__ __forceinline__ void load(const Term* terms) {
#pragma unroll
        for (int k = 0; k < kTileK; ++k) {
            const Term term = terms[k];
            const bool readable = static_cast<unsigned>(h + term.h_shift) < height &&
                                  static_cast<unsigned>(w + term.w_shift) < width;
            values[k] = ptx::load_if(
                readable, reinterpret_cast<const T*>(window + term.source_bytes), otherwise);
        }
    }

    template <typename Accumulator>
    __device__ __forceinline__ void store(Accumulator (&stage)[kTileK][kTileN]) const {
#pragma unroll
        for (int k = 0; k < kTileK; ++k) stage[k][threadIdx.x] = Element<T>::widen(values[k]);
    }
};

// The row operand's side of a thread: one term of eight, and every sixteenth row of the tile. Eight
// neighbouring threads read eight neighbouring terms, whole sectors where the terms are contiguous.
template <typename T, int kTileM>
struct RowLoader {
    static constexpr int kRowsApart = kThreads / kTileK;
    static constexpr int kCount = (kTileM + kRowsApart - 1) / kRowsApart;

    std::uintptr_t row;     // address of this thread's first row
    std::int64_t row_step;  // bytes from one of its rows to the next
    int rows;               // of this tile, counted from this thread's first
    T values[kCount];

    __device__ RowLoader(const View& view, const T* operand, std::int64_t first_row) {
        const std::int64_t m = first_row + threadIdx.x / kTileK;
        const auto size = static_cast<std::int64_t>(sizeof(T));
        row = reinterpret_cast<std::uintptr_t>(operand) + m * view.row.m * size;
        row_step = kRowsApart * view.row.m * size;
        rows = static_cast<int>(min(view.rows - m, std::int64_t{kTileM}));
    }

    __device__ __forceinline__ void load(const std::int64_t* row_bytes) {
        const std::int64_t offset = row_bytes[threadIdx.x % kTileK];
#pragma unroll
        for (int i = 0; i < kCount; ++i) {
            const bool readable = offset != kNoRow && i * kRowsApart < rows;
            values[i] =
                ptx::load_if(readable, reinterpret_cast<const T*>(row + i * row_step + offset),
                             Element<T>::narrow(0));
        }
    }

    template <typename Accumulator>
    __device__ __forceinline__ void store(Accumulator (&stage)[kTileK][kTileM + 4]) const {
#pragma unroll
        for (int i = 0; i < kCount; ++i) {
            const int m = static_cast<int>(threadIdx.x) / kTileK + i * kRowsApart;
            if (kTileM % kRowsApart == 0 || m < kTileM) {
                stage[threadIdx.x % kTileK][m] = Element<T>::widen(values[i]);
            }
        }
    }
};

// A thread's register tile: kThreadM neighbouring rows by two runs of four columns. A warp covers
// 4 x 8 threads, so that its reads of both operands are broadcasts without bank conflicts.
template <typename Accumulator, int kTileM>
struct RegisterTile {
    static constexpr int kThreadM = kTileM / 8;
    static constexpr int kRowRun = kThreadM < kRun ? kThreadM : kRun;
    static constexpr int kRunsPerRow = kThreadN / kRun;
    static constexpr int kRuns = kThreadM * kRunsPerRow;
    using Run = Vector<Accumulator, kRun>;

    Accumulator sums[kThreadM][kThreadN] = {};
    int first_row, first_column;

    __device__ RegisterTile() {
        const int lane = static_cast<int>(threadIdx.x) % 32;
        const int warp = static_cast<int>(threadIdx.x) / 32;
        first_row = (warp / 2 * 4 + lane / 8) * kThreadM;
        first_column = (warp % 2 * 8 + lane % 8) * kRun;
    }

    static __device__ __forceinline__ int column_offset(int run) { return run * (kTileN / 2); }

    __device__ __forceinline__ Accumulator& of_run(int run, int v) {
        return sums[run / kRunsPerRow][run % kRunsPerRow * kRun + v];
    }

    __device__ __forceinline__ void multiply(const Accumulator (&row)[kTileK][kTileM + 4],
                                             const Accumulator (&patch)[kTileK][kTileN]) {
#pragma unroll
        for (int k = 0; k < kTileK; ++k) {
            Vector<Accumulator, kRowRun> a[kThreadM / kRowRun];
            Run b[kRunsPerRow];
#pragma unroll
            for (int i = 0; i < kThreadM / kRowRun; ++i) {
                a[i] = *reinterpret_cast<const Vector<Accumulator, kRowRun>*>(
                    &row[k][first_row + i * kRowRun]);
            }
#pragma unroll
            for (int j = 0; j < kRunsPerRow; ++j) {
                b[j] = *reinterpret_cast<const Run*>(&patch[k][first_column + column_offset(j)]);
            }
#pragma unroll
            for (int i = 0; i < kThreadM; ++i) {
#pragma unroll
                for (int j = 0; j < kThreadN; ++j) {
                    sums[i][j] += a[i / kRowRun].values[i % kRowRun] * b[j / kRun].values[j % kRun];
                }
            }
        }
    }

    // Adds the sums to the second set. What rounding loses of each addition starts the next sum, so
    // that the length of the second chain costs no accuracy.
    __device__ __forceinline__ void promote(Run (*promoted)[kThreads], bool first) {
#pragma unroll
        for (int run = 0; run < kRuns; ++run) {
            Run& second = promoted[run][threadIdx.x];
            Run total = first ? Run{} : second;
#pragma unroll
            for (int v = 0; v < kRun; ++v) add_compensated(total.values[v], of_run(run, v));
            second = total;
        }
    }

    __device__ __forceinline__ void add(const Run (*promoted)[kThreads]) {
#pragma unroll
        for (int run = 0; run < kRuns; ++run) {
            const Run second = promoted[run][threadIdx.x];
#pragma unroll
            for (int v = 0; v < kRun; ++v) of_run(run, v) += second.values[v];
        }
    }

    __device__ __forceinline__ void store(Accumulator (&out)[kTileM][kTileN]) {
#pragma unroll
        for (int run = 0; run < kRuns; ++run) {
            Run values;
#pragma unroll
            for (int v = 0; v < kRun; ++v) values.values[v] = of_run(run, v);
            const int row = first_row + run / kRunsPerRow;
            const int column = first_column + column_offset(run % kRunsPerRow);
            *reinterpret_cast<Run*>(&out[row][column]) = values;
        }
    }
};

// Shared memory of a block. The padding of `row` keeps its transposing stores free of conflicts.
template <typename Accumulator, int kTileM>
struct Shared {
    View view;  // the same for every thread, and too large for its registers
    TermTable table;
    alignas(16) Accumulator row[2][kTileK][kTileM + 4];
    alignas(16) Accumulator patch[2][kTileK][kTileN];
    union {
        Vector<Accumulator, kRun> promoted[kTileM / kRun][kThreads];  // a thread's own second sums
        alignas(16) Accumulator out[kTileM][kTileN];                  // the finished tile
    };
};

// Where a block stands in the grid: the tile of rows is the fastest, so that blocks which run side
// by side read the same patches.
struct BlockPlace {
    std::int64_t row_tile, column_tile, split, phase, group;

    __device__ BlockPlace(std::int64_t row_tiles, std::int64_t column_tiles, std::int64_t splits,
                          std::int64_t phases) {
        std::int64_t index = blockIdx.x;
        auto take = [&index](std::int64_t extent) {
            const std::int64_t rest = divide(index, extent);
            const std::int64_t place = index - rest * extent;
            index = rest;
            return place;
        };
        row_tile = take(row_tiles);
        column_tile = take(column_tiles);
        split = take(splits);
        phase = take(phases);
        group = index;
    }
};

// Tiles of rows and columns, and phases, of one group; shared by the launch and the kernel.
template <typename S>
struct Tiling {
    std::int64_t rows, columns, row_tiles, column_tiles, phases;

    __host__ __device__ Tiling(const Problem& problem, bool has_ones) {
        constexpr Direction kDirection = S::direction;
        phases = 1;
        if constexpr (kDirection == Direction::kForward) {
            rows = problem.K;
            columns = problem.N * problem.P * problem.Q;
        } else if constexpr (kDirection == Direction::kInputGradient) {
            rows = problem.C;
            phases = problem.stride[0] * problem.stride[1];
            columns = problem.N * ((problem.H + problem.stride[0] - 1) / problem.stride[0]) *
                      ((problem.W + problem.stride[1] - 1) / problem.stride[1]);
        } else {
            rows = problem.K;
            columns = problem.C * problem.R * problem.S + (has_ones ? 1 : 0);
        }
        row_tiles = (rows + S::kTileM - 1) / S::kTileM;
        column_tiles = (columns + kTileN - 1) / kTileN;
    }
};

// The contraction. `bias` (forward) is added to every row; `bias_gradient` (weight gradient) takes
// the sums of the column of ones. With more than one split, sums go to `partial`, contiguous
// [split][group][row][column], instead of `out` and `bias_gradient`.
template <typename S>
__global__ void __launch_bounds__(
    kThreads, kBlocksPerMultiprocessor<typename Element<typename S::Value>::Accumulator>)
    contract(const Problem problem, const typename S::Value* __restrict__ row_operand,
             const typename S::Value* __restrict__ source_operand,
             const typename S::Value* __restrict__ bias, typename S::Value* __restrict__ out,
             typename S::Value* __restrict__ bias_gradient,
             typename Element<typename S::Value>::Accumulator* __restrict__ partial) {
    using T = typename S::Value;
    using Accumulator = typename Element<T>::Accumulator;
    constexpr int kTileM = S::kTileM;
    auto& shared = *shared_memory<Shared<Accumulator, kTileM>>();

    // Find this block's tile and its share of the terms.
    const bool has_ones = bias_gradient != nullptr;
    const Tiling<S> tiling(problem, has_ones);
    const BlockPlace block(tiling.row_tiles, tiling.column_tiles, problem.splits, tiling.phases);
    const View view = view_of<S::direction>(problem, static_cast<int>(block.phase));
    if (threadIdx.x == 0) shared.view = view;  // for when its registers are needed for sums
    const std::int64_t first_row = block.row_tile * kTileM;
    const std::int64_t column = block.column_tile * kTileN + threadIdx.x;
    if (block.column_tile * kTileN >= view.columns() + has_ones) return;  // a smaller phase
    const std::int64_t all_tiles = (view.terms() + kTileK - 1) / kTileK;
    const std::int64_t first_tile = divide(all_tiles * block.split, problem.splits);
    const std::int64_t tiles = divide(all_tiles * (block.split + 1), problem.splits) - first_tile;
    const std::int64_t term_end = min(view.terms(), (first_tile + tiles) * kTileK);

    PatchLoader<T> patch(view, source_operand + block.group * view.source_group, column, has_ones);
    RowLoader<T, kTileM> row(view, row_operand + block.group * view.row_group, first_row);
    RegisterTile<Accumulator, kTileM> tile;
    const auto fill_table = [&](const View& in_view, std::int64_t batch) {
        const std::int64_t term = (first_tile + batch * kTilesPerTable) * kTileK + threadIdx.x;
        shared.table.template fill<T>(in_view, batch, term, term_end);
    };
    const auto load = [&](std::int64_t index) {
        const std::int64_t half = index / kTilesPerTable % 2;
        const std::int64_t place = index % kTilesPerTable * kTileK;
        patch.load(shared.table.terms[half] + place);
        row.load(shared.table.row_bytes[half] + place);
    };

    // Fill the first stage.
    fill_table(view, 0);
    __syncthreads();
    if (tiles > 0) {
        load(0);
        patch.store(shared.patch[0]);
        row.store(shared.row[0]);
    }

    // Multiply one stage while the next one is on its way through registers.
    int stage = 0;
    int until_promotion = static_cast<int>(problem.promote_tiles);
    bool promoted = false;
    for (std::int64_t index = 0; index < tiles; ++index) {
        __syncthreads();  // this stage is filled, and nobody reads the other one any more
        const bool more = index + 1 < tiles;
        if (more) load(index + 1);
        if ((index + 2) % kTilesPerTable == 0) {
            fill_table(shared.view, (index + 2) / kTilesPerTable);
        }
        tile.multiply(shared.row[stage], shared.patch[stage]);
        if (--until_promotion == 0 && more) {
            tile.promote(shared.promoted, !promoted);
            promoted = true;
            until_promotion = static_cast<int>(problem.promote_tiles);
        }
        stage ^= 1;
        if (more) {
            patch.store(shared.patch[stage]);
            row.store(shared.row[stage]);
        }
    }

    // Bring the tile into columns again, so that a warp stores neighbouring outputs.
    if (promoted) tile.add(shared.promoted);
    __syncthreads();  // everyone has read its promoted sums, which share this memory
    tile.store(shared.out);
    __syncthreads();

    // Store the column this thread owns.
    const View& kept = shared.view;
    const int rows = static_cast<int>(min(kept.rows - first_row, std::int64_t{kTileM}));
    if constexpr (S::direction == Direction::kWeightGradient) {
        if (problem.splits > 1) {
            if (column >= tiling.columns) return;
            partial += ((block.split * problem.groups + block.group) * kept.rows + first_row) *
                           tiling.columns +
                       column;
            for (int m = 0; m < rows; ++m) partial[m * tiling.columns] = shared.out[m][threadIdx.x];
            return;
        }
        if (has_ones && column == kept.columns()) {
            bias_gradient += block.group * kept.rows + first_row;
            for (int m = 0; m < rows; ++m) {
                bias_gradient[m] = Element<T>::narrow(shared.out[m][threadIdx.x]);
            }
        }
    }
    if (column >= kept.columns()) return;
    const Place at = place_of(column, kept.axes[0].columns, kept.axes[1].columns);
    const std::int64_t h = kept.axes[0].out_first + at.vertical * kept.axes[0].out_step;
    const std::int64_t w = kept.axes[1].out_first + at.horizontal * kept.axes[1].out_step;
    out += block.group * kept.out_group + first_row * kept.out.m + at.outer * kept.out.column +
           h * kept.out.spatial[0] + w * kept.out.spatial[1];
    if (bias != nullptr) bias += block.group * kept.rows + first_row;
    for (int m = 0; m < rows; ++m) {
        Accumulator value = shared.out[m][threadIdx.x];
        if (bias != nullptr) value += Element<T>::widen(bias[m]);
        out[m * kept.out.m] = Element<T>::narrow(value);
    }
}

constexpr int kReduceThreads = 256;

// Weight gradient, second stage: adds the splits' partial sums in a fixed order, in float64.
template <typename S>
__global__ void __launch_bounds__(kReduceThreads)
    add_splits(const Problem problem,
               const typename Element<typename S::Value>::Accumulator* __restrict__ partial,
               typename S::Value* __restrict__ weight_gradient,
               typename S::Value* __restrict__ bias_gradient) {
    using T = typename S::Value;
    const Tiling<S> tiling(problem, bias_gradient != nullptr);
    const std::int64_t count = problem.groups * tiling.rows * tiling.columns;
    const std::int64_t index = std::int64_t{blockIdx.x} * kReduceThreads + threadIdx.x;
    if (index >= count) return;
    double sum = 0;
    for (std::int64_t split = 0; split < problem.splits; ++split) {
        sum += partial[split * count + index];
    }
    const T value = Element<T>::narrow(static_cast<typename Element<T>::Accumulator>(sum));
    const std::int64_t k = divide(index, tiling.columns);  // over all groups
    const std::int64_t column = index - k * tiling.columns;
    if (column == problem.C * problem.R * problem.S) {
        bias_gradient[k] = value;
        return;
    }
    const Place at = place_of(column, static_cast<int>(problem.R), static_cast<int>(problem.S));
    const auto* strides = problem.w_strides;
    weight_gradient[k * strides[0] + at.outer * strides[1] + at.vertical * strides[2] +
                    at.horizontal * strides[3]] = value;
}

// Launches the kernels of one direction. The addresses are
//   forward          x, w, b or 0, y, 0
//   input gradient   dy, w, dx, 0
//   weight gradient  dy, x, dw, db or 0, workspace or 0 (splits partial sums of dw and db)
template <typename S>
const char* run(const void* packed, std::size_t packed_bytes, const std::uintptr_t* addresses,
                std::size_t address_count, std::uintptr_t stream) {
    using T = typename S::Value;
    using Accumulator = typename Element<T>::Accumulator;
    constexpr bool kIsForward = S::direction == Direction::kForward;
    constexpr bool kIsWeightGradient = S::direction == Direction::kWeightGradient;
    constexpr bool kIsInputGradient = S::direction == Direction::kInputGradient;
    constexpr std::size_t kAddresses = kIsInputGradient ? 4 : 5;
    if (packed_bytes != sizeof(Problem)) return "direct: the problem has another size";
    if (address_count != kAddresses) return "direct: another number of addresses was expected";
    const Problem problem = *static_cast<const Problem*>(packed);

    const auto* first = reinterpret_cast<const T*>(addresses[0]);
    const auto* second = reinterpret_cast<const T*>(addresses[1]);
    const auto* row = kIsWeightGradient ? first : second;
    const auto* source = kIsWeightGradient ? second : first;
    const auto* bias = kIsForward ? reinterpret_cast<const T*>(addresses[2]) : nullptr;
    auto* out = reinterpret_cast<T*>(addresses[kIsForward ? 3 : 2]);
    auto* bias_gradient = kIsWeightGradient ? reinterpret_cast<T*>(addresses[3]) : nullptr;
    auto* partial = kIsWeightGradient ? reinterpret_cast<Accumulator*>(addresses[4]) : nullptr;

    const Tiling<S> tiling(problem, bias_gradient != nullptr);
    const std::int64_t blocks =
        tiling.row_tiles * tiling.column_tiles * problem.splits * tiling.phases * problem.groups;
    if (blocks == 0) return nullptr;
    if (blocks > 0x7fffffff) return "direct: the grid is too large";
    const char* error = launch(contract<S>, dim3(static_cast<unsigned>(blocks)), dim3(kThreads),
                               sizeof(Shared<Accumulator, S::kTileM>), stream, problem, row, source,
                               bias, out, bias_gradient, partial);
    if constexpr (kIsWeightGradient) {
        if (error == nullptr && problem.splits > 1) {
            const std::int64_t count = problem.groups * tiling.rows * tiling.columns;
            const auto reduce_blocks =
                static_cast<unsigned>((count + kReduceThreads - 1) / kReduceThreads);
            error = launch(add_splits<S>, dim3(reduce_blocks), dim3(kReduceThreads), 0, stream,
                           problem, static_cast<const Accumulator*>(partial), out, bias_gradient);
        }
    }
    return error;
}

}  // namespace convsmith::direct
