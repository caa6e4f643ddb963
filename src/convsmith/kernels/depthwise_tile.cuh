// Tiles of tensors on their way between global and shared memory, for any strides.
//
// Who moves what is worked out once for each thread and then holds for every tile: a block goes
// over many tiles of one shape, and divisions would cost more than the rest.
#pragma once

#include "depthwise_axis.cuh"
#include "element.cuh"
#include "ptx/bulk_copy.cuh"
#include "ptx/cp_async.cuh"

namespace convsmith::depthwise {

// Divides `rest` and leaves the remainder in it; quickly where the divisor is one, as many are.
__device__ __forceinline__ int divide(unsigned& rest, unsigned divisor) {
    const unsigned quotient = divisor == 1 ? rest : rest / divisor;
    rest -= quotient * divisor;
    return static_cast<int>(quotient);
}

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
// at once by 2 ** across_log2 threads.
struct RowPlan {
    int run, across_log2;
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
    RowPlan best{run, 0, run * kBytes == 16 && width * kBytes >= kLeastBulkBytes};
    double least_turns = 0;
    int log2 = 0;
    while (threads % (2 << log2) == 0) ++log2;
    for (; log2 >= 0; --log2) {
        const int across = 1 << log2;
        if (across < kLeastAcross && across < runs && best.across_log2 > 0) break;
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
            best.across_log2 = log2;
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
        : width_(width), plan_(plan), row_pitch_(row_pitch), row_stride_(row_stride) {}

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
            if (plan_.is_bulk && threadIdx.x == 0) {
                ptx::mbarrier_arrive_expect_tx(barrier, planes * rows * width_ * kBytes);
            }
        }
        if (plane_pitch == rows * row_pitch_ && plane_stride == rows * row_stride_) {
            rows *= planes;  // planes that follow one another like rows are one
            planes = 1;
        }
        if constexpr (ptx::kHasBulkCopies) {
            if (plan_.is_bulk) {
                load_bulk(tile, plane_pitch, from, plane_stride, planes, rows, barrier);
                return;
            }
        }
        if (plan_.run == kMost) {
            load_runs<kMost>(tile, plane_pitch, from, plane_stride, planes, rows);
        } else if (plan_.run == kMost / 2) {
            load_runs<kMost / 2>(tile, plane_pitch, from, plane_stride, planes, rows);
        } else if (kMost > 4 && plan_.run == kMost / 4) {
            load_runs<kMost / 4>(tile, plane_pitch, from, plane_stride, planes, rows);
        } else {
            load_runs<1>(tile, plane_pitch, from, plane_stride, planes, rows);
        }
    }

    // Puts zeros before and after each of `rows` rows of each plane, where loads leave them alone.
    template <int kLeftZeros, int kRightZeros>
    __device__ __forceinline__ void clear_sides(T* tile, int plane_pitch, int planes,
                                                int rows) const {
        if (kLeftZeros + kRightZeros == 0) return;
        const int gap = plane_pitch - rows * row_pitch_;
        for (int line = static_cast<int>(threadIdx.x); line < planes * rows;
             line += static_cast<int>(blockDim.x)) {
            T* first = tile + line * row_pitch_ + line / rows * gap;
#pragma unroll
            for (int i = 1; i <= kLeftZeros; ++i) first[-i] = Element<T>::narrow(0);
#pragma unroll
            for (int i = 0; i < kRightZeros; ++i) first[width_ + i] = Element<T>::narrow(0);
        }
    }

  private:
    static constexpr int kBytes = sizeof(T);
    static constexpr int kMost = 16 / kBytes;

    __device__ __forceinline__ void load_bulk(T* tile, int plane_pitch, const T* from,
                                              std::int64_t plane_stride, int planes, int rows,
                                              ptx::Barrier* barrier) const {
        constexpr unsigned kWarp = 32;
        if (threadIdx.x % kWarp != 0) return;
        for (int plane = 0; plane < planes; ++plane) {
            for (int row = static_cast<int>(threadIdx.x / kWarp); row < rows;
                 row += static_cast<int>(blockDim.x / kWarp)) {
                ptx::cp_async_bulk(tile + row * row_pitch_, from + row * row_stride_,
                                   width_ * kBytes, barrier);
            }
            tile += plane_pitch;
            from += plane_stride;
        }
    }

    template <int kElements>
    __device__ __forceinline__ void load_runs(T* tile, int plane_pitch, const T* corner,
                                              std::int64_t plane_stride, int planes,
                                              int rows) const {
        const int thread = static_cast<int>(threadIdx.x);
        const int row_step = static_cast<int>(blockDim.x) >> plan_.across_log2;
        int first_row = thread >> plan_.across_log2, first_plane = 0;
        // Whole planes at once where all of their rows are; else one after another.
        int planes_at_once = 0;
        if (planes > 1) {
            for (int line = row_step; line >= rows; line -= rows) ++planes_at_once;
        }
        if (planes_at_once > 0) {
            for (; first_row >= rows; first_row -= rows) ++first_plane;
            if (first_plane >= planes_at_once) return;
        }
        tile += first_plane * plane_pitch + first_row * row_pitch_;
        corner += first_plane * plane_stride + first_row * row_stride_;
        const int across = 1 << plan_.across_log2;
        for (int run = thread & (across - 1); run * kElements < width_; run += across) {
            const T* from = corner + run * kElements;
            T* to = tile + run * kElements;
            if (planes_at_once > 0) {
                copy<kElements>(to, planes_at_once * plane_pitch, from,
                                planes_at_once * plane_stride, first_plane, planes, planes_at_once);
                continue;
            }
            for (int plane = 0; plane < planes; ++plane) {
                copy<kElements>(to, row_step * row_pitch_, from, row_step * row_stride_, first_row,
                                rows, row_step);
                to += plane_pitch;
                from += plane_stride;
            }
        }
    }

    // One run of every `step`th row or plane from `first` on.
    template <int kElements>
    static __device__ __forceinline__ void copy(T* to, int to_step, const T* from,
                                                std::int64_t from_step, int first, int end,
                                                int step) {
#pragma unroll 2
        for (int i = first; i < end; i += step) {
            move<kElements>(to, from, true);
            from += from_step;
            to += to_step;
        }
    }

    int width_;
    RowPlan plan_;
    int row_pitch_;
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
