// What the implicit_gemm family is told of a convolution, and how its parts see it.
//
// All images stand on top of each other as one tall one, each padded, so that a tile of outputs may
// reach over several small images. Its rows are "tall" rows, of outputs and of inputs:
//
//   tall input row = stride * tall output row + dilation * r,   tall rows of an image: tall_height
//
// A flat tile is a run of this tall image's pixels, row after row, with what pads each on its
// right; of which there is none where channels are unfolded.
//
// A patch holds what the taps of a tile of outputs meet, split by phases of the stride: then a tap
// is a shift of the whole tile by a fixed number of pixels. Where there are few channels, a patch
// is unfolded: each channel and column of the filter is a channel of its own, and a tap is a row of
// the filter. A vector of kVector such channels is a run of columns; the last one of a row is
// filled up with zeros. So may the first one be, for its elements to lie as whole pieces do.
#pragma once

#include <type_traits>

#include "launch.cuh"
#include "ptx/bulk_copy.cuh"
#include "ptx/mbarrier.cuh"
#include "ptx/shuffle.cuh"
#include "ptx/wgmma.cuh"

namespace convsmith::implicit_gemm {

inline constexpr int kRowsOfBlock = 64;  // output channels of a weight block, and of a warpgroup
inline constexpr int kVector = 8;        // channels that lie together: 16 bytes
inline constexpr int kHalf = 128;        // pixels of one wgmma; a warpgroup has S::kHalves of them
inline constexpr int kMostTaps = 512;
inline constexpr int kMostStages = 32;
inline constexpr int kMostApart = 32;  // row phases with blocks of their own

// Scales of a tile's patches rise by so much at most, or its sums would not be finite any more.
inline constexpr float kMostRise = 0x1p64f;

// What the input gradient of a stride has beside the convolution of dy that computes it; sizes are
// those of the convolution whose gradient it is. See implicit_gemm_phases.cuh.
struct OutPhases {
    std::int64_t channels;  // of a group of x
    std::int64_t x_size[2], kernel_size[2];
    std::int64_t stride[2], padding[2], dilation[2];
    std::int64_t x_strides[2];    // of rows and columns of dx
    std::int64_t filters;         // of a row phase
    std::int64_t apart;           // row phases whose filters have blocks of their own: all, or 1
    std::int64_t stores_vectors;  // column phases that come together: x's rows are whole vectors
};

struct Problem {
    std::int64_t images, groups, channels, filters;  // the latter two of a group
    std::int64_t in_size[2], out_size[2], kernel_size[2];
    std::int64_t stride[2], padding[2], dilation[2];
    std::int64_t in_strides[4], out_strides[4];
    std::int64_t weight_strides[5];  // group, filter, channel, row, column; of a gradient, reversed
    std::int64_t first_weight;       // where the first tap of the first one is
    std::int64_t tall_height;        // input rows of an image, padded; a multiple of the stride
    std::int64_t half_columns;       // of a half: 8, and 16 rows; or kHalf, and one row
    std::int64_t half_down, half_right;    // from the first half of a tile to the second, or 0
    std::int64_t group_down, group_right;  // from the first warpgroup's pixels to the second's
    std::int64_t tile_size[2];             // of all of them together, or of what is stored of them
    std::int64_t flat_columns;  // from a row to the next one, for tiles that reach over both; or 0
    std::int64_t phases[2];     // of the stride that taps meet
    std::int64_t patch_rows, pitch;  // of a phase, in pixels
    std::int64_t row_pixels;         // from a row of taps to the next in a phase
    std::int64_t run_lead;           // pixels before those that taps meet, for runs to align
    std::int64_t lead;               // zeros before the first column of unfolded filters
    std::int64_t patch_stages, weight_stages;
    std::int64_t stores_in_turn;  // the two warpgroups
    std::int64_t weights_stay;    // all of them have a stage, and serve every tile
    std::int64_t tiles[2];        // of outputs, down all images and across
    std::int64_t all_tiles;       // of these, of all groups and filter blocks
    std::int64_t stores_pairs;    // rows of the output are whole pairs, and halves are short rows
    std::int64_t stores_in_bulk;  // or whole 16 bytes, and halves are long rows
    std::int64_t stores_runs;     // halves are rows, whose elements are neighbours
    std::int64_t owns_sectors;    // of a row: a tile's last pixels are the next tile's, or row's
    std::int64_t blocks;          // of the grid
    OutPhases out_phases;
};

// What all lanes of a warp have, in a register that they share: so is what is computed of it. Not
// of phases, which are stored lane by lane: more registers went to memory.
template <typename S>
__device__ __forceinline__ int shared_by_lanes(int value) {
    return S::kInterleaves ? value : ptx::shared_by_lanes(value);
}

// A tile of outputs and where it lies: filters of a group, and a rectangle of tall outputs.
struct Tile {
    int group, first_filter;
    int row, column;  // the first tall output row, and column
};

template <typename S>
__device__ __forceinline__ int filter_blocks(const Problem& problem) {
    return static_cast<int>((problem.filters + S::kFilters - 1) / S::kFilters);
}

// What is compiled in. T is the tensors' element, kProducts how many products of operands make one:
// 1; of operands split into two parts 3, or with that of both second parts 4; 5 with that of what
// two parts leave of a value. Then the tensor cores sum up kSumTerms times 16 terms, and what
// rounding loses when these sums are added may be kept (kCompensates). Warpgroups share the pixels
// of a tile and have filters of their own (kSplitsFilters), or the other way round. The outputs of
// filters may interleave, kTogether of them as neighbours: they are phases of the input gradient of
// a stride. Aligned long rows are copied by runs of 16 bytes (kCopiesRuns). Warpgroups that bring
// what others multiply are kLoaders.
template <typename T, int kProducts_, int kSumTerms_, bool kCompensates_, bool kSplitsFilters_,
          bool kUnfolds_, int kBlockChannels_, int kPiece_, int kAhead_, int kStageTaps_,
          int kHalves_, bool kIsFlat_, int kTogether_, bool kCopiesRuns_, int kLoaders_>
struct Convolution {
    static constexpr bool kIsWeightGradient = false;
    using Value = T;
    using Operand = std::conditional_t<std::is_same_v<T, __nv_bfloat16>, __nv_bfloat16, __half>;
    static constexpr int kProducts = kProducts_;
    static constexpr int kSumTerms = kSumTerms_;
    static constexpr bool kHasResidues = kProducts == 5;
    // Vectors of an operand, whose channels come together.
    static constexpr int kParts = kHasResidues ? 3 : kProducts > 1 ? 2 : 1;
    static constexpr bool kScales = std::is_same_v<T, float>;
    static constexpr bool kSplitsFilters = kSplitsFilters_;
    static constexpr bool kUnfolds = kUnfolds_;
    static constexpr int kTogether = kTogether_;  // a power of two, to 8; or 0
    static constexpr bool kInterleaves = kTogether > 0;
    static constexpr int kBlockChannels = kBlockChannels_;  // (or unfolded ones) of a patch
    static constexpr int kSteps = kBlockChannels / ptx::kWgmmaTerms;
    static constexpr int kVectors = kBlockChannels / kVector;  // of a patch, for each pixel
    // A loading thread copies kAtOnce vectors at once, a group, kAhead such groups before it looks
    // at them. (For 16-bit values it has to wait.)
    static constexpr int kAtOnce = sizeof(T) == 4 && !kUnfolds ? 1 : 2;
    static constexpr int kAhead = kAhead_;
    static constexpr bool kCopiesRuns = kCopiesRuns_;
    static constexpr int kPiece = kPiece_;          // elements of a vector that are copied as one
    static constexpr int kStageTaps = kStageTaps_;  // taps of a stage of weights
    static constexpr int kFilters = kSplitsFilters ? 2 * kRowsOfBlock : kRowsOfBlock;

