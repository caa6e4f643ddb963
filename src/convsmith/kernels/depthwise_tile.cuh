// Tiles of tensors on their way between global and shared memory, for any strides.
//
// Who moves what is worked out once for each thread and then holds for every tile: a block goes
// over many tiles of one shape, and divisions would cost more than the rest.
#pragma once

#include "element.cuh"
#include "ptx/bulk_copy.cuh"
#include "ptx/cp_async.cuh"

namespace convsmith::depthwise {

// Nested indices, the last one fastest, that advance by a fixed distance without dividing.
template <int kDigits>
struct Odometer {
    int at[kDigits];
    int step[kDigits];
    int extent[kDigits];

    __device__ Odometer(const int (&extents)[kDigits], int start, int distance) {
#pragma unroll
        for (int i = kDigits - 1; i > 0; --i) {
            extent[i] = extents[i];
            at[i] = start % extents[i];
            step[i] = distance % extents[i];
            start /= extents[i];
            distance /= extents[i];
        }
        extent[0] = extents[0];
        at[0] = start;
        step[0] = distance;
    }

    __device__ __forceinline__ bool more() const { return at[0] < extent[0]; }

    __device__ __forceinline__ void advance() {
#pragma unroll
        for (int i = 0; i < kDigits; ++i) at[i] += step[i];
#pragma unroll
        for (int i = kDigits - 1; i > 0; --i) {
            if (at[i] >= extent[i]) {
                at[i] -= extent[i];
                ++at[i - 1];
            }
        }
    }
};

// Moves one run of elements; 16-bit ones that come alone are too small for cp.async.
template <int kElements, typename T>
__device__ __forceinline__ void move(T* shared, const T* global, bool readable) {
    constexpr int kBytes = kElements * sizeof(T);
    if constexpr (kBytes >= 4) {
        ptx::cp_async<kBytes>(shared, global, readable);
    } else {
        *shared = readable ? *global : Element<T>::narrow(0);
    }
}

// How a tensor's rows are loaded: each by the copy engine (is_bulk), or `run` neighbouring elements
// at once by `across` threads.
struct RowPlan {
    int run, across;
    bool is_bulk;
};

// The plan that takes `threads` the fewest turns for `rows` rows of `width` elements. Threads of a
// warp that have nothing to do cost as much as others; warps that have nothing to do cost nothing.
// The copy engine takes rows of whole vectors, where they are long: giving it one takes a warp
// about ten instructions.
template <typename T>
RowPlan plan_rows(int width, int run, int rows, int threads) {
    constexpr int kWarp = 32, kLeastAcross = 8, kLeastBulkBytes = 512, kBytes = sizeof(T);
    const int runs = width / run;
    RowPlan best{run, 1, run * kBytes == 16 && width * kBytes >= kLeastBulkBytes};
    double least_turns = 0;
    for (int across = threads & -threads; across >= 1; across /= 2) {
        if (across < kLeastAcross && across < runs && best.across > 1) break;
        const int rest = runs % across;
        double steps = runs / across;
        if (rest > 0) {
            steps += across > kWarp
                         ? static_cast<double>((rest + kWarp - 1) / kWarp * kWarp) / across
                         : 1;
        }
        const int at_once = threads / across;
        const double turns = steps * ((rows + at_once - 1) / at_once);
        if (least_turns == 0 || turns < least_turns) {
            best.across = across;
            least_turns = turns;
        }
    }
    return best;
}

// A thread's share of loading whole rows of planes whose columns are contiguous; nothing is
// checked, for all of them exist. Some neighbouring threads take the runs of a row, others other
// rows; of rows that the copy engine brings, each warp takes some.
template <typename T>
class RowLoader {
  public:
    // Rows lie row_pitch elements apart in shared memory.
    __device__ RowLoader(int width, RowPlan plan, std::int64_t row_stride, int row_pitch)
        : width_(width),
          run_(plan.run),
          row_pitch_(row_pitch),
          is_bulk_(arrives_at_barrier(plan)),
          row_stride_(row_stride) {
        const int thread = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
        first_column_ = thread % plan.across * run_;
        column_step_ = plan.across * run_;
        first_row_ = thread / plan.across;
        row_step_ = threads / plan.across;
    }

    // Whether rows arrive at a barrier, once a load; else cp_async_wait_all waits for them.
    static __device__ __forceinline__ bool arrives_at_barrier(RowPlan plan) {
        return ptx::kHasBulkCopies && plan.is_bulk;
    }

