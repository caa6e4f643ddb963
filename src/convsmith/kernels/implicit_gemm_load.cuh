// Patches on their way to shared memory: what a tile of outputs meets of S::kBlockChannels
// channels, as operands [part][channels / kVector][pixel], each a vector of 16 bytes.
//
// A patch's vectors, of kVector channels of a pixel, are dealt out to the loading threads. Each
// copies its own as they are to a ring in shared memory, S::kAhead groups of them ahead, whatever
// patch or tile those belong to, and rounds or splits a group when it has arrived. Where rows are
// aligned, a warp copies its lanes' pixels together, as runs of 16 bytes of a channel.
//
// float32 values are scaled to the range of 16 bits by a power of two. All loading threads keep one
// scale for as long as it suits; where a patch does not suit it, they take it over again.
#pragma once

#include <climits>

#include "implicit_gemm_operands.cuh"
#include "implicit_gemm_phases.cuh"
#include "ptx/cp_async.cuh"
#include "ptx/load.cuh"
#include "ptx/max.cuh"
#include "ptx/reduce.cuh"
#include "ptx/warpgroup.cuh"

namespace convsmith::implicit_gemm {

inline constexpr int kLoadersBarrier = 1;  // its number

template <typename S>
class PatchLoader {
  public:
    using T = typename S::Value;
    using Operand = typename S::Operand;
    static constexpr int kThreads = S::kLoadingThreads;

    __device__ PatchLoader(const Problem& problem, const T* input, unsigned char* shared,
                           typename Shared<S>::Head& head, int thread)
        : problem_(problem), input_(input), head_(head), thread_(thread) {
        const Shared<S> parts(problem);
        patches_ = shared + parts.patches;
        pixels_ = S::patch_pixels(problem);
        steps_ = reinterpret_cast<int*>(shared + parts.tables);
        loads_ = reinterpret_cast<T*>(shared + parts.loads);
        ring_ = loads_ + thread * S::kPiece;
        copies_pieces_ = reinterpret_cast<std::uintptr_t>(input) % (S::kPiece * sizeof(T)) == 0;
        copies_runs_ = S::kCopiesRuns && reinterpret_cast<std::uintptr_t>(input) % 16 == 0;
        first_copied_ = thread;
        if (copies_runs_) {
            first_copied_ += thread % 32 % kWarpRuns * kRun - thread % 32;
            run_channel_ = thread % 32 / kWarpRuns;
        }
        const int pitch = static_cast<int>(problem_.pitch);
        const int rows = static_cast<int>(problem_.patch_rows);
        const int across = static_cast<int>(problem_.phases[1]);
        for (int pixel = thread; pixel < pixels_; pixel += kThreads) {
            const int phase = pixel / (rows * pitch);
            const int row = step_to(pixel / pitch % rows, phase / across, 0);
            const int column =
                S::kIsFlat ? pixel % pitch : step_to(pixel % pitch, phase % across, 1);
            steps_[pixel] = row << 16 | column;
        }
    }

    // Brings the patches of all channels of a block's tiles.
    __device__ __forceinline__ void load() {
        begin_tile();
#pragma unroll 1
        for (int i = 0; i < S::kAhead; ++i) {
            begin_group();
            go_on();
        }
#pragma unroll 1
        for (int tile = static_cast<int>(blockIdx.x); tile < static_cast<int>(problem_.all_tiles);
             tile += static_cast<int>(gridDim.x)) {
            if (S::kInterleaves && !meets_taps(TileWalk<S>(problem_, tile).tile())) continue;
#pragma unroll 1
            for (int channel = 0; channel < S::channels(problem_); channel += S::kBlockChannels) {
                load_patch(tile, channel);
            }
        }
    }

  private:
    static constexpr int kNone = INT_MIN;  // the place of what is padding

    // A thread reads a group that has arrived before it begins another one, so that the values
    // come meanwhile. Those of two vectors would be more than its registers hold.
    static constexpr bool kReadsFirst = S::kAtOnce == 1;