    // Two warpgroups multiply; of the others, the first warp brings weights, the rest patches.
    // Multiplying threads keep the sums of a tile's halves in registers, and 64 products that are
    // not added yet where there are several products. What rounding loses takes as many. How many
    // registers they have beside these was measured; threads that load share what is left.
    static constexpr int kHalves = kHalves_;
    static constexpr bool kIsFlat = kIsFlat_;
    static constexpr bool kCompensates = kCompensates_;
    static_assert(!kCompensates || (kHalves == 1 && kProducts > 1));
    static_assert(!kHasResidues || kCompensates);
    static constexpr int kConsumers = 2, kLoaders = kLoaders_;  // warpgroups
    static constexpr int kThreads = (kConsumers + kLoaders) * ptx::kWarpgroup;
    static constexpr int kConsumerRegisters = kCompensates     ? 208
                                              : kLoaders == 1  ? 216
                                              : kProducts > 1  ? 160
                                              : kSplitsFilters ? 184
                                                               : 176;
    static constexpr int kLaunchRegisters = kLoaders == 2 ? 128 : 168;  // 2**16 of all, in eights
    static constexpr int kLoaderRegisters =
        ((kConsumers + kLoaders) * kLaunchRegisters - kConsumers * kConsumerRegisters) / kLoaders;
    static constexpr int kLoadingWarps = 4 * kLoaders - 1;
    static constexpr int kLoadingThreads = 32 * kLoadingWarps;

