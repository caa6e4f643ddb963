// What the weight gradient of the implicit_gemm family is told, and how its parts see it.
//
//   dw[k,c,r,s] = sum_{n,p,q} dy[n,k,p,q] * x[n, c, p * stride_h - padding_h + r * dilation_h,
//                                                   q * stride_w - padding_w + s * dilation_w]
//   db[k] = sum_{n,p,q} dy[n,k,p,q]
//
// The sums go over pixels. A LINE is what is added at once: a row of outputs, or a run of its
// columns, of one image or of several side by side (segments, `pitch` pixels apart). A STRIP is
// lines below one another, of the same images and columns: all of them, or every so many-th where
// the filter's rows are dilated, so that they meet the same rows of x. A block goes down strips and
// has a row of dy for each line, and in a ring the rows of x that the line meets: a row is loaded
// once, and stays for all rows of taps. Within a row a tap is a shift by whole pixels, of the phase
// of the stride that it meets.
//
// A block's sums are of up to kUnits UNITS: 64 filters, S::kColumns channels and one tap each.
//
// Few channels are unfolded: each has some neighbouring taps of a filter row as channels of its
// own, its LANES, and only every so many-th tap is one still. Lane s of c is, in a line's pixel,
// what tap s meets in x. Lanes are filled up to a power of two, or to whole vectors: a vector is of
// whole channels, or of one.
#pragma once

#include <algorithm>

#include "implicit_gemm_operands.cuh"

namespace convsmith::implicit_gemm {

inline constexpr int kMostLines = 4;  // in shared memory
inline constexpr int kMostRows = 64;  // of x in the ring
inline constexpr int kUnits = 36;

struct WeightProblem {
    std::int64_t images, groups, channels, filters;  // the latter two of a group
    std::int64_t x_size[2], y_size[2], kernel_size[2];
    std::int64_t stride[2], padding[2], dilation[2];
    std::int64_t x_strides[4], y_strides[4], w_strides[4];
    std::int64_t unit_filters, unit_channels, unit_taps;  // units of a block
    std::int64_t runs, run_columns;                       // of a row of outputs
    std::int64_t pitch;                                   // from an image of a line to the next
    std::int64_t line_step;      // rows of outputs from a line to the one below it in its strip
    std::int64_t row_step;       // rows of x from one that a strip's lines meet to the next
    std::int64_t span, advance;  // rows of x that a line meets; that are new in the next one
    std::int64_t lines, rows;    // of the rings
    std::int64_t x_columns;      // of x that a line of one image reaches over
    std::int64_t row_taps;       // of a filter row; 0 where channels are not unfolded
    std::int64_t unfolded;       // taps of an unfolded channel; else 1
    std::int64_t splits;         // of all lines, each with its own partial sums
};

// Where dy and x lie, from their first elements to past their last ones.
struct Tensors {
    std::uintptr_t begin[2], end[2];
};

// What is compiled in: T is the tensors' element, and each multiplying warpgroup has the sums of
// kSlots units of kColumns channels, over lines of kSegments images. An operand has kParts: of two,
// high and low, the tensor cores add up the products of kSumPixels at once. If neighbours in a line
// are neighbours in memory, of dy and, unless it is unfolded, of x, it is plain. An unfolded
// channel has kLanes, another none.
// Of a row of dy and of one of x are known: its pixels, of x in each phase; a channel's bytes, as
// they are loaded; and whether all channels' rows lie alike in memory, to 16 bytes.
template <typename T, int kParts_, int kSumPixels_, int kColumns_, int kSlots_, int kSegments_,
          bool kIsPlain_, int kLanes_, int kLoads_, int kLoaders_, bool kSharesFilters_,
          bool kSumsBias_, int kYPixels, int kPhases_, int kPhasePixels_, int kYBytes, int kXBytes,
          bool kYAlike, bool kXAlike>
struct WeightGradient {
    using Value = T;
    using Operand = std::conditional_t<std::is_same_v<T, __nv_bfloat16>, __nv_bfloat16, __half>;
    static constexpr bool kIsWeightGradient = true;
    static constexpr int kParts = kParts_, kSumPixels = kSumPixels_;
    static constexpr bool kScales = std::is_same_v<T, float>;
    static constexpr int kColumns = kColumns_, kSlots = kSlots_, kPixels = kYPixels;
    static constexpr int kPhases = kPhases_, kPhasePixels = kPhasePixels_;
    static constexpr int kSegments = kSegments_;
    static constexpr bool kSideBySide = kSegments > 1, kIsPlain = kIsPlain_;
    template <bool kIsX>
    static constexpr int kRowPixels = kIsX ? kPhases * kPhasePixels : kPixels;
    template <bool kIsX>
    static constexpr int kRowBytes = kIsX ? kXBytes : kYBytes;
    template <bool kIsX>
    static constexpr bool kLieAlike = kIsX ? kXAlike : kYAlike;
    static constexpr int kLanes = kLanes_;
    static constexpr bool kUnfolds = kLanes > 0;
    static constexpr int kLanesOfVector = kUnfolds && kLanes < kVector ? kLanes : kVector;
    // Of what is loaded at once, a slice of all images of a line: channels of x, of dy kVector.
    static constexpr int kXChannels = kUnfolds ? kVector / kLanesOfVector : kVector;
    static constexpr int kXImageBytes = kXChannels * kXBytes, kYImageBytes = kVector * kYBytes;
    static constexpr int kSliceBytes = kSegments * std::max(kXImageBytes, kYImageBytes);
    static constexpr bool kSharesFilters = kSharesFilters_;  // the units of a warpgroup do
    static constexpr bool kSumsBias = kSumsBias_;            // dy itself is added up, too
    static constexpr int kLoads = kLoads_;  // slices of rows that a loading warp has on their way
    static constexpr int kConsumers = 3, kLoaders = kLoaders_;  // warpgroups
    static constexpr int kThreads = (kConsumers + kLoaders) * ptx::kWarpgroup;
    static constexpr int kLoadingWarps = 4 * kLoaders;

