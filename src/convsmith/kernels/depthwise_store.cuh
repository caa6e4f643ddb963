// Finished outputs on their way through shared memory, where they lie in runs: each as long as it
// is contiguous in the tensor and as far from a 16-byte boundary as there. So they are stored 16
// bytes at a time whatever the tensor's width, and hardly any 32-byte sector is written in part.
#pragma once

#include "depthwise_tile.cuh"

namespace convsmith::depthwise {

// Stores up to `columns` values of one row, kRun at once.
template <int kRun, typename T, int kColumns>
__device__ __forceinline__ void put_row(T* to, const float (&values)[kColumns], int columns) {
#pragma unroll
    for (int i = 0; i < kColumns; i += kRun) {
        if (kRun == 1 && i >= columns) continue;
        Vector<T, kRun> run;
#pragma unroll
        for (int v = 0; v < kRun; ++v) run.values[v] = Element<T>::narrow(values[i + v]);
        *reinterpret_cast<Vector<T, kRun>*>(to + i) = run;
    }
}

// Stores up to `rows` rows of values, that lie `row_pitch` elements apart.
template <int kRun, typename T, typename Pitch, int kRows, int kColumns>
__device__ __forceinline__ void put_rows(T* to, Pitch row_pitch,
                                         const float (&values)[kRows][kColumns], int rows,
                                         int columns) {
#pragma unroll
    for (int t = 0; t < kRows; ++t) {
        if (t < rows) put_row<kRun>(to, values[t], columns);
        to += row_pitch;
    }
}

// The most of kColumns neighbouring outputs of a thread that are stored at once.
template <typename T, int kColumns>
constexpr int kRunOfColumns = kColumns % (16 / sizeof(T)) == 0 ? 16 / sizeof(T)
                              : kColumns % 4 == 0              ? 4
                              : kColumns % 2 == 0              ? 2
                                                               : 1;

// Stores a thread's outputs of one plane where they belong; each row of the tensor begins at a
// multiple of `aligned` elements.
template <typename T, int kRows, int kColumns>
__device__ __forceinline__ void store_directly(T* to, std::int64_t row_stride,
                                               const float (&values)[kRows][kColumns], int rows,
                                               int columns, int aligned) {
    constexpr int kRun = kRunOfColumns<T, kColumns>;
    if (columns >= kColumns && aligned >= kRun) {
        put_rows<kRun>(to, row_stride, values, rows, columns);
    } else {
        put_rows<1>(to, row_stride, values, rows, columns);
    }
}

// What one run is: all planes of a tile, one plane's part, one row's, or a single element (of
// tensors whose columns are not contiguous).
enum class Run { kAll, kPlane, kRow, kElement };

// The shape of the tiles of a launch, and where their elements belong in the tensor.
struct OutShape {
    int planes, rows, columns;  // of a whole tile
    std::int64_t plane_stride, row_stride, column_stride;
    Run run;
    int run_pitch;  // elements from one run to the next in shared memory
    // Each row of the tensor begins at a multiple of so many elements; where planes are
    // interleaved, the first plane of each pixel does.
    int aligned;
};

// A thread's share of storing tiles of one shape that lie planar.
template <typename T>
class PlanarStore {
  public:
    static constexpr int kVector = 16 / sizeof(T);

    // Elements from one run to the next: its length, and room to be moved off a 16-byte boundary.
    static __host__ __device__ int pitch_of(std::int64_t length) {
        return static_cast<int>((length + 2 * kVector - 2) / kVector * kVector);
    }

    __device__ explicit PlanarStore(const OutShape& shape) : shape_(shape) {}

