// Finished sums of a tile: what they are multiplied with, and where in the output they belong.
#pragma once

#include <climits>

#include "implicit_gemm_problem.cuh"
#include "ptx/warpgroup.cuh"

namespace convsmith::implicit_gemm {

// What both ways to store them share: a warp brings those of eight filters and one half of the
// pixels to shared memory.
template <typename S>
class FinishedSums {
  public:
    using T = typename S::Value;

    struct Tensors {
        const T *input, *weight, *bias;
        const float* unscale;
        T* out;
    };

    __device__ FinishedSums(const Problem& problem, const Tensors& tensors, unsigned char* shared,
                            int warpgroup)
        : problem_(problem),
          tensors_(tensors),
          warpgroup_(warpgroup),
          lane_(static_cast<int>(threadIdx.x) % 32),
          tall_out_(static_cast<int>(problem.tall_height / problem.stride[0])) {
        const int warp = shared_by_lanes<S>(static_cast<int>(threadIdx.x) / 32);
        staging_ = reinterpret_cast<float*>(shared + Shared<S>(problem).staging +
                                            warp * Shared<S>::kStagingBytes);
    }

    // Begins to read what the sums of a tile are multiplied with and what is added to them.
    __device__ __forceinline__ void prepare(const Tile& tile) {
        const auto filters = static_cast<int>(problem_.filters);
        const float* unscale =
            tensors_.unscale + tile.group * filter_blocks<S>(problem_) * S::kFilters;
#pragma unroll
        for (int eight = 0; eight < 2; ++eight) {
            const int filter = min(first_filter(tile) + eight * 8 + lane_ / 4, filters - 1);
            factors_[eight] = unscale[filter];
            biases_[eight] = tensors_.bias == nullptr
                                 ? 0.0f
                                 : static_cast<float>(Element<T>::widen(
                                       tensors_.bias[tile.group * problem_.filters + filter]));
        }
    }

  protected:
    static constexpr int kVectorPixels = kHalf / 32;  // of a half, a lane's

    // Of this warp's 16, of which a thread's values are of two, 8 apart.
    __device__ __forceinline__ int first_filter(const Tile& tile) const {
        const int warp = shared_by_lanes<S>(static_cast<int>(threadIdx.x) / 32 % 4);
        return tile.first_filter + (S::kSplitsFilters ? warpgroup_ * kRowsOfBlock : 0) + warp * 16;
    }

    // Neighbouring pixels 8 j + 2 (lane % 4) and the next one.
    template <int kValues>
    __device__ __forceinline__ Vector<float, 2> pair(const float (&sums)[kValues], int j,
                                                     int eight) const {
        const float* from = sums + 4 * j + 2 * eight;
        return {factors_[eight] * from[0] + biases_[eight],
                factors_[eight] * from[1] + biases_[eight]};
    }

    // Brings this warp's eight filters of a half to shared memory, as `Stored`.
    template <typename Stored, int kValues>
    __device__ __forceinline__ void stage(const float (&sums)[kValues], int eight) const {
        auto* row = reinterpret_cast<Stored*>(staging_ + lane_ / 4 * Shared<S>::kStagingPitch);
        auto* to = reinterpret_cast<Vector<Stored, 2>*>(row + lane_ % 4 * 2);
#pragma unroll
        for (int j = 0; j < kValues / 4; ++j) {
            const Vector<float, 2> values = pair(sums, j, eight);
            to[4 * j] = {Element<Stored>::narrow(values.values[0]),
                         Element<Stored>::narrow(values.values[1])};
        }
        ptx::warp_sync();
    }

    struct Corner {
        int row, column;  // of the half, in the first image
        int first_image;
    };

    __device__ __forceinline__ Corner corner_of(const Tile& tile, int half) const {
        const int group = S::kSplitsFilters ? 0 : warpgroup_;
        int row = tile.row + group * static_cast<int>(problem_.group_down) +
                  half * static_cast<int>(problem_.half_down);
        int column = tile.column + group * static_cast<int>(problem_.group_right) +
                     half * static_cast<int>(problem_.half_right);
        if constexpr (S::kIsFlat) {
            const auto columns = static_cast<int>(problem_.flat_columns);
            row = column / columns;
            column %= columns;
        }
        const int image = row / tall_out_;
        return {row - image * tall_out_, column, image};
    }

    // Where pixel `pixel` of a half is: its image, from the first one on, its row and column.
    struct Position {
        int image, row, column;
    };

    __device__ __forceinline__ Position position_of(const Corner& corner, int pixel) const {
        const bool is_narrow = problem_.half_columns == 8;
        int p = corner.row + (is_narrow ? pixel / 8 : 0), image = 0;
        int q = corner.column + (is_narrow ? pixel % 8 : pixel);
        if constexpr (S::kIsFlat) {
            p += q / static_cast<int>(problem_.flat_columns);
            q %= static_cast<int>(problem_.flat_columns);
        }
        while (p >= tall_out_) {
            p -= tall_out_;
            ++image;
        }
        return {image, p, q};
    }

    // And where it belongs, from the first image's first channel on; or kNone.
    static constexpr int kNone = INT_MIN;

    __device__ __forceinline__ int place_of(const Corner& corner, const Position& at) const {
        const bool exists = corner.first_image + at.image < static_cast<int>(problem_.images) &&
                            at.row < static_cast<int>(problem_.out_size[0]) &&
                            at.column < static_cast<int>(problem_.out_size[1]);
        return exists ? at.image * static_cast<int>(problem_.out_strides[0]) +
                            at.row * static_cast<int>(problem_.out_strides[2]) +
                            at.column * static_cast<int>(problem_.out_strides[3])
                      : kNone;
    }

    const Problem& problem_;
    Tensors tensors_;
    float* staging_;
    float factors_[2], biases_[2];
    int warpgroup_, lane_, tall_out_;
};

}  // namespace convsmith::implicit_gemm