    // A multiplying thread keeps so many sums, and filters: of 32 pixels, of so many kinds; or of
    // kSumPixels, in two parts, with products that are not added yet. What it needs no registers
    // for, loading threads have.
    static constexpr int kFilterKinds = kSharesFilters ? 1 : kSlots;
    static constexpr int kKept =
        kSlots * kColumns / 2 + (kParts == 1 ? 8 * kFilterKinds : kSumPixels / 2 + kColumns / 2);
    static constexpr int kConsumerRegisters = kLoaders == 2 ? 96
                                              : kKept > 112 ? 144
                                              : kKept > 64  ? 136
                                                            : 104;
    static constexpr int kLaunchRegisters = 65536 / kThreads / 8 * 8;
    static constexpr int kLoaderRegisters =
        ((kConsumers + kLoaders) * kLaunchRegisters - kConsumers * kConsumerRegisters) / kLoaders /
        8 * 8;
    static constexpr int kAtOnce =  // vectors of a thread
        kParts == 1 && kLoaders == 1 && !kSideBySide ? 4 : 2;
    static constexpr int kUnitValues = ptx::kWgmmaRows * kColumns;
};

// Which sums a block has.
struct Job {
    int split, group, first_filter, first_channel, first_tap;
    int number;  // of all jobs of a split

    __host__ __device__ static int blocks(std::int64_t size, std::int64_t of_block) {
        return static_cast<int>((size + of_block - 1) / of_block);
    }
    template <typename S>
    static __host__ __device__ int filter_blocks(const WeightProblem& problem) {
        return blocks(problem.filters, problem.unit_filters * kRowsOfBlock);
    }
    template <typename S>
    static __host__ __device__ int channel_blocks(const WeightProblem& problem) {
        return blocks(problem.channels, problem.unit_channels * S::kColumns);
    }
    static __host__ __device__ int taps(const WeightProblem& problem) {
        return static_cast<int>(problem.kernel_size[0] * problem.kernel_size[1]);
    }
    template <typename S>
    static __host__ __device__ int count(const WeightProblem& problem) {
        return static_cast<int>(problem.groups) * filter_blocks<S>(problem) *
               channel_blocks<S>(problem) * blocks(taps(problem), problem.unit_taps);
    }
    static __host__ __device__ int units(const WeightProblem& problem) {
        return static_cast<int>(problem.unit_filters * problem.unit_channels * problem.unit_taps);
    }