    __device__ __forceinline__ bool meets_taps(const Tile& tile) const {
        return taps_of<S>(problem_, head_, tile).count > 0;
    }

    // The input row (or column) of a pixel of a phase, from the first one of the patch.
    __device__ __forceinline__ int step_to(int index, int phase, int axis) const {
        const auto stride = static_cast<int>(problem_.stride[axis]);
        return index * stride + phase * static_cast<int>(problem_.dilation[axis]) % stride;
    }

    // Where a tile's patches begin: the image that its first row is of, that row, in the padded
    // image, and the first column; of a flat one, the output's column. All a tile meets is within
    // offsets of 32 bits from that image's first channel, at `plane`.
    struct Corner {
        int image, row, column;
        const T* plane;
    };

    __device__ __forceinline__ Corner corner_of(const Tile& tile) const {
        const int flat_row = S::kIsFlat ? tile.column / static_cast<int>(problem_.flat_columns) : 0;
        const int row = (tile.row + flat_row) * static_cast<int>(problem_.stride[0]);
        const int tall = static_cast<int>(problem_.tall_height);
        const int image = row / tall;
        const int column = S::kIsFlat ? tile.column % static_cast<int>(problem_.flat_columns)
                                      : tile.column * static_cast<int>(problem_.stride[1]) -
                                            static_cast<int>(problem_.padding[1]) -
                                            static_cast<int>(problem_.run_lead);
        const T* plane = input_ + image * problem_.in_strides[0] +
                         tile.group * problem_.channels * problem_.in_strides[1];
        return {image, row - image * tall, column, plane};
    }

    // Where a pixel lies from the corner's plane, or kNone; and its column in the image.
    struct Pixel {
        int place, column;
    };

    __device__ __forceinline__ Pixel pixel_of(const Corner& corner, int pixel) const {
        const int step = steps_[pixel];
        const int tall = static_cast<int>(problem_.tall_height);
        int h = corner.row + (step >> 16), w = corner.column + (step & 0xffff), image = 0;
        if constexpr (S::kIsFlat) {
            const auto columns = static_cast<int>(problem_.flat_columns);
            h += w / columns * static_cast<int>(problem_.stride[0]);
            w = w % columns * static_cast<int>(problem_.stride[1]) -
                static_cast<int>(problem_.padding[1]);
        } else if (problem_.owns_sectors != 0) {
            const int columns = static_cast<int>(problem_.flat_columns * problem_.stride[1]);
            if (w + max(static_cast<int>(problem_.padding[1]), 0) >= columns) {
                h += static_cast<int>(problem_.stride[0]);
                w -= columns;
            }
        }
        while (h >= tall) {
            h -= tall;
            ++image;
        }
        h -= static_cast<int>(problem_.padding[0]);
        bool exists = corner.image + image < static_cast<int>(problem_.images) && is_within(h, 0);
        if constexpr (!S::kUnfolds) exists = exists && is_within(w, 1);
        const int place = image * static_cast<int>(problem_.in_strides[0]) +
                          h * static_cast<int>(problem_.in_strides[2]) +
                          w * static_cast<int>(problem_.in_strides[3]);
        return {exists ? place : kNone, w};
    }

    __device__ __forceinline__ bool is_within(int place, int axis) const {
        return static_cast<unsigned>(place) < static_cast<unsigned>(problem_.in_size[axis]);
    }

    // How many zeros a run begins with.
    __device__ __forceinline__ int begins_with(int run) const {
        if (S::kPiece == 1 || run % S::runs(problem_) != 0) return 0;
        return static_cast<int>(problem_.lead);
    }