    // Writes a thread's outputs of one plane to shared memory. `tile_out` is where the tile's part
    // of its first plane begins in the tensor.
    template <int kRows, int kColumns>
    __device__ __forceinline__ void put(T* tile, const T* tile_out, int plane, int row, int column,
                                        const float (&values)[kRows][kColumns], int rows_here,
                                        int columns_here) const {
        constexpr int kRun = kRunOfColumns<T, kColumns>;
        constexpr int kHalf = kRun > 1 ? kRun / 2 : 1;
        const T* plane_out = tile_out + plane * shape_.plane_stride;
        const bool by_row = shape_.run == Run::kRow || shape_.run == Run::kElement;
        const int row_pitch = by_row ? shape_.run_pitch : columns_here;
        T* to = tile + row * row_pitch + column;
        if (shape_.run == Run::kAll) {
            to += lead(tile_out) + plane * rows_here * columns_here;
        } else if (shape_.run == Run::kPlane) {
            to += lead(plane_out) + plane * shape_.run_pitch;
        } else {
            to += plane * shape_.rows * shape_.run_pitch;
        }
        const int rows = rows_here - row, columns = columns_here - column;
        if (shape_.run == Run::kRow) {
            plane_out += row * shape_.row_stride;
#pragma unroll
            for (int t = 0; t < kRows; ++t) {
                if (t >= rows) continue;
                T* moved = to + t * row_pitch + lead(plane_out + t * shape_.row_stride);
                put_row<1>(moved, values[t], columns);
            }
        } else if (columns >= kColumns && shape_.aligned >= kRun) {
            put_rows<kRun>(to, row_pitch, values, rows, columns);
        } else if (columns >= kColumns && shape_.aligned >= kHalf) {
            put_rows<kHalf>(to, row_pitch, values, rows, columns);
        } else {
            put_rows<1>(to, row_pitch, values, rows, columns);
        }
    }

    // Begins to copy a tile from shared memory to the tensor, which all threads have written there.
    // A warp takes a row; longer runs are left to the copy engine, or are all threads'.
    __device__ __forceinline__ void store(const T* tile, T* tile_out, int planes_here,
                                          int rows_here, int columns_here) const {
        const int thread = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
        if (shape_.run == Run::kAll) {
            store_long_run(tile, tile_out, planes_here * rows_here * columns_here);
            if (thread == 0) ptx::cp_async_bulk_commit_group();
            return;
        }
        for (int plane = 0; plane < planes_here; ++plane) {
            const T* from = tile + plane * shape_.run_pitch;
            T* out = tile_out + plane * shape_.plane_stride;
            if (shape_.run == Run::kPlane) {
                store_long_run(from, out, rows_here * columns_here);
                continue;
            }
            constexpr int kWarp = 32;
            from = tile + plane * shape_.rows * shape_.run_pitch;
            for (int row = thread / kWarp; row < rows_here; row += threads / kWarp) {
                const T* run = from + row * shape_.run_pitch;
                T* row_out = out + row * shape_.row_stride;
                if (shape_.run == Run::kRow) {
                    store_run(run, row_out, columns_here, thread % kWarp, kWarp);
                    continue;
                }
                for (int column = thread % kWarp; column < columns_here; column += kWarp) {
                    row_out[column * shape_.column_stride] = run[column];
                }
            }
        }
        if (thread == 0) ptx::cp_async_bulk_commit_group();
    }

    // Returns when the tiles that are being stored may be overwritten, once a barrier has told all.
    static __device__ __forceinline__ void wait_until_read() {
        if (threadIdx.x == 0) ptx::cp_async_bulk_wait_group_read();
    }

  private:
    static __device__ __forceinline__ void store_long_run(const T* run, T* out, int length) {
        const int thread = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
        if constexpr (ptx::kHasBulkCopies) {
            const int moved = lead(out);
            const int first = moved > 0 ? kVector : 0;
            const int last = (moved + length) / kVector * kVector;
            if (thread == 0 && first < last) {
                ptx::cp_async_bulk_store(out - moved + first, run + first,
                                         (last - first) * static_cast<int>(sizeof(T)));
            }
            store_ends(run, out, length, thread);
        } else {
            store_run(run, out, length, thread, threads);
        }
    }

