// The input as the tiles of outputs meet it.
#pragma once

#include "implicit_gemm_problem.cuh"

namespace convsmith::implicit_gemm {

template <typename S>
class Source {
  public:
    using T = typename S::Value;

    __device__ Source(const Problem& problem, const T* input) : problem_(problem), input_(input) {}

    // Where a tile's patches begin: the image that its first row is of, that row, in the padded
    // image, and the first column. All a tile meets is within offsets of 32 bits from that image's
    // first channel of the group, at `plane`.
    struct Corner {
        int image, row, column;
        const T* plane;
    };

    __device__ __forceinline__ Corner corner_of(const Tile& tile) const {
        const int row = tile.row * stride(0);
        const int tall = static_cast<int>(problem_.tall_height);
        const int image = row / tall;
        const T* plane = input_ + image * problem_.in_strides[0] +
                         tile.group * problem_.channels * problem_.in_strides[1];
        const int column = tile.column * stride(1) - static_cast<int>(problem_.padding[1]);
        return {image, row - image * tall, column, plane};
    }

    // Of a row that lies `step` rows below the corner: its number in its image, and where that
    // image begins, from the corner's plane; or kNone.
    struct Row {
        int h, place;
    };

    __device__ __forceinline__ Row row_of(const Corner& corner, int step) const {
        int h = corner.row + step, image = 0;
        while (h >= static_cast<int>(problem_.tall_height)) {
            h -= static_cast<int>(problem_.tall_height);
            ++image;
        }
        h -= static_cast<int>(problem_.padding[0]);
        const bool exists = corner.image + image < static_cast<int>(problem_.images);
        return {h, exists ? image * static_cast<int>(problem_.in_strides[0]) : kNone};
    }

    __device__ __forceinline__ bool is_within(int place, int axis) const {
        return static_cast<unsigned>(place) < static_cast<unsigned>(problem_.in_size[axis]);
    }

    // The input row (or column) of one of a phase, from the first one of the patch.
    __device__ __forceinline__ int step_to(int index, int phase, int axis) const {
        return index * stride(axis) +
               phase * static_cast<int>(problem_.dilation[axis]) % stride(axis);
    }

    __device__ __forceinline__ int stride(int axis) const {
        return static_cast<int>(problem_.stride[axis]);
    }

    // One past the last element.
    __device__ __forceinline__ const T* end() const {
        const auto* strides = problem_.in_strides;
        return input_ + 1 + (problem_.images - 1) * strides[0] +
               (problem_.groups * problem_.channels - 1) * strides[1] +
               (problem_.in_size[0] - 1) * strides[2] + (problem_.in_size[1] - 1) * strides[3];
    }
    __device__ __forceinline__ const T* begin() const { return input_; }

  private:
    const Problem& problem_;
    const T* input_;
};

}  // namespace convsmith::implicit_gemm