    // Calls `visitor` for each of kVector channels of a pixel, from `channel` on: with its number,
    // where it lies, and whether it exists. `plane` is where the first one begins, or the group's
    // first one if they are unfolded. These may come in pieces of kPiece neighbours, of which each
    // is within the image or beyond it; what a piece holds beside the filter's columns meets zeros.
    template <bool kAllExist, int kPiece = 1, typename Visitor>
    __device__ __forceinline__ void visit_channels(const T* plane, const Pixel& pixel, int channel,
                                                   const Visitor& visitor) const {
        const bool exists = pixel.place != kNone;
        const T* from = plane + (exists ? pixel.place : 0);
        if constexpr (S::kUnfolds) {
            const bool is_run = exists && (kAllExist || channel < S::channels(problem_));
            const int run = is_run ? channel / kVector : 0;
            const int count = is_run ? head_.counts[run] : 0;
            const int first = kPiece == 1 ? begins_with(run) : 0;
            const int step = kPiece == 1 ? static_cast<int>(problem_.dilation[1]) : kPiece;
            const std::int64_t move = kPiece == 1 ? step * problem_.in_strides[3] : kPiece;
            int w = pixel.column + head_.steps[run];
            from += head_.offsets[run];
#pragma unroll
            for (int c = 0; c < kVector; c += kPiece) {
                visitor(c, from, c >= first && c < count && is_within(w, 1));
                w += step;
                from += move;
            }
        } else {
#pragma unroll
            for (int c = 0; c < kVector; ++c) {
                visitor(c, from, exists && (kAllExist || channel + c < S::channels(problem_)));
                from += problem_.in_strides[1];
            }
        }
    }

    // Where the places of the pixels of the tile that is copied are; and their columns.
    __device__ __forceinline__ int* places() const {
        return steps_ + (1 + next_table_ * (Shared<S>::kTables / 2)) * S::padded_pixels(problem_);
    }
    __device__ __forceinline__ int* columns() const {
        return places() + S::padded_pixels(problem_);
    }

    __device__ __forceinline__ bool next_exists() const {
        return next_tile_ < static_cast<int>(problem_.all_tiles);
    }
    __device__ __forceinline__ Tile next_tile() const {
        return TileWalk<S>(problem_, next_tile_).tile();
    }

    // Goes over to the next tile that is to be copied, if there is one. There are two tables: some
    // threads may still be copying the tile before.
    __device__ __forceinline__ void begin_tile() {
        if constexpr (S::kInterleaves) {
            while (next_exists() && !meets_taps(next_tile())) {
                next_tile_ += static_cast<int>(gridDim.x);
            }
        }
        if (!next_exists()) return;
        const Corner corner = corner_of(next_tile());
        next_table_ ^= 1;
#pragma unroll 1
        for (int i = thread_; i < pixels_; i += kThreads) {
            const Pixel pixel = pixel_of(corner, i);
            places()[i] = pixel.place;
            if constexpr (S::kUnfolds) columns()[i] = pixel.column;
        }
        ptx::bar_sync(kLoadersBarrier, kThreads);
        plane_ = corner.plane;
        begin_block(0);
    }

    // Goes over to the channels from `channel` on, which begin at plane_.
    __device__ __forceinline__ void begin_block(int channel) {
        next_block_ = channel;
        left_ = groups_of(channel);
        next_channel_ = channel;
        next_plane_ = plane_;
        find_pixel(S::kCopiesRuns ? first_copied_ : thread_);
    }

    // Goes over to a vector of this thread's, and looks up where its pixel is, in good time. Past
    // the last pixel, the next channels' first one follows.
    __device__ __forceinline__ void find_pixel(int pixel) {
        while (pixel >= pixels_) {
            pixel -= pixels_;
            next_channel_ += kVector;
            if constexpr (!S::kUnfolds) next_plane_ += kVector * problem_.in_strides[1];
        }
        next_pixel_ = pixel;
        next_ = {kNone, 0};
        if (next_channel_ >= next_block_ + S::kBlockChannels) return;
        next_.place = places()[pixel];
        if constexpr (S::kUnfolds) next_.column = columns()[pixel];
    }

