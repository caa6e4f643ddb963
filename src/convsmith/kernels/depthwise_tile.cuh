// Tiles of tensors on their way between global and shared memory, for any strides.
#pragma once

#include "element.cuh"
#include "ptx/cp_async.cuh"

namespace convsmith::depthwise {

// Three nested indices, `inner` fastest, that a thread advances by a fixed distance without dividing.
struct Counter {
    int outer, middle, inner;
    int step_outer, step_middle, step_inner;
    int extent_outer, extent_middle, extent_inner;

    __device__ Counter(int start, int step, int outer_extent, int middle_extent, int inner_extent)
        : outer(start / inner_extent / middle_extent),
          middle(start / inner_extent % middle_extent),
          inner(start % inner_extent),
          step_outer(step / inner_extent / middle_extent),
          step_middle(step / inner_extent % middle_extent),
          step_inner(step % inner_extent),
          extent_outer(outer_extent),
          extent_middle(middle_extent),
          extent_inner(inner_extent) {}

    __device__ __forceinline__ bool more() const { return outer < extent_outer; }

    __device__ __forceinline__ void advance() {
        inner += step_inner;
        middle += step_middle;
        outer += step_outer;
        if (inner >= extent_inner) {
            inner -= extent_inner;
            ++middle;
        }
        if (middle >= extent_middle) {
            middle -= extent_middle;
            ++outer;
        }
    }
};

// A part of some planes of a tensor. Where it reaches outside of the planes it is zero.
struct Region {
    int planes, rows, columns;        // its extents in shared memory
    int plane_pitch, row_pitch;       // elements in shared memory from one to the next
    int first_row, first_column;      // its place in the tensor, which may be negative
    int height, width;                // of the tensor's planes
    std::int64_t row_stride, column_stride;  // elements in the tensor
    bool planes_fastest;  // the tensor is channels last: neighbouring threads take planes
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

// Begins to load a region, kElements neighbouring columns at a time. `plane_of(i)` is the element of
// `tensor` at which the region's plane i begins.
template <int kElements, typename T, typename PlaneOf>
__device__ void load_runs(const Region& region, T* shared, const T* tensor, PlaneOf plane_of) {
    const int thread = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
    for (Counter at(thread, threads, region.planes, region.rows, region.columns / kElements);
         at.more(); at.advance()) {
        const int h = region.first_row + at.middle;
        const int w = region.first_column + at.inner * kElements;
        const bool readable = static_cast<unsigned>(h) < static_cast<unsigned>(region.height) &&
                              static_cast<unsigned>(w) < static_cast<unsigned>(region.width);
        const T* from = tensor + plane_of(at.outer) + h * region.row_stride;
        T* to = shared + at.outer * region.plane_pitch + at.middle * region.row_pitch +
                at.inner * kElements;
        move<kElements>(to, from + (kElements == 1 ? w * region.column_stride : w), readable);
    }
}

template <typename T, typename PlaneOf>
__device__ void load_channels_last(const Region& region, T* shared, const T* tensor,
                                   PlaneOf plane_of) {
    const int thread = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
    for (Counter at(thread, threads, region.rows, region.columns, region.planes); at.more();
         at.advance()) {
        const int h = region.first_row + at.outer;
        const int w = region.first_column + at.middle;
        const bool readable = static_cast<unsigned>(h) < static_cast<unsigned>(region.height) &&
                              static_cast<unsigned>(w) < static_cast<unsigned>(region.width);
        const T* from =
            tensor + plane_of(at.inner) + h * region.row_stride + w * region.column_stride;
        T* to = shared + at.inner * region.plane_pitch + at.outer * region.row_pitch + at.middle;
        move<1>(to, from, readable);
    }
}

// Begins to load a region in runs of `run_bytes`, to which all of its addresses are aligned.
template <typename T, typename PlaneOf>
__device__ void load(const Region& region, int run_bytes, T* shared, const T* tensor,
                     PlaneOf plane_of) {
    if (region.planes_fastest) {
        load_channels_last(region, shared, tensor, plane_of);
    } else if (run_bytes == 16) {
        load_runs<16 / sizeof(T)>(region, shared, tensor, plane_of);
    } else if (run_bytes == 8) {
        load_runs<8 / sizeof(T)>(region, shared, tensor, plane_of);
    } else if (run_bytes == 4) {
        load_runs<4 / sizeof(T)>(region, shared, tensor, plane_of);
    } else {
        load_runs<1>(region, shared, tensor, plane_of);
    }
}

// The longest run, in bytes, that a tensor's rows allow to move at once: its address, its strides and
// its width are multiples of it. Less than 4 bytes where they move one by one.
template <typename T>
int run_bytes(const void* tensor, std::int64_t width, const std::int64_t (&strides)[4]) {
    if (strides[3] != 1) return sizeof(T);
    for (int bytes = 16; bytes > static_cast<int>(sizeof(T)); bytes /= 2) {
        const std::int64_t elements = bytes / static_cast<int>(sizeof(T));
        if (reinterpret_cast<std::uintptr_t>(tensor) % bytes == 0 && width % elements == 0 &&
            strides[0] % elements == 0 && strides[1] % elements == 0 && strides[2] % elements == 0) {
            return bytes;
        }
    }
    return sizeof(T);
}

}  // namespace convsmith::depthwise