    // Begins to load `rows` rows of each of `planes` planes. `tile` and `from` are where the first
    // column of the first row is.
    __device__ __forceinline__ void load(T* tile, int plane_pitch, const T* from,
                                         std::int64_t plane_stride, int planes, int rows,
                                         ptx::Barrier* barrier) const {
        if constexpr (ptx::kHasBulkCopies) {
            if (is_bulk_ && threadIdx.x == 0) {
                ptx::mbarrier_arrive_expect_tx(barrier, planes * rows * width_ * kBytes);
            }
        }
        // Planes that follow one another like rows are one.
        if (plane_pitch == rows * row_pitch_ && plane_stride == rows * row_stride_) {
            rows *= planes;
            planes = 1;
        }
        for (int i = 0; i < planes; ++i) {
            load_plane(tile, from, rows, barrier);
            tile += plane_pitch;
            from += plane_stride;
        }
    }

    // Puts zeros before and after each of `rows` rows, where loads leave them alone.
    template <int kLeftZeros, int kRightZeros>
    __device__ __forceinline__ void clear_sides(T* tile, int rows) const {
        if (kLeftZeros + kRightZeros == 0) return;
        const int threads = static_cast<int>(blockDim.x);
        T* first = tile + static_cast<int>(threadIdx.x) * row_pitch_;
        for (int row = static_cast<int>(threadIdx.x); row < rows; row += threads) {
#pragma unroll
            for (int i = 1; i <= kLeftZeros; ++i) first[-i] = Element<T>::narrow(0);
#pragma unroll
            for (int i = 0; i < kRightZeros; ++i) first[width_ + i] = Element<T>::narrow(0);
            first += threads * row_pitch_;
        }
    }

  private:
    static constexpr int kBytes = sizeof(T);
    static constexpr int kMost = 16 / kBytes;

    __device__ __forceinline__ void load_plane(T* tile, const T* from, int rows,
                                               ptx::Barrier* barrier) const {
        if constexpr (ptx::kHasBulkCopies) {
            if (is_bulk_) {
                constexpr unsigned kWarp = 32;
                if (threadIdx.x % kWarp != 0) return;
                for (int row = static_cast<int>(threadIdx.x / kWarp); row < rows;
                     row += static_cast<int>(blockDim.x / kWarp)) {
                    ptx::cp_async_bulk(tile + row * row_pitch_, from + row * row_stride_,
                                       width_ * kBytes, barrier);
                }
                return;
            }
        }
        if (run_ == kMost) {
            load_runs<kMost>(tile, from, rows);
        } else if (run_ == kMost / 2) {
            load_runs<kMost / 2>(tile, from, rows);
        } else if (kMost > 4 && run_ == kMost / 4) {
            load_runs<kMost / 4>(tile, from, rows);
        } else {
            load_runs<1>(tile, from, rows);
        }
    }

    template <int kElements>
    __device__ __forceinline__ void load_runs(T* tile, const T* corner, int rows) const {
        const std::int64_t from_step = row_step_ * row_stride_;
        for (int column = first_column_; column < width_; column += column_step_) {
            const T* from = corner + first_row_ * row_stride_ + column;
            T* to = tile + first_row_ * row_pitch_ + column;
#pragma unroll 2
            for (int row = first_row_; row < rows; row += row_step_) {
                move<kElements>(to, from, true);
                from += from_step;
                to += row_step_ * row_pitch_;
            }
        }
    }