    // Begins to copy this thread's next group of vectors.
    __device__ __forceinline__ void begin_group() {
        if (left_ > 0) {
            const int stage = next_stage_ * Shared<S>::kGroupValues;
            if (S::kCopiesRuns && copies_runs_) {
                ptx::warp_sync();  // for all lanes to have looked at what is there
                copy_runs(loads_ + stage);
            } else if (next_block_ + S::kBlockChannels <= S::channels(problem_)) {
                copy_group<true>(ring_ + stage);
            } else {
                copy_group<false>(ring_ + stage);
            }
            next_stage_ = next_stage_ == S::kAhead ? 0 : next_stage_ + 1;
        }
        ptx::cp_async_commit_group();
    }

    // Goes over to the patch that follows, when all of one has been begun.
    __device__ __forceinline__ void go_on() {
        if (left_ > 0 && --left_ == 0) end_block();
    }

    __device__ __forceinline__ void end_block() {
        const int channel = next_block_ + S::kBlockChannels;
        if (channel < S::channels(problem_)) {
            if constexpr (!S::kUnfolds) plane_ += S::kBlockChannels * problem_.in_strides[1];
            begin_block(channel);
        } else {
            next_tile_ += static_cast<int>(gridDim.x);
            begin_tile();
        }
    }

    // A run is of one channel; a warp's lanes have kWarpRuns of as many channels as there are lanes
    // for, and then of the next ones.
    static constexpr int kRun = 16 / sizeof(T), kWarpRuns = 32 / kRun;
    static constexpr int kChannelsAtOnce = 32 / kWarpRuns;

    // Begins to copy this thread's runs of its warp's next group of vectors.
    __device__ __forceinline__ void copy_runs(T* to) {
#pragma unroll
        for (int i = 0; i < S::kAtOnce; ++i) {
            const int place = next_.place;
            const T* from =
                next_plane_ + (place == kNone ? 0 : place) + run_channel_ * problem_.in_strides[1];
#pragma unroll
            for (int c = 0; c < kVector; c += kChannelsAtOnce) {
                const int channel = run_channel_ + c;
                ptx::cp_async<16>(
                    to + (i * kVector + channel) * kThreads + first_copied_, from,
                    place != kNone && next_channel_ + channel < S::channels(problem_));
                from += kChannelsAtOnce * problem_.in_strides[1];
            }
            find_pixel(next_pixel_ + kThreads);
        }
    }

    template <bool kAllExist>
    __device__ __forceinline__ void copy_group(T* to) {
        T values[S::kAtOnce][kVector];  // asynchronous copies are of four bytes at least
#pragma unroll
        for (int i = 0; i < S::kAtOnce; ++i) {
            copy_vector<kAllExist>(to, i, next_, values[i]);
            find_pixel(next_pixel_ + kThreads);
        }
        if constexpr (sizeof(T) != 4) {
#pragma unroll
            for (int i = 0; i < S::kAtOnce; ++i) {
#pragma unroll
                for (int c = 0; c < kVector; ++c) to[loaded(i, c)] = values[i][c];
            }
        }
    }

    // Begins to copy a group's i-th vector; `values` are what is not copied but has been read.
    template <bool kAllExist>
    __device__ __forceinline__ void copy_vector(T* to, int i, const Pixel& pixel,
                                                T (&values)[kVector]) const {
        if constexpr (S::kPiece > 1) {
            if (copies_pieces_) {
                visit_channels<kAllExist, S::kPiece>(
                    next_plane_, pixel, next_channel_, [&](int c, const T* from, bool exists) {
                        ptx::cp_async<S::kPiece* static_cast<int>(sizeof(T))>(to + loaded(i, c),
                                                                              from, exists);
                    });
                return;
            }
        }
        visit_channels<kAllExist>(
            next_plane_, pixel, next_channel_, [&](int c, const T* from, bool exists) {
                if constexpr (sizeof(T) == 4) {
                    ptx::cp_async<4>(to + loaded(i, c), from, exists);
                } else {
                    values[c] = ptx::load_if(exists, from, Element<T>::narrow(0));
                }
            });
    }

