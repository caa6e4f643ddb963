// What the implicit_gemm family is told of a convolution, and how its parts see it.
//
// All images stand on top of each other as one tall one, each padded, so that a tile of outputs may
// reach over several small images. Its rows are "tall" rows, of outputs and of inputs:
//
//   tall input row = stride * tall output row + dilation * r,   tall rows of an image: tall_height
//
// A patch holds what the taps of a tile of outputs meet, split by phases of the stride: then a tap
// is a shift of the whole tile by a fixed number of pixels. Where there are few channels, a patch
// is unfolded: it holds each product's element of x, as if each channel and tap were a channel of
// its own and the only tap.
#pragma once

#include <type_traits>

#include "launch.cuh"
#include "ptx/bulk_copy.cuh"
#include "ptx/mbarrier.cuh"
#include "ptx/wgmma.cuh"

namespace convsmith::implicit_gemm {

inline constexpr int kRowsOfBlock = 64;  // output channels of a weight block, and of a warpgroup
inline constexpr int kVector = 8;        // channels that lie together: 16 bytes
inline constexpr int kHalf = 128;        // pixels of one wgmma; a warpgroup has two times as many
inline constexpr int kMostTaps = 512;
inline constexpr int kMostStages = 32;

struct Problem {
    std::int64_t images, groups, channels, filters;  // the latter two of a group
    std::int64_t in_size[2], out_size[2], kernel_size[2];
    std::int64_t stride[2], padding[2], dilation[2];
    std::int64_t in_strides[4], out_strides[4];
    std::int64_t weight_strides[5];  // group, filter, channel, row, column; of a gradient, reversed
    std::int64_t first_weight;       // where the first tap of the first one is
    std::int64_t tall_height;        // input rows of an image, padded; a multiple of the stride
    std::int64_t tile_is_tall;       // halves of 8 columns and 16 rows; else of a row
    std::int64_t phases[2];          // of the stride that taps meet
    std::int64_t patch_rows, pitch;  // of a phase, in pixels
    std::int64_t patch_stages, weight_stages;
    std::int64_t weights_stay;    // all of them have a stage, and serve every tile
    std::int64_t tiles[2];        // of outputs, down all images and across
    std::int64_t stores_vectors;  // rows of the output are whole vectors of four elements
    std::int64_t blocks;          // of the grid
};

// A tile of outputs and where it lies: filters of a group, and a rectangle of tall outputs.
struct Tile {
    int group, first_filter;
    int row, column;  // the first tall output row, and column
};

template <typename S>
__device__ __forceinline__ int filter_blocks(const Problem& problem) {
    return static_cast<int>((problem.filters + S::kFilters - 1) / S::kFilters);
}

// Tiles follow one another filters first: what they read of the input is the same.
template <typename S>
__device__ __forceinline__ Tile tile_at(const Problem& problem, int index) {
    const int blocks = filter_blocks<S>(problem);
    const int filters = index % blocks;
    index /= blocks;
    const int groups = static_cast<int>(problem.groups);
    const int across = static_cast<int>(problem.tiles[1]);
    Tile tile;
    tile.group = index % groups;
    index /= groups;
    tile.first_filter = filters * S::kFilters;
    tile.column = index % across * S::tile_columns(problem);
    tile.row = index / across * S::tile_rows(problem);
    return tile;
}

template <typename S>
__device__ __forceinline__ int tile_count(const Problem& problem) {
    return static_cast<int>(problem.tiles[0] * problem.tiles[1] * problem.groups) *
           filter_blocks<S>(problem);
}

// What is compiled in. T is the tensors' element, kProducts how many products of 16-bit operands
// make one: 1, or 3 of split operands. Warpgroups share the pixels of a tile and have filters of
// their own (kSplitsFilters), or the other way round.
template <typename T, int kProducts_, bool kSplitsFilters_, bool kUnfolds_, int kBlockChannels_,
          int kSlots_, int kStageTaps_>
struct Specialisation {
    using Value = T;
    using Operand = std::conditional_t<std::is_same_v<T, __nv_bfloat16>, __nv_bfloat16, __half>;
    static constexpr int kProducts = kProducts_;
    static constexpr int kParts = kProducts == 3 ? 2 : 1;  // of an operand: high, and low
    static constexpr bool kScales = std::is_same_v<T, float>;
    static constexpr bool kSplitsFilters = kSplitsFilters_;
    static constexpr bool kUnfolds = kUnfolds_;
    static constexpr int kBlockChannels = kBlockChannels_;  // (or unfolded ones) of a patch
    static constexpr int kSteps = kBlockChannels / ptx::kWgmmaTerms;
    static constexpr int kSlots = kSlots_;  // most pixels of a patch that a loading thread has
    static constexpr int kStageTaps = kStageTaps_;  // taps of a stage of weights
    static constexpr int kFilters = kSplitsFilters ? 2 * kRowsOfBlock : kRowsOfBlock;
    static constexpr int kPixelGroups = kSplitsFilters ? 1 : 2;  // of two halves each