    template <typename S>
    static __device__ __forceinline__ Job of(const WeightProblem& problem, int number) {
        Job job;
        job.split = number / count<S>(problem);
        int rest = job.number = number % count<S>(problem);
        const int tap_blocks = blocks(taps(problem), problem.unit_taps);
        job.first_tap = rest % tap_blocks * static_cast<int>(problem.unit_taps);
        rest /= tap_blocks;
        job.first_channel = rest % channel_blocks<S>(problem) *
                            static_cast<int>(problem.unit_channels) * S::kColumns;
        rest /= channel_blocks<S>(problem);
        job.first_filter = rest % filter_blocks<S>(problem) *
                           static_cast<int>(problem.unit_filters) * kRowsOfBlock;
        job.group = rest / filter_blocks<S>(problem);
        return job;
    }

    // The blocks that add up dy itself, too.
    __device__ __forceinline__ bool has_bias() const { return first_channel + first_tap == 0; }
};

// One of a job's units.
struct Unit {
    int filter, channel, tap;  // the first ones, from the job's

    template <typename S>
    static __device__ __forceinline__ Unit of(const WeightProblem& problem, int number) {
        const auto taps = static_cast<int>(problem.unit_taps);
        const auto channels = static_cast<int>(problem.unit_channels);
        return {number / taps / channels * kRowsOfBlock, number / taps % channels * S::kColumns,
                number % taps};
    }
};

// The lines of a split, one after another.
template <typename S>
class LineWalk {
  public:
    __device__ LineWalk(const WeightProblem& problem, int split) : problem_(problem) {
        const std::int64_t images = (problem.images + S::kSegments - 1) / S::kSegments;
        const std::int64_t all = images * problem.runs * problem.y_size[0];
        const std::int64_t first = all * split / problem.splits;
        left_ = static_cast<int>(all * (split + 1) / problem.splits - first);
        const auto rows = static_cast<int>(problem.y_size[0]);
        begin(static_cast<int>(first % rows), rows, static_cast<int>(problem.line_step));
        const auto run = static_cast<int>(first / rows), runs = static_cast<int>(problem.runs);
        image_ = run / runs * S::kSegments;
        column_ = run % runs * static_cast<int>(problem.run_columns);
        fresh_ = static_cast<int>(problem.span);
    }

    __device__ __forceinline__ bool exists() const { return left_ > 0; }
    __device__ __forceinline__ int left() const { return left_; }

    // The first image, the row and the first column, of the output.
    __device__ __forceinline__ int image() const { return image_; }
    __device__ __forceinline__ int row() const { return row_; }
    __device__ __forceinline__ int column() const { return column_; }

    // Rows of x are numbered as they are loaded. The line meets those from lowest() on, span of
    // them, of which the last fresh() are new.
    __device__ __forceinline__ int lowest() const { return lowest_; }
    __device__ __forceinline__ int fresh() const { return fresh_; }

    __device__ __forceinline__ void advance() {
        --left_;
        fresh_ = static_cast<int>(problem_.advance);
        row_ += static_cast<int>(problem_.line_step);
        if (row_ >= static_cast<int>(problem_.y_size[0])) next_strip();
        lowest_ += fresh_;
    }

  private:
    // Goes to the i-th line of a run.
    __device__ __forceinline__ void begin(int i, int rows, int step) {
        // The first strips are a line longer than the others.
        const int lines = rows / step, longer = rows % step;
        const bool is_longer = i < longer * (lines + 1);
        if (!is_longer) i -= longer;
        strip_ = i / (lines + is_longer);
        row_ = strip_ + (i - strip_ * (lines + is_longer)) * step;
    }

    __device__ __forceinline__ void next_strip() {
        fresh_ = static_cast<int>(problem_.span);
        row_ = ++strip_;
        if (strip_ < static_cast<int>(problem_.line_step)) return;
        row_ = strip_ = 0;
        column_ += static_cast<int>(problem_.run_columns);
        if (column_ < static_cast<int>(problem_.y_size[1])) return;
        column_ = 0;
        image_ += S::kSegments;
    }