    // Bytes of a filter block's weights for one tap and kBlockChannels channels.
    static constexpr int kTapBytes = kParts * kBlockChannels * kRowsOfBlock * 2;
    static constexpr int kStageBytes = kStageTaps * kTapBytes;

    static __host__ __device__ int patch_pixels(const Problem& problem) {
        return static_cast<int>(problem.phases[0] * problem.phases[1] * problem.patch_rows *
                                problem.pitch);
    }
    static __host__ __device__ int padded_pixels(const Problem& problem) {
        return (patch_pixels(problem) + 3) / 4 * 4;
    }
    static __host__ __device__ int patch_bytes(const Problem& problem) {
        return kParts * kBlockChannels * 2 * patch_pixels(problem);
    }
    // Unfolded: vectors that a channel's columns of the filter fill.
    static __host__ __device__ int runs(const Problem& problem) {
        return (static_cast<int>(problem.lead + problem.kernel_size[1]) + kVector - 1) / kVector;
    }
    // Channels of a group, unfolded where they are.
    static __host__ __device__ int channels(const Problem& problem) {
        const auto channels = static_cast<int>(problem.channels);
        return kUnfolds ? channels * runs(problem) * kVector : channels;
    }
    static __host__ __device__ int channel_blocks(const Problem& problem) {
        return (channels(problem) + kBlockChannels - 1) / kBlockChannels;
    }
    static __host__ __device__ int tap_columns(const Problem& problem) {
        return kUnfolds ? 1 : static_cast<int>(problem.kernel_size[1]);
    }
    static __host__ __device__ int taps(const Problem& problem, int rows) {
        return rows * tap_columns(problem);
    }
    // With those that fill the last stage.
    static __host__ __device__ int padded_taps(const Problem& problem, int rows) {
        return (taps(problem, rows) + kStageTaps - 1) / kStageTaps * kStageTaps;
    }
    // Of all rows: the most that a tile meets.
    static __host__ __device__ int padded_taps(const Problem& problem) {
        return padded_taps(problem, static_cast<int>(problem.kernel_size[0]));
    }
};

// The tiles of a block, which follow one another filters first: what they read of the input is the
// same. The next one is as many tiles on as the grid has blocks.
template <typename S>
class TileWalk {
  public:
    __device__ explicit TileWalk(const Problem& problem, int first = static_cast<int>(blockIdx.x))
        : problem_(problem) {
        split(first, at_);
        split(static_cast<int>(gridDim.x), step_);
    }