    static constexpr int kWarps = 12, kThreads = 32 * kWarps;
    static constexpr int kConsumers = 2;  // warpgroups
    // Registers of a thread. Consumers keep 128 sums, and 64 products that are not added yet where
    // there are several products. What is left for loading says how many loads can be on their way.
    static constexpr int kConsumerRegisters = kProducts == 1 ? 176 : 208;
    static constexpr int kLoaderRegisters = 504 - 2 * kConsumerRegisters;
    static constexpr int kPixelsAtOnce = kProducts == 1 ? 6 : 2;  // kVector loads each
    static constexpr int kLoadingWarps = 3;  // of the third warpgroup; its first warp has weights
    static constexpr int kLoadingThreads = 32 * kLoadingWarps;

    // Bytes of a filter block's weights for one tap and kBlockChannels channels.
    static constexpr int kTapBytes = kParts * kBlockChannels * kRowsOfBlock * 2;
    static constexpr int kStageBytes = kStageTaps * kTapBytes;

    static __host__ __device__ constexpr int tile_rows(const Problem& problem) {
        return problem.tile_is_tall ? 16 * kPixelGroups : 2 * kPixelGroups;
    }
    static __host__ __device__ constexpr int tile_columns(const Problem& problem) {
        return problem.tile_is_tall ? 16 : kHalf;
    }
    static __host__ __device__ int patch_pixels(const Problem& problem) {
        return static_cast<int>(problem.phases[0] * problem.phases[1] * problem.patch_rows *
                                problem.pitch);
    }
    static __host__ __device__ int patch_bytes(const Problem& problem) {
        return kParts * kBlockChannels * 2 * patch_pixels(problem);
    }
    // Channels of a group, unfolded where they are.
    static __host__ __device__ int channels(const Problem& problem) {
        const auto taps = static_cast<int>(problem.kernel_size[0] * problem.kernel_size[1]);
        return static_cast<int>(problem.channels) * (kUnfolds ? taps : 1);
    }
    static __host__ __device__ int channel_blocks(const Problem& problem) {
        return (channels(problem) + kBlockChannels - 1) / kBlockChannels;
    }
    static __host__ __device__ int taps(const Problem& problem) {
        return kUnfolds ? 1 : static_cast<int>(problem.kernel_size[0] * problem.kernel_size[1]);
    }
    // With those of weight zero that fill the last stage.
    static __host__ __device__ int padded_taps(const Problem& problem) {
        return (taps(problem) + kStageTaps - 1) / kStageTaps * kStageTaps;
    }
};

// Shared memory of a block.
template <typename S>
struct Shared {
    struct Head {
        ptx::Barrier patch_full[kMostStages], patch_empty[kMostStages];
        ptx::Barrier weights_full[2][kMostStages], weights_empty[2][kMostStages];
        float scales[kMostStages];  // of the patches
        unsigned largest[2][4];     // of each loading warp's values
        int tap_shifts[kMostTaps];  // of the patch, in pixels
        // Unfolded: from an output's first element to each product's, in memory; and its rows and
        // columns, in 16 bits each.
        int offsets[S::kUnfolds ? kMostTaps : 1], steps[S::kUnfolds ? kMostTaps : 1];
    };
    static constexpr int kHeadBytes = (sizeof(Head) + 127) / 128 * 128;
    static constexpr int kStagingPitch = kHalf + 8;
    static constexpr int kStagingBytes = 8 * kStagingPitch * 4;  // of a warp: 8 channels

    int patches, weights, staging, bytes;  // offsets

    __host__ __device__ explicit Shared(const Problem& problem) {
        patches = kHeadBytes;
        weights = patches + static_cast<int>(problem.patch_stages) * S::patch_bytes(problem);
        const int rings = S::kSplitsFilters ? 2 : 1;
        staging = weights + rings * static_cast<int>(problem.weight_stages) * S::kStageBytes;
        bytes = staging + 4 * S::kConsumers * kStagingBytes;
    }
};

// Place and phase of a ring of stages.
struct Ring {
    int stage = 0, parity = 0;

    __device__ __forceinline__ void advance(int stages) {
        if (++stage == stages) {
            stage = 0;
            parity ^= 1;
        }
    }
};

}  // namespace convsmith::implicit_gemm
