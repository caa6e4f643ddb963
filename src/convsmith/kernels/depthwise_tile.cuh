// Tiles of tensors on their way between global and shared memory, for any strides.
//
// Who moves what is worked out once for each thread and then holds for every tile: a block goes over
// many tiles of one shape, and divisions would cost more than the rest.
#pragma once

#include "element.cuh"
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

// What a tile is: a part of some planes of a tensor. Where it reaches outside of them it is zero.
// In shared memory planes lie one after another, or (kInterleaved) element by element, as in a
// channels_last tensor.
struct TileShape {
    int planes, rows, columns;
    int height, width;                                   // of the tensor's planes
    std::int64_t plane_stride, row_stride, column_stride;  // in the tensor
    int run;  // neighbouring elements that move at once: columns, or planes of interleaved ones
};

// A thread's share of loading tiles of one shape.
template <typename T, bool kInterleaved>
class TileLoader {
  public:
    __device__ explicit TileLoader(const TileShape& shape)
        : first_(extents(shape).values, static_cast<int>(threadIdx.x),
                 static_cast<int>(blockDim.x)),
          height_(shape.height),
          width_(shape.width),
          run_(shape.run) {
        const std::int64_t outer = kInterleaved ? shape.row_stride : shape.plane_stride;
        const std::int64_t middle = kInterleaved ? shape.column_stride : shape.row_stride;
        const std::int64_t inner = shape.run * (kInterleaved ? 1 : shape.column_stride);
        offset_ = static_cast<int>(first_.at[0] * outer + first_.at[1] * middle +
                                   first_.at[2] * inner);
        step_ = static_cast<int>(first_.step[0] * outer + first_.step[1] * middle +
                                 first_.step[2] * inner);
        inner_carry_ = static_cast<int>(middle - first_.extent[2] * inner);
        middle_carry_ = static_cast<int>(outer - first_.extent[1] * middle);
    }

    // Begins to load the tile that begins at `from`, row `first_row` and column `first_column` of its
    // planes, both of which may lie outside. Only `planes` of its planes exist.
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
    struct Extents {
        int values[3];
    };

    static __device__ Extents extents(const TileShape& shape) {
        if (kInterleaved) return {{shape.rows, shape.columns, shape.planes / shape.run}};
        return {{shape.planes, shape.rows, shape.columns / shape.run}};
    }

    template <int kElements>
    __device__ __forceinline__ void load_runs(T* shared, const T* from, int first_row,
                                              int first_column, int planes) const {
        Odometer<3> index = first_;
        int offset = offset_;
        T* to = shared + static_cast<int>(threadIdx.x) * kElements;
        const int outer_extent = kInterleaved ? index.extent[0] : planes;
        while (index.at[0] < outer_extent) {
            const int h = first_row + index.at[kInterleaved ? 0 : 1];
            const int w =
                first_column + (kInterleaved ? index.at[1] : index.at[2] * kElements);
            const bool readable =
                static_cast<unsigned>(h) < static_cast<unsigned>(height_) &&
                static_cast<unsigned>(w) < static_cast<unsigned>(width_) &&
                (!kInterleaved || index.at[2] * kElements < planes);
            move<kElements>(to, from + offset, readable);
            to += static_cast<int>(blockDim.x) * kElements;
            index.at[0] += index.step[0];
            index.at[1] += index.step[1];
            index.at[2] += index.step[2];
            offset += step_;
            if (index.at[2] >= index.extent[2]) {
                index.at[2] -= index.extent[2];
                ++index.at[1];
                offset += inner_carry_;
            }
            if (index.at[1] >= index.extent[1]) {
                index.at[1] -= index.extent[1];
                ++index.at[0];
                offset += middle_carry_;
            }
        }
    }

    Odometer<3> first_;
    int offset_, step_, inner_carry_, middle_carry_;  // elements in the tensor, from the tile's corner
    int height_, width_, run_;
};

// The most neighbouring elements, up to 16 bytes, that can move at once everywhere in a tensor: along
// a row of `extent` elements, or along the `extent` planes of interleaved ones.
template <typename T>
int longest_run(const void* tensor, std::int64_t extent, const std::int64_t (&strides)[4],
                bool interleaved) {
    if (strides[interleaved ? 1 : 3] != 1) return 1;
    for (int run = 16 / static_cast<int>(sizeof(T)); run > 1; run /= 2) {
        const bool others_fit =
            strides[0] % run == 0 && strides[2] % run == 0 && strides[interleaved ? 3 : 1] % run == 0;
        const auto address = reinterpret_cast<std::uintptr_t>(tensor);
        if (others_fit && extent % run == 0 && address % (run * sizeof(T)) == 0 &&
            run * sizeof(T) >= 4) {
            return run;
        }
    }
    return 1;
}

}  // namespace convsmith::depthwise