    // Where element c of a group's i-th vector is, of this thread's.
    static __device__ __forceinline__ constexpr int loaded(int i, int c) {
        return (i * kVector + c / S::kPiece * S::kPiece) * kThreads + c % S::kPiece;
    }

    __device__ __forceinline__ void load_patch(int tile, int channel) {
        ptx::mbarrier_wait(head_.patch_empty + patch_.stage, patch_.parity ^ 1);
        auto* to = reinterpret_cast<Vector<Operand, kVector>*>(
            patches_ + patch_.stage * S::patch_bytes(problem_));
        float largest = 0;
        const int groups = groups_of(channel);
#pragma unroll 1
        for (int group = 0; group < groups; ++group) {
            T values[S::kAtOnce][kVector];
            if constexpr (kReadsFirst) read_group<S::kAhead - 1>(values);
            begin_group();
            if constexpr (!kReadsFirst) read_group<S::kAhead>(values);
            largest =
                larger(largest, convert_group(values, to, thread_ + group * S::kAtOnce * kThreads));
            go_on();
        }
        if constexpr (S::kScales) {
            const unsigned bits = largest_of_all(magnitude_bits(largest));
            if (channel == 0) least_scale_ = float_of_bits(kInfinityBits);
            if (!suits(bits)) take_over(tile, channel, to, bits);
            if (bits != 0) least_scale_ = fminf(least_scale_, scale_);
            if (thread_ == 0) head_.scales[patch_.stage] = scale_;
        }
        fill_up(to, channel);
        ptx::fence_proxy_async();
        ptx::mbarrier_arrive(head_.patch_full + patch_.stage);
        patch_.advance(static_cast<int>(problem_.patch_stages));
    }

    // From a part of a patch to the next one.
    __device__ __forceinline__ int part_vectors() const { return S::kVectors * pixels_; }

    // Vectors for each pixel of a patch of the channels from `channel` on, but for those of zeros.
    __device__ __forceinline__ int vectors_of(int channel) const {
        return min((S::channels(problem_) - channel + kVector - 1) / kVector, S::kVectors);
    }
    __device__ __forceinline__ int groups_of(int channel) const {
        constexpr int kOfGroup = kThreads * S::kAtOnce;
        return (vectors_of(channel) * pixels_ + kOfGroup - 1) / kOfGroup;
    }

    // Writes the vectors of zeros.
    __device__ __forceinline__ void fill_up(Vector<Operand, kVector>* to, int channel) const {
        const Vector<Operand, kVector> zeros = {};
#pragma unroll 1
        for (int i = vectors_of(channel) * pixels_ + thread_; i < S::kVectors * pixels_;
             i += kThreads) {
#pragma unroll
            for (int part = 0; part < S::kParts; ++part) to[i + part * part_vectors()] = zeros;
        }
    }

    // Reads the next group when it has arrived; kLater groups have been begun after it.
    template <int kLater>
    __device__ __forceinline__ void read_group(T (&values)[S::kAtOnce][kVector]) {
        ptx::cp_async_wait_group<kLater>();
        if (S::kCopiesRuns && copies_runs_) ptx::warp_sync();  // for other lanes' copies
        const T* from = ring_ + stage_ * Shared<S>::kGroupValues;
        stage_ = stage_ == S::kAhead ? 0 : stage_ + 1;
#pragma unroll
        for (int i = 0; i < S::kAtOnce; ++i) {
#pragma unroll
            for (int c = 0; c < kVector; c += S::kPiece) {
                const auto piece =
                    *reinterpret_cast<const Vector<T, S::kPiece>*>(from + loaded(i, c));
#pragma unroll
                for (int j = 0; j < S::kPiece; ++j) values[i][c + j] = piece.values[j];
            }
        }
    }