    // Copies one run, vector by vector.
    static __device__ __forceinline__ void store_run(const T* run, T* out, int length, int thread,
                                                     int threads) {
        using Sixteen = Vector<T, kVector>;
        const int moved = lead(out);
        const int end = moved + length;
        const T* from = run + thread * kVector;
        T* to = out - moved + thread * kVector;
        const int step = threads * kVector;
        int element = thread * kVector;
        if (element < moved) {  // the first vector begins before the run
            element += step;
            from += step;
            to += step;
        }
#pragma unroll 4
        for (; element + kVector <= end; element += step) {
            *reinterpret_cast<Sixteen*>(to) = *reinterpret_cast<const Sixteen*>(from);
            from += step;
            to += step;
        }
        store_ends(run, out, length, thread);
    }

    // Copies what of a run is before its first 16-byte boundary and after its last one.
    static __device__ __forceinline__ void store_ends(const T* run, T* out, int length,
                                                      int thread) {
        const int moved = lead(out);
        const int end = moved + length;
        if (thread >= kVector || (moved == 0 && end % kVector == 0)) return;
        const int last = end / kVector * kVector + thread;
        if (thread >= moved && thread < end && moved != 0) out[thread - moved] = run[thread];
        if (last < end && (last >= kVector || moved == 0)) out[last - moved] = run[last];
    }

    // Elements from the last 16-byte boundary to an element of the tensor.
    static __device__ __forceinline__ int lead(const T* element) {
        return static_cast<int>(reinterpret_cast<std::uintptr_t>(element) / sizeof(T) % kVector);
    }

    OutShape shape_;
};

// A thread's share of storing tiles of one shape that lie as a channels_last tensor does.
template <typename T, int kPlanes>
class InterleavedStore {
  public:
    __device__ explicit InterleavedStore(const OutShape& shape)
        : shape_(shape),
          run_(shape.aligned == kMost ? kMost : 1),
          first_(extents(shape, run_).values, static_cast<int>(threadIdx.x),
                 static_cast<int>(blockDim.x)) {}

    template <int kRows, int kColumns>
    __device__ __forceinline__ void put(T* tile, int plane, int row, int column,
                                        const float (&values)[kRows][kColumns]) const {
        T* to = tile + (row * shape_.columns + column) * kPlanes + plane;
#pragma unroll
        for (int t = 0; t < kRows; ++t) {
#pragma unroll
            for (int u = 0; u < kColumns; ++u) {
                to[(t * shape_.columns + u) * kPlanes] = Element<T>::narrow(values[t][u]);
            }
        }
    }

    __device__ __forceinline__ void store(const T* tile, T* tile_out, int planes_here,
                                          int rows_here, int columns_here) const {
        if (run_ == kMost) {
            store_runs<kMost>(tile, tile_out, planes_here, rows_here, columns_here);
        } else {
            store_runs<1>(tile, tile_out, planes_here, rows_here, columns_here);
        }
    }

    static __device__ __forceinline__ void wait_until_read() {}

  private:
    static constexpr int kMost = 16 / sizeof(T);

    struct Extents {
        int values[3];
    };

    static __device__ Extents extents(const OutShape& shape, int run) {
        return {{shape.rows, shape.columns, kPlanes / run}};
    }

    template <int kElements>
    __device__ __forceinline__ void store_runs(const T* tile, T* tile_out, int planes_here,
                                               int rows_here, int columns_here) const {
        using Several = Vector<T, kElements>;
        const T* from = tile + static_cast<int>(threadIdx.x) * kElements;
        for (Odometer<3> index = first_; index.more(); index.advance()) {
            const int plane = index.at[2] * kElements;
            if (index.at[0] < rows_here && index.at[1] < columns_here && plane < planes_here) {
                T* to = tile_out + index.at[0] * shape_.row_stride +
                        index.at[1] * shape_.column_stride + plane;
                *reinterpret_cast<Several*>(to) = *reinterpret_cast<const Several*>(from);
            }
            from += static_cast<int>(blockDim.x) * kElements;
        }
    }

    OutShape shape_;
    int run_;
    Odometer<3> first_;
};

}  // namespace convsmith::depthwise
