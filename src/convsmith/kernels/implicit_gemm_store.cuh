// Finished sums on their way to the output: a warp brings those of eight filters and one half of
// the pixels to shared memory, and stores them row by row.
#pragma once

#include "implicit_gemm_problem.cuh"
#include "ptx/warpgroup.cuh"

namespace convsmith::implicit_gemm {

template <typename S>
class Store {
  public:
    using T = typename S::Value;

    __device__ Store(const Problem& problem, const T* bias, const float* unscale, T* out,
                     unsigned char* shared, int warpgroup)
        : problem_(problem), bias_(bias), unscale_(unscale), out_(out), warpgroup_(warpgroup) {
        const int warp = static_cast<int>(threadIdx.x) / 32;
        staging_ = reinterpret_cast<float*>(shared + Shared<S>(problem).staging +
                                            warp * Shared<S>::kStagingBytes);
    }

    template <int kValues>
    __device__ __forceinline__ void store(const Tile& tile, const float (&sums)[2][kValues]) {
        const int lane = static_cast<int>(threadIdx.x) % 32;
        const int warp = static_cast<int>(threadIdx.x) / 32 % 4;
        const auto filters = static_cast<int>(problem_.filters);
        const int first_filter =
            tile.first_filter + (S::kSplitsFilters ? warpgroup_ * kRowsOfBlock : 0) + warp * 16;
        if (first_filter >= filters) return;
        const float* unscale = unscale_ + tile.group * filter_blocks<S>(problem_) * S::kFilters;
        const std::int64_t first_channel = tile.group * problem_.filters;
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const Pixels pixels(problem_, tile, half, S::kSplitsFilters ? 0 : warpgroup_, lane);
#pragma unroll
            for (int eight = 0; eight < 2; ++eight) {
                // Values 4 j + 2 eight and the next one are of filter lane / 4.
                const int first = first_filter + eight * 8;
                const float factor = first + lane / 4 < filters ? unscale[first + lane / 4] : 0.0f;
#pragma unroll
                for (int j = 0; j < kValues / 4; ++j) {
                    Vector<float, 2> two;
                    two.values[0] = factor * sums[half][4 * j + 2 * eight];
                    two.values[1] = factor * sums[half][4 * j + 2 * eight + 1];
                    *reinterpret_cast<Vector<float, 2>*>(
                        staging_ + lane / 4 * Shared<S>::kStagingPitch + 8 * j + lane % 4 * 2) =
                        two;
                }
                ptx::warp_sync();
                for (int f = 0; f < 8 && first + f < filters; ++f) {
                    const std::int64_t channel = first_channel + first + f;
                    const float bias = bias_ == nullptr
                                           ? 0.0f
                                           : static_cast<float>(Element<T>::widen(bias_[channel]));
                    store_row(staging_ + f * Shared<S>::kStagingPitch, bias,
                              out_ + channel * problem_.out_strides[1], pixels, lane);
                }
                ptx::warp_sync();
            }
        }
    }

  private:
    // Where in a plane a lane's four pixels of a half belong: neighbours, or 32 apart where
    // neighbours cannot be stored at once.
    struct Pixels {
        static constexpr int kCount = kHalf / 32;
        std::int64_t first;  // the image
        int offsets[kCount];
        bool exists[kCount];
        bool are_neighbours;

        __device__ __forceinline__ Pixels(const Problem& problem, const Tile& tile, int half,
                                          int pixel_group, int lane) {
            const bool tall = problem.tile_is_tall != 0;
            const int tall_out = static_cast<int>(problem.tall_height / problem.stride[0]);
            const int first_image = tile.row / tall_out;
            first = first_image * problem.out_strides[0];
            are_neighbours = problem.stores_vectors != 0;
#pragma unroll
            for (int i = 0; i < kCount; ++i) {
                const int pixel = are_neighbours ? lane * kCount + i : i * 32 + lane;
                const int row =
                    tile.row + pixel_group * (tall ? 16 : 2) + (tall ? pixel / 8 : half);
                const int q = tile.column + (tall ? half * 8 + pixel % 8 : pixel);
                const int image = row / tall_out, p = row % tall_out;
                exists[i] =
                    image < problem.images && p < problem.out_size[0] && q < problem.out_size[1];
                offsets[i] = (image - first_image) * static_cast<int>(problem.out_strides[0]) +
                             p * static_cast<int>(problem.out_strides[2]) +
                             q * static_cast<int>(problem.out_strides[3]);
            }
        }
    };

    static __device__ __forceinline__ void store_row(const float* row, float bias, T* plane,
                                                     const Pixels& pixels, int lane) {
        constexpr int kCount = Pixels::kCount;
        T* out = plane + pixels.first;
        if (pixels.are_neighbours) {
            // Rows are whole vectors, so that all four exist or none.
            if (!pixels.exists[0]) return;
            const auto values =
                *reinterpret_cast<const Vector<float, kCount>*>(row + lane * kCount);
            Vector<T, kCount> narrow;
#pragma unroll
            for (int i = 0; i < kCount; ++i) {
                narrow.values[i] = Element<T>::narrow(values.values[i] + bias);
            }
            *reinterpret_cast<Vector<T, kCount>*>(out + pixels.offsets[0]) = narrow;
        } else {
#pragma unroll
            for (int i = 0; i < kCount; ++i) {
                if (!pixels.exists[i]) continue;
                out[pixels.offsets[i]] = Element<T>::narrow(row[i * 32 + lane] + bias);
            }
        }
    }

    const Problem& problem_;
    const T* bias_;
    const float* unscale_;
    T* out_;
    float* staging_;
    int warpgroup_;
};

}  // namespace convsmith::implicit_gemm
