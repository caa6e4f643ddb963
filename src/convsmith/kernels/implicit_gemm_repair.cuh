// Outputs that are NaN, computed once more when they have been stored: one product after another.
//
// What is not finite is all in an operand's second part, and meets the other operand's first part
// (write_parts). Where second parts meet each other as well, which are zero or have another sign,
// infinity becomes NaN.
#pragma once

#include "implicit_gemm_sums.cuh"
#include "ptx/bulk_copy.cuh"

namespace convsmith::implicit_gemm {

// One output, without bias.
template <typename S>
__device__ __forceinline__ double output(const Problem& problem, const typename S::Value* x,
                                         const typename S::Value* weight, int image, int group,
                                         int filter, int p, int q) {
    using OfValue = Element<typename S::Value>;
    const std::int64_t* steps = problem.weight_strides;
    x += image * problem.in_strides[0] + group * problem.channels * problem.in_strides[1];
    weight += problem.first_weight + group * steps[0] + filter * steps[1];
    double sum = 0;
#pragma unroll 1
    for (int r = 0; r < static_cast<int>(problem.kernel_size[0]); ++r) {
        const std::int64_t h = p * problem.stride[0] - problem.padding[0] + r * problem.dilation[0];
#pragma unroll 1
        for (int s = 0; s < static_cast<int>(problem.kernel_size[1]); ++s) {
            const std::int64_t w =
                q * problem.stride[1] - problem.padding[1] + s * problem.dilation[1];
            const bool exists =
                h >= 0 && h < problem.in_size[0] && w >= 0 && w < problem.in_size[1];
            const auto* value = x + h * problem.in_strides[2] + w * problem.in_strides[3];
            const auto* factor = weight + r * steps[3] + s * steps[4];
#pragma unroll 1
            for (int c = 0; c < static_cast<int>(problem.channels); ++c) {
                sum += (exists ? static_cast<double>(OfValue::widen(*value)) : 0.0) *
                       static_cast<double>(OfValue::widen(*factor));
                value += problem.in_strides[1];
                factor += steps[2];
            }
            if (sum != sum) return sum;
        }
    }
    return sum;
}

template <typename S>
class Repair : public FinishedSums<S> {
    using Base = FinishedSums<S>;

  public:
    using Base::Base;
    using typename Base::T;

    // Whether one of this thread's sums of a tile is.
    template <int kValues>
    static __device__ __forceinline__ bool is_nan(const float (&sums)[S::kHalves][kValues]) {
        bool is_nan = false;
#pragma unroll
        for (int half = 0; half < S::kHalves; ++half) {
#pragma unroll
            for (int i = 0; i < kValues; ++i) is_nan = is_nan || sums[half][i] != sums[half][i];
        }
        return is_nan;
    }

    // Repairs what this warp has stored of all tiles. Of sectors that two blocks have, both do.
    __device__ __forceinline__ void repair() const {
        ptx::cp_async_bulk_wait_group();
        ptx::warp_sync();
#pragma unroll 1
        for (int tile = static_cast<int>(blockIdx.x); tile < static_cast<int>(problem_.all_tiles);
             tile += static_cast<int>(gridDim.x)) {
            repair(TileWalk<S>(problem_, tile).tile());
        }
    }

  private:
    __device__ __forceinline__ void repair(const Tile& tile) const {
#pragma unroll 1
        for (int i = 0; i < S::kHalves * kVectorPixels; ++i) {
            const auto corner = corner_of(tile, i / kVectorPixels);
            const auto at = position_of_pixel(corner, i % kVectorPixels * 32 + lane_);
            const int place = place_of(corner, at);
            if (place != kNone) repair_pixel(tile, corner.first_image, at, place);
        }
    }

    using Base::corner_of, Base::position_of, Base::place_of, Base::first_filter;
    using Base::kNone, Base::kVectorPixels;
    using Base::problem_, Base::tensors_, Base::lane_;
    using typename Base::Corner;
    using typename Base::Position;

    // Tiles that own sectors go on in the next row.
    __device__ __forceinline__ Position position_of_pixel(const Corner& corner, int pixel) const {
        Position at = position_of(corner, pixel);
        const auto columns = static_cast<int>(problem_.flat_columns);
        if (problem_.owns_sectors != 0 && at.column >= columns) {
            at.column -= columns;
            ++at.row;
        }
        return at;
    }

    // Of all of this warp's filters.
    __device__ __forceinline__ void repair_pixel(const Tile& tile, int first_image,
                                                 const Position& at, int place) const {
        const int first = first_filter(tile);
        const int end = min(first + 16, static_cast<int>(problem_.filters));
#pragma unroll 1
        for (int filter = first; filter < end; ++filter) {
            const std::int64_t channel = tile.group * problem_.filters + filter;
            // Not from a cache that the copy engine does not know of.
            volatile T* to = tensors_.out + first_image * problem_.out_strides[0] +
                             channel * problem_.out_strides[1] + place;
            const T stored = *to;
            if (stored == stored) continue;
            const double sum =
                output<S>(problem_, tensors_.input, tensors_.weight, first_image + at.image,
                          tile.group, filter, at.row, at.column);
            const T* bias = tensors_.bias;
            *to = static_cast<T>(sum + (bias == nullptr ? 0 : bias[channel]));
        }
    }
};

}  // namespace convsmith::implicit_gemm