    // Writes a group's operands, the first of them at `vector`; the largest magnitude, infinity
    // included, and NaN where zeros may meet it.
    __device__ __forceinline__ float convert_group(const T (&values)[S::kAtOnce][kVector],
                                                   Vector<Operand, kVector>* to, int vector) const {
        float largest = 0;
#pragma unroll
        for (int i = 0; i < S::kAtOnce; ++i) {
            if constexpr (S::kScales) largest = larger(largest, largest_of(values[i]));
            convert(values[i], to, vector + i * kThreads);
        }
        return largest;
    }

    static __device__ __forceinline__ float largest_of(const float (&values)[kVector]) {
        float pairs[kVector / 2];
#pragma unroll
        for (int c = 0; c < kVector; c += 2) {
            pairs[c / 2] = larger(fabsf(values[c]), fabsf(values[c + 1]));
        }
        return larger(larger(pairs[0], pairs[1]), larger(pairs[2], pairs[3]));
    }

    static __device__ __forceinline__ float larger(float a, float b) {
        return S::kPiece == 1 ? fmaxf(a, b) : ptx::max_or_nan(a, b);
    }

    __device__ __forceinline__ void convert(const T (&values)[kVector],
                                            Vector<Operand, kVector>* to, int vector) const {
        if (vector >= S::kVectors * pixels_) return;
        write_operands<S, true>(values, scale_, to + vector, part_vectors());
    }

    // Writes a patch anew, with a scale that suits it.
    __device__ __forceinline__ void take_over(int tile, int channel, Vector<Operand, kVector>* to,
                                              unsigned largest) {
        if (largest >= kInfinityBits) {
            float finite = 0;
            visit(tile, channel, [&](const T(&values)[kVector], int) {
                for (const T value : values) {
                    const float magnitude = fabsf(static_cast<float>(value));
                    if (magnitude_bits(magnitude) < kInfinityBits) {
                        finite = fmaxf(finite, magnitude);
                    }
                }
            });
            largest = largest_of_all(magnitude_bits(finite));
            if (S::kPiece == 1 && suits(largest))
                return;  // else zeros may have met what is not finite
        }
        if (!suits(largest)) scale_ = fminf(scale_for(largest), kMostRise * least_scale_);
        visit(tile, channel,
              [&](const T(&values)[kVector], int vector) { convert(values, to, vector); });
    }

    // Reads this thread's vectors of a patch once more.
    template <typename Visitor>
    __device__ __forceinline__ void visit(int tile, int channel, const Visitor& visitor) const {
        const Corner corner = corner_of(TileWalk<S>(problem_, tile).tile());
#pragma unroll 1
        for (int i = thread_; i < S::kVectors * pixels_; i += kThreads) {
            const int first = channel + i / pixels_ * kVector;
            const T* plane = corner.plane + (S::kUnfolds ? 0 : first * problem_.in_strides[1]);
            T values[kVector];
            visit_channels<false>(plane, pixel_of(corner, i % pixels_), first,
                                  [&](int c, const T* from, bool exists) {
                                      values[c] = ptx::load_if(exists, from, Element<T>::narrow(0));
                                  });
            visitor(values, i);
        }
    }

    __device__ __forceinline__ unsigned largest_of_all(unsigned largest) {
        largest = ptx::reduce_max(largest);
        unsigned* each = head_.largest[turn_];
        turn_ ^= 1;
        if (thread_ % 32 == 0) each[thread_ / 32] = largest;
        ptx::bar_sync(kLoadersBarrier, kThreads);
#pragma unroll
        for (int i = 0; i < S::kLoadingWarps; ++i) largest = max(largest, each[i]);
        return largest;
    }

