// Finished outputs on their way through shared memory, where they lie in runs: each as long as it is
// contiguous in the tensor and as far from a 16-byte boundary as there. So they are stored 16 bytes at
// a time whatever the tensor's width, and hardly any 32-byte sector is written in part.
#pragma once

#include "depthwise_tile.cuh"

namespace convsmith::depthwise {

// What one run is: all planes of a tile, one plane's part, one row's, or a single element (of tensors
// whose columns are not contiguous).
enum class Run { kAll, kPlane, kRow, kElement };

// Stores `count` of kCount neighbouring values, as long a vector at a time as `to` is aligned for.
template <int kCount, typename T>
__device__ __forceinline__ void store_values(T* to, const float (&values)[kCount], int count) {
    constexpr int kMost = 16 / sizeof(T);
    constexpr int kRun = kCount % kMost == 0 ? kMost
                         : kCount % 4 == 0   ? 4
                         : kCount % 2 == 0   ? 2
                                             : 1;
    const auto store_by = [&](auto vector) {
        using Several = decltype(vector);
        constexpr int kSeveral = sizeof(Several) / sizeof(T);
#pragma unroll
        for (int i = 0; i < kCount; i += kSeveral) {
#pragma unroll
            for (int v = 0; v < kSeveral; ++v) {
                vector.values[v] = Element<T>::narrow(values[i + v]);
            }
            *reinterpret_cast<Several*>(to + i) = vector;
        }
    };
    const auto address = reinterpret_cast<std::uintptr_t>(to);
    if (count >= kCount && address % (kRun * sizeof(T)) == 0) {
        store_by(Vector<T, kRun>{});
    } else if (kRun > 2 && count >= kCount && address % (kRun / 2 * sizeof(T)) == 0) {
        store_by(Vector<T, kRun / 2>{});
    } else {
#pragma unroll
        for (int i = 0; i < kCount; ++i) {
            if (i < count) to[i] = Element<T>::narrow(values[i]);
        }
    }
}

// The shape of the tiles of a launch, and where their elements belong in the tensor.
struct OutShape {
    int planes, rows, columns;  // of a whole tile
    std::int64_t plane_stride, row_stride, column_stride;
    Run run;
    int run_pitch;  // elements from one run to the next in shared memory
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

    __device__ explicit PlanarStore(const OutShape& shape)
        : shape_(shape), first_(extents(shape).values, static_cast<int>(threadIdx.x),
                                static_cast<int>(blockDim.x)) {}

    // Writes a thread's outputs of one plane to shared memory. `plane_out` is where the tile's part of
    // that plane begins in the tensor, `tile_out` where its first plane's does.
    template <int kRows, int kColumns>
    __device__ __forceinline__ void put(T* tile, const T* tile_out, int plane, int row, int column,
                                        const float (&values)[kRows][kColumns], int rows_here,
                                        int columns_here) const {
        const T* plane_out = tile_out + plane * shape_.plane_stride;
        const bool by_row = shape_.run == Run::kRow || shape_.run == Run::kElement;
        const int row_pitch = by_row ? shape_.run_pitch : columns_here;
        int place = row * row_pitch + column;
        if (shape_.run == Run::kAll) {
            place += lead(tile_out) + plane * rows_here * columns_here;
        } else if (shape_.run == Run::kPlane) {
            place += lead(plane_out) + plane * shape_.run_pitch;
        } else {
            place += plane * shape_.rows * shape_.run_pitch;
        }
#pragma unroll
        for (int t = 0; t < kRows; ++t) {
            if (row + t >= rows_here) continue;
            int moved = 0;
            if (shape_.run == Run::kRow) moved = lead(plane_out + (row + t) * shape_.row_stride);
            store_values(tile + place + t * row_pitch + moved, values[t], columns_here - column);
        }
    }

    // Copies a tile from shared memory to the tensor.
    __device__ __forceinline__ void store(const T* tile, T* tile_out, int planes_here, int rows_here,
                                          int columns_here) const {
        int length = columns_here;
        if (shape_.run == Run::kAll) length *= planes_here * rows_here;
        if (shape_.run == Run::kPlane) length *= rows_here;
        for (Odometer<3> index = first_; index.more(); index.advance()) {
            const int plane = index.at[0], row = index.at[1];
            if (plane >= planes_here || row >= rows_here) continue;
            const T* run = tile + (plane * index.extent[1] + row) * shape_.run_pitch;
            T* out = tile_out + plane * shape_.plane_stride + row * shape_.row_stride;
            if (shape_.run == Run::kElement) {
                const int column = index.at[2];
                if (column < columns_here) out[column * shape_.column_stride] = run[column];
                continue;
            }
            const int moved = lead(out);
            const int element = index.at[2] * kVector;  // from the boundary before the run
            const T* from = run + element;
            T* to = out - moved + element;
            if (element >= moved && element + kVector <= moved + length) {
                using Sixteen = Vector<T, kVector>;
                *reinterpret_cast<Sixteen*>(to) = *reinterpret_cast<const Sixteen*>(from);
            } else {
#pragma unroll
                for (int v = 0; v < kVector; ++v) {
                    if (element + v >= moved && element + v < moved + length) to[v] = from[v];
                }
            }
        }
    }

  private:
    struct Extents {
        int values[3];
    };

    static __device__ Extents extents(const OutShape& shape) {
        switch (shape.run) {
            case Run::kAll:
                return {{1, 1, shape.run_pitch / kVector}};
            case Run::kPlane:
                return {{shape.planes, 1, shape.run_pitch / kVector}};
            case Run::kRow:
                return {{shape.planes, shape.rows, shape.run_pitch / kVector}};
            default:
                return {{shape.planes, shape.rows, shape.columns}};
        }
    }

    // Elements from the last 16-byte boundary to an element of the tensor.
    static __device__ __forceinline__ int lead(const T* element) {
        return static_cast<int>(reinterpret_cast<std::uintptr_t>(element) / sizeof(T) % kVector);
    }

    OutShape shape_;
    Odometer<3> first_;
};

// A thread's share of storing tiles of one shape that lie as a channels_last tensor does.
template <typename T, int kPlanes>
class InterleavedStore {
  public:
    // `run` neighbouring planes can be stored at once.
    __device__ InterleavedStore(const OutShape& shape, int run)
        : shape_(shape),
          run_(run == kMost ? kMost : 1),
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

    __device__ __forceinline__ void store(const T* tile, T* tile_out, int planes_here, int rows_here,
                                          int columns_here) const {
        if (run_ == kMost) {
            store_runs<kMost>(tile, tile_out, planes_here, rows_here, columns_here);
        } else {
            store_runs<1>(tile, tile_out, planes_here, rows_here, columns_here);
        }
    }

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