    const WeightProblem& problem_;
    int strip_;  // of the run's, which is also its first row
    int image_, row_, column_, left_, fresh_, lowest_ = 0;
};

// Shared memory of a block: dy [line][part][filters / kVector][pixel][kVector], x [row][part]
// [channels / kVector][phase][pixel][kVector], and what loading takes.
template <typename S>
struct WeightShared {
    // Where a unit's operands begin in a row of dy and in a row of x, in vectors; and which of the
    // rows that a line meets.
    struct Place {
        int y, x, row;
    };
    // What is to be known of dy (0) and of x (1) when their rows are loaded.
    struct Tensor {
        std::uintptr_t begin, end, channels;  // memory; where the block's first channel begins
        std::int64_t of_image, of_channel, of_row;  // strides, in bytes
        std::int64_t last;  // from the first channel's row to the last one's
        int count, slices;  // channels of the block that exist; of a row of kVector
        int table, low;     // where the pixels' table begins, and low parts' vectors
    };
    struct Head {
        Tensor tensors[2];
        ptx::Barrier full[kMostLines], empty[kMostLines];
        Place places[kUnits];
        // Of each line: its first row's place in the ring, its first image and column, what its dy
        // has been multiplied by, a power of two.
        int rows[kMostLines], images[kMostLines], columns[kMostLines], y_exponents[kMostLines];
        // Of each row of x: likewise, and whether some of it is infinite or not a number.
        int x_exponents[kMostRows], x_specials[kMostRows];
        unsigned largest[2][2][S::kLoadingWarps];  // by turns, of x and of dy
        // Of each line, which row of x is the first that it meets, as each loading warp knows it.
        int lowest[kMostLines][S::kLoadingWarps];
    };
    static constexpr int kHeadBytes = (sizeof(Head) + 127) / 128 * 128;

    int y_vectors, x_vectors;                // of one part of a row
    int y_bytes, x_bytes;                    // of a row
    int y, x, loads, tables, biases, bytes;  // offsets

    __host__ __device__ explicit WeightShared(const WeightProblem& problem) {
        const auto filters = static_cast<int>(problem.unit_filters) * kRowsOfBlock;
        const auto channels = static_cast<int>(problem.unit_channels) * S::kColumns;
        y_vectors = filters / kVector * S::kPixels;
        x_vectors = channels / kVector * S::template kRowPixels<true>;
        y_bytes = 16 * S::kParts * y_vectors;
        x_bytes = 16 * S::kParts * x_vectors;
        y = kHeadBytes;
        x = y + static_cast<int>(problem.lines) * y_bytes;
        loads = x + static_cast<int>(problem.rows) * x_bytes;
        tables = loads + S::kLoadingWarps * S::kLoads * S::kSliceBytes;
        biases = tables + (S::template kRowPixels<true> + S::kPixels + 3) / 4 * 16;
        bytes = biases + (S::kSumsBias ? filters * 32 * 4 : 0);
    }
};

// Writes down, for each pixel of a row of x and then of dy, its segment and column in 16 bits each,
// or -1. `thread` is of the loading ones.
template <typename S>
__device__ __forceinline__ void make_tables(const WeightProblem& problem, int* x, int thread) {
    constexpr int kThreads = S::kLoadingWarps * 32;
    constexpr int kXPixels = S::template kRowPixels<true>;
    const auto pitch = static_cast<int>(problem.pitch);
    const auto stride = static_cast<int>(problem.stride[1]);
    for (int i = thread; i < kXPixels; i += kThreads) {
        const int segment = i % S::kPhasePixels / pitch, phase = i / S::kPhasePixels;
        const int column = i % S::kPhasePixels % pitch * stride +
                           phase * static_cast<int>(problem.dilation[1]) % stride;
        x[i] = segment < S::kSegments ? segment << 16 | column : -1;
    }
    for (int i = thread; i < S::kPixels; i += kThreads) {
        const int segment = i / pitch, column = i % pitch;
        const bool exists =
            segment < S::kSegments && column < static_cast<int>(problem.run_columns);
        x[kXPixels + i] = exists ? segment << 16 | column : -1;
    }
}

// 2**exponent, or as near to it as a normal float is.
__device__ __forceinline__ float power_of_two(int exponent) {
    const auto bits = static_cast<unsigned>(min(max(exponent, -126), 127) + 127) << 23;
#ifdef CONVSMITH_SIMULATOR
    return simulator::bits_of<float>(bits);
#else
    return __uint_as_float(bits);
#endif
}

}  // namespace convsmith::implicit_gemm
