// Finished sums on their way to the output, where filters are phases: of the input gradient of a
// stride (see implicit_gemm_phases.cuh).
#pragma once

#include "implicit_gemm_phases.cuh"
#include "implicit_gemm_sums.cuh"

namespace convsmith::implicit_gemm {

template <typename S>
class PhaseStore : public FinishedSums<S> {
    using Base = FinishedSums<S>;

  public:
    using Base::Base;
    using typename Base::T;

    // What infinity times zero has spoilt is computed anew.
    template <int kValues>
    __device__ __forceinline__ void store(const Tile& tile,
                                          const float (&sums)[S::kHalves][kValues]) const {
        bool has_nan = false;
#pragma unroll
        for (int half = 0; half < S::kHalves; ++half) {
            const Corner corner = corner_of(tile, half);
            PhasedPixel pixels[kVectorPixels];
#pragma unroll
            for (int i = 0; i < kVectorPixels; ++i) pixels[i] = phased_pixel(corner, i);
#pragma unroll
            for (int eight = 0; eight < 2; ++eight) {
                const int first = first_filter(tile) + eight * 8;
                if (first >= static_cast<int>(problem_.filters)) continue;
                this->template stage<float>(sums[half], eight);
                has_nan |= problem_.out_phases.stores_vectors != 0
                               ? store_columns<true>(tile.group, corner, pixels, first)
                               : store_columns<false>(tile.group, corner, pixels, first);
                ptx::warp_sync();
            }
        }
        if (has_nan) repair_phases(tile);
        ptx::warp_sync();
    }

  private:
    using Base::corner_of, Base::position_of, Base::place_of, Base::first_filter;
    using Base::kNone, Base::kVectorPixels;
    using Base::problem_, Base::tensors_, Base::lane_;
    using Base::staging_;
    using typename Base::Corner;
    using typename Base::Position;

    // A pixel of a half that is phases of x: the image, from the first one on, row and column of
    // the first ones, and where they belong.
    struct PhasedPixel {
        int image, h, w, place;
    };

    // This lane's in part `part` of the half, a warp's.
    __device__ __forceinline__ PhasedPixel phased_pixel(const Corner& corner, int part) const {
        const OutPhases& out = problem_.out_phases;
        const bool is_narrow = problem_.half_columns == 8;
        const Corner of_part{corner.row + (is_narrow ? part * (32 / 8) : 0),
                             corner.column + (is_narrow ? 0 : part * 32), corner.first_image};
        const Position at = position_of(of_part, lane_);
        const int place = place_of(corner, at);
        const auto h = place == kNone ? static_cast<int>(out.x_size[0])  // beyond x
                                      : at.row * static_cast<int>(out.stride[0]);
        return {at.image, h, at.column * static_cast<int>(out.stride[1]), place};
    }

    __device__ __forceinline__ bool is_in_x(const PhasedPixel& pixel, const PhaseFilter& filter,
                                            int column) const {
        return pixel.h + filter.phase[0] < static_cast<int>(problem_.out_phases.x_size[0]) &&
               pixel.w + filter.phase[1] + column < static_cast<int>(problem_.out_phases.x_size[1]);
    }

    // Where a filter's phase of the first image's first pixel belongs.
    __device__ __forceinline__ T* plane_of(int group, const Corner& corner,
                                           const PhaseFilter& filter) const {
        const OutPhases& out = problem_.out_phases;
        return tensors_.out + corner.first_image * problem_.out_strides[0] +
               (group * static_cast<int>(out.channels) + filter.channel) * problem_.out_strides[1] +
               (filter.phase[0] * static_cast<int>(out.x_strides[0]) +
                filter.phase[1] * static_cast<int>(out.x_strides[1]));
    }

    // Stores eight filters, from `first` on. Some column phases of a channel, which are neighbours
    // in x, come together: as one vector, or one by one. Returns whether a sum is NaN.
    template <bool kAsVectors>
    __device__ __forceinline__ bool store_columns(int group, const Corner& corner,
                                                  const PhasedPixel (&pixels)[kVectorPixels],
                                                  int first) const {
        const OutPhases& out = problem_.out_phases;
        const auto across = static_cast<int>(out.stride[1]);
        const auto of_column = static_cast<int>(out.x_strides[1]);
        const float* from = staging_ + lane_;
        PhaseFilter filter = phase_filter(problem_, first);
        T* plane = plane_of(group, corner, filter);
        bool has_nan = false;
#pragma unroll 1
        for (int f = 0; f < 8 && filter.exists; f += S::kTogether) {
#pragma unroll
            for (int i = 0; i < kVectorPixels; ++i) {
                Vector<T, S::kTogether> values;
#pragma unroll
                for (int j = 0; j < S::kTogether; ++j) {
                    const float value = from[j * Shared<S>::kStagingPitch + i * 32];
                    has_nan = has_nan || value != value;
                    values.values[j] = Element<T>::narrow(value);
                }
#pragma unroll
                for (int j = 0; j < S::kTogether; j += kAsVectors ? S::kTogether : 1) {
                    if (!is_in_x(pixels[i], filter, j)) continue;
                    T* to = plane + pixels[i].place;
                    if constexpr (kAsVectors) {
                        *reinterpret_cast<Vector<T, S::kTogether>*>(to) = values;
                    } else {
                        to[j * of_column] = values.values[j];
                    }
                }
            }
            from += S::kTogether * Shared<S>::kStagingPitch;
            filter.phase[1] += S::kTogether;
            plane += S::kTogether * of_column;
            if (filter.phase[1] < across) continue;
            filter.phase[1] = 0;
            plane += problem_.out_strides[1] - across * of_column;
            if (++filter.channel < static_cast<int>(out.channels)) continue;
            filter = phase_filter(problem_, first + f + S::kTogether);
            plane = plane_of(group, corner, filter);
        }
        return has_nan;
    }

    // Computes anew what this lane has stored of a tile and is NaN.
    __device__ __forceinline__ void repair_phases(const Tile& tile) const {
#pragma unroll 1
        for (int i = 0; i < S::kHalves * 16 * kVectorPixels; ++i) {
            const Corner corner = corner_of(tile, i / (16 * kVectorPixels));
            const PhasedPixel pixel = phased_pixel(corner, i % kVectorPixels);
            const PhaseFilter filter =
                phase_filter(problem_, first_filter(tile) + i / kVectorPixels % 16);
            if (!filter.exists || !is_in_x(pixel, filter, 0)) continue;
            T* to = plane_of(tile.group, corner, filter) + pixel.place;
            const float value = Element<T>::widen(*to);
            if (value == value) continue;
            *to = Element<T>::narrow(input_gradient<S>(
                problem_, tensors_.input, tensors_.weight, corner.first_image + pixel.image,
                tile.group, filter.channel, pixel.h + filter.phase[0], pixel.w + filter.phase[1]));
        }
    }
};

}  // namespace convsmith::implicit_gemm