    int width_, run_, row_pitch_;
    bool is_bulk_;
    int first_column_, column_step_, first_row_, row_step_;
    std::int64_t row_stride_;
};

// What a tile is: a part of some planes of a tensor. Where it reaches outside of them it is zero.
// In shared memory planes lie one after another, or (kInterleaved) element by element, as in a
// channels_last tensor.
struct TileShape {
    int planes, rows, columns;
    int height, width;                                     // of the tensor's planes
    std::int64_t plane_stride, row_stride, column_stride;  // in the tensor
    int run;  // neighbouring elements that move at once: columns, or planes of interleaved ones
};

// A thread's share of loading tiles of one shape. A line is a row of a plane, or what all
// interleaved planes have at one pixel; some neighbouring threads take the runs of a line, others
// other lines.
template <typename T, bool kInterleaved>
class TileLoader {
  public:
    __device__ explicit TileLoader(const TileShape& shape)
        : height_(shape.height),
          width_(shape.width),
          run_(shape.run),
          outer_extent_(kInterleaved ? shape.rows : shape.planes),
          inner_extent_(kInterleaved ? shape.columns : shape.rows) {
        const int thread = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
        const int elements = kInterleaved ? shape.planes : shape.columns;
        runs_ = elements / run_;
        across_ = threads & -threads;
        while (across_ > 1 && (runs_ + across_ - 1) / across_ * across_ > runs_ + runs_ / 8) {
            across_ /= 2;
        }
        first_run_ = thread % across_;
        const int line = thread / across_, lines = threads / across_;
        outer_ = line / inner_extent_;
        inner_ = line % inner_extent_;
        outer_step_ = lines / inner_extent_;
        inner_step_ = lines % inner_extent_;
        to_ = line * elements;
        to_step_ = lines * elements;
        const std::int64_t outer = kInterleaved ? shape.row_stride : shape.plane_stride;
        const std::int64_t inner = kInterleaved ? shape.column_stride : shape.row_stride;
        run_stride_ = kInterleaved ? 1 : static_cast<int>(shape.column_stride);
        from_ = outer_ * outer + inner_ * inner;
        from_step_ = outer_step_ * outer + inner_step_ * inner;
        from_carry_ = outer - inner_extent_ * inner;
    }

    // Begins to load the tile that begins at `from`, row `first_row` and column `first_column` of
    // its planes, both of which may lie outside. Only `planes` of its planes exist.
    __device__ __forceinline__ void load(T* shared, const T* from, int first_row, int first_column,
                                         int planes) const {
        constexpr int kMost = 16 / sizeof(T);
        if (run_ == kMost) {
            load_runs<kMost>(shared, from, first_row, first_column, planes);
        } else if (run_ == kMost / 2) {
            load_runs<kMost / 2>(shared, from, first_row, first_column, planes);
        } else if (kMost > 4 && run_ == kMost / 4) {
            load_runs<kMost / 4>(shared, from, first_row, first_column, planes);
        } else {
            load_runs<1>(shared, from, first_row, first_column, planes);
        }
    }

  private:
    template <int kElements>
    __device__ __forceinline__ void load_runs(T* shared, const T* corner, int first_row,
                                              int first_column, int planes) const {
        for (int run = first_run_; run < runs_; run += across_) {
            const int element = run * kElements;
            const bool run_exists =
                kInterleaved ? element < planes : is_within(first_column + element, width_);
            const T* from = corner + from_ + element * run_stride_;
            T* to = shared + to_ + element;
            const int outer_extent = kInterleaved ? outer_extent_ : planes;
            int outer = outer_, inner = inner_;
            while (outer < outer_extent) {
                const bool line_exists = kInterleaved ? is_within(first_row + outer, height_) &&
                                                            is_within(first_column + inner, width_)
                                                      : is_within(first_row + inner, height_);
                move<kElements>(to, from, run_exists && line_exists);
                to += to_step_;
                from += from_step_;
                outer += outer_step_;
                inner += inner_step_;
                if (inner >= inner_extent_) {
                    inner -= inner_extent_;
                    ++outer;
                    from += from_carry_;
                }
            }
        }
    }

    static __device__ __forceinline__ bool is_within(int place, int extent) {
        return static_cast<unsigned>(place) < static_cast<unsigned>(extent);
    }

    int height_, width_, run_, runs_, run_stride_;
    int outer_extent_, inner_extent_;  // planes and rows, or rows and columns of interleaved planes
    int across_, first_run_;           // threads that share a line, and this one's place among them
    int outer_, inner_, outer_step_, inner_step_;  // this thread's first line, and to its next one
    int to_, to_step_;
    std::int64_t from_, from_step_, from_carry_;
};

// The most neighbouring elements, up to 16 bytes, that can move at once everywhere in a tensor:
// along a row of `extent` elements, or along the `extent` planes of interleaved ones.
template <typename T>
int longest_run(const void* tensor, std::int64_t extent, const std::int64_t (&strides)[4],
                bool interleaved) {
    if (strides[interleaved ? 1 : 3] != 1) return 1;
    for (int run = 16 / static_cast<int>(sizeof(T)); run > 1; run /= 2) {
        const bool others_fit = strides[0] % run == 0 && strides[2] % run == 0 &&
                                strides[interleaved ? 3 : 1] % run == 0;
        const auto address = reinterpret_cast<std::uintptr_t>(tensor);
        if (others_fit && extent % run == 0 && address % (run * sizeof(T)) == 0 &&
            run * sizeof(T) >= 4) {
            return run;
        }
    }
    return 1;
}

}  // namespace convsmith::depthwise