    // Whether the scale keeps a patch within 16 bits' range, and uses enough of it.
    __device__ __forceinline__ bool suits(unsigned largest) const {
        const unsigned scaled = magnitude_bits(scale_ * float_of_bits(largest));
        constexpr unsigned kLeast = (127u + 8) << 23, kMost = (127u + 15) << 23;  // 2**8, 2**15
        return largest == 0 || (scaled >= kLeast && scaled < kMost);
    }

    const Problem& problem_;
    const T* input_;
    typename Shared<S>::Head& head_;
    unsigned char* patches_;
    int thread_, pixels_, turn_ = 0;
    float scale_ = 1024;  // suits the most usual magnitudes
    float least_scale_;   // of the patches of a tile so far, but those of zeros
    Ring patch_;
    // Of each pixel, in shared memory: steps to it in rows and columns, in 16 bits each. Two tables
    // of places follow, and columns.
    int* steps_;
    T *loads_, *ring_;  // every kThreads-th piece from here on is this thread's
    bool copies_pieces_, copies_runs_;
    int first_copied_, run_channel_ = 0;  // the vector of a group, and channel, that it copies
    int stage_ = 0;                       // of the ring, to be looked at next
    // What is to be copied next: a tile, the channels of a patch, and a vector of this thread's.
    int next_tile_ = static_cast<int>(blockIdx.x);
    int next_table_ = 0, next_block_ = 0, next_stage_ = 0;
    int left_ = 0;  // groups of that patch; 0 when all tiles have been copied
    int next_channel_ = 0, next_pixel_ = 0;
    Pixel next_ = {kNone, 0};
    const T *plane_ = nullptr, *next_plane_ = nullptr;
};

// Brings the weights of all channels of a block's tiles, in stages of some taps; one thread.
template <typename S>
class WeightLoader {
  public:
    __device__ WeightLoader(const Problem& problem, const typename S::Operand* packed,
                            unsigned char* shared, typename Shared<S>::Head& head)
        : problem_(problem),
          packed_(reinterpret_cast<const unsigned char*>(packed)),
          head_(head),
          weights_(shared + Shared<S>(problem).weights) {}

    __device__ __forceinline__ void load() {
        for (TileWalk<S> tiles(problem_); tiles.exists(); tiles.advance()) {
            load(tiles.tile());
            if (problem_.weights_stay) return;  // they have come
        }
    }

  private:
    __device__ __forceinline__ void load(const Tile& tile) {
        constexpr int kRings = S::kSplitsFilters ? 2 : 1;
        const int stages = static_cast<int>(problem_.weight_stages);
        const int blocks = S::channel_blocks(problem_);
        const int most = S::padded_taps(problem_) / S::kStageTaps;  // stages of a channel block
        const int count = taps_of<S>(problem_, head_, tile).count / S::kStageTaps;
        const std::int64_t first =
            (tile.group * filter_blocks<S>(problem_) + tile.first_filter / S::kFilters) *
            std::int64_t{kRings};
#pragma unroll 1
        for (int block = 0; block < blocks; ++block) {
#pragma unroll 1
            for (int i = 0; i < count; ++i) {
#pragma unroll
                for (int ring = 0; ring < kRings; ++ring) {
                    const auto* from =
                        packed_ + (((first + ring) * blocks + block) * most + i) * S::kStageBytes;
                    ptx::mbarrier_wait(head_.weights_empty[ring] + ring_.stage, ring_.parity ^ 1);
                    ptx::Barrier* full = head_.weights_full[ring] + ring_.stage;
                    ptx::mbarrier_arrive_expect_tx(full, S::kStageBytes);
                    ptx::cp_async_bulk(weights_ + (ring * stages + ring_.stage) * S::kStageBytes,
                                       from, S::kStageBytes, full);
                }
                ring_.advance(stages);
            }
        }
    }

    const Problem& problem_;
    const unsigned char* packed_;
    typename Shared<S>::Head& head_;
    unsigned char* weights_;
    Ring ring_;
};

}  // namespace convsmith::implicit_gemm