    __device__ __forceinline__ bool exists() const {
        return at_[kDown] < static_cast<int>(problem_.tiles[0]);
    }

    __device__ __forceinline__ Tile tile() const {
        return {at_[kGroup], at_[kFilters] * S::kFilters,
                at_[kDown] * static_cast<int>(problem_.tile_size[0]),
                at_[kAcross] * static_cast<int>(problem_.tile_size[1])};
    }

    __device__ __forceinline__ void advance() {
        int carry = 0;
#pragma unroll
        for (int digit = 0; digit < kDown; ++digit) {
            at_[digit] += step_[digit] + carry;
            carry = at_[digit] >= size(digit) ? 1 : 0;
            if (carry != 0) at_[digit] -= size(digit);
        }
        at_[kDown] += step_[kDown] + carry;
    }

  private:
    // Digits of a tile's number, the first one changes first.
    static constexpr int kFilters = 0, kGroup = 1, kAcross = 2, kDown = 3, kDigits = 4;

    __device__ __forceinline__ int size(int digit) const {
        return digit == kFilters ? filter_blocks<S>(problem_)
               : digit == kGroup ? static_cast<int>(problem_.groups)
                                 : static_cast<int>(problem_.tiles[1]);
    }

    __device__ __forceinline__ void split(int number, int (&digits)[kDigits]) const {
        for (int digit = 0; digit < kDown; ++digit) {
            digits[digit] = number % size(digit);
            number /= size(digit);
        }
        digits[kDown] = number;
    }

    const Problem& problem_;
    int at_[kDigits], step_[kDigits];
};

// Shared memory of a block.
template <typename S>
struct Shared {
    struct Head {
        ptx::Barrier patch_full[kMostStages], patch_empty[kMostStages];
        ptx::Barrier weights_full[2][kMostStages], weights_empty[2][kMostStages];
        float scales[kMostStages];  // of the patches
        unsigned largest[2][8];     // of each loading warp's values, of two patches in turn
        int tap_shifts[kMostTaps];  // of the patch, in pixels
        // Of each run, where they are unfolded: where its first column's element lies from a pixel,
        // that column, and how many columns there are, with the zeros before them.
        int offsets[S::kUnfolds ? kMostTaps : 1], steps[S::kUnfolds ? kMostTaps : 1];
        int counts[S::kUnfolds ? kMostTaps : 1];
        // Of each kind of filter blocks, in whole stages.
        int tap_counts[S::kInterleaves ? kMostApart : 1];
    };
    static constexpr int kHeadBytes = (sizeof(Head) + 127) / 128 * 128;
    static constexpr int kStagingPitch = kHalf + 8;
    static constexpr int kStagingBytes = 8 * kStagingPitch * 4;  // of a warp: 8 channels
    // What loading threads keep of a patch's pixels; see PatchLoader.
    static constexpr int kTables = S::kUnfolds ? 5 : 3;
    static constexpr int kGroupValues = S::kAtOnce * kVector * S::kLoadingThreads;
    static constexpr int kLoadsBytes =
        (S::kAhead + 1) * kGroupValues * static_cast<int>(sizeof(typename S::Value));

    int patches, weights, staging, tables, loads, bytes;  // offsets

    __host__ __device__ explicit Shared(const Problem& problem) {
        patches = kHeadBytes;
        weights = patches + static_cast<int>(problem.patch_stages) * S::patch_bytes(problem);
        const int rings = S::kSplitsFilters ? 2 : 1;
        staging = weights + rings * static_cast<int>(problem.weight_stages) * S::kStageBytes;
        tables = staging + 4 * S::kConsumers * kStagingBytes;
        loads = tables + kTables * S::padded_pixels(problem) * 4;
        bytes = loads + kLoadsBytes;
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
