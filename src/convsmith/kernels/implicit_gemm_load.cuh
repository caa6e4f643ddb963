// Patches on their way to shared memory: what a tile of outputs meets of S::kBlockChannels
// channels, as 16-bit operands [high, low][channels / kVector][pixel][kVector].
//
// float32 values are scaled to the range of 16 bits by a power of two. All loading threads keep one
// scale for as long as it suits; where a patch does not suit it, they take it over again.
#pragma once

#include <climits>

#include "implicit_gemm_pack.cuh"
#include "ptx/load.cuh"
#include "ptx/warpgroup.cuh"

namespace convsmith::implicit_gemm {

inline constexpr int kLoadersBarrier = 1;  // its number

template <typename S>
class PatchLoader {
  public:
    using T = typename S::Value;
    using Operand = typename S::Operand;

    __device__ PatchLoader(const Problem& problem, const T* input, unsigned char* shared,
                           typename Shared<S>::Head& head, int thread)
        : problem_(problem),
          input_(input),
          head_(head),
          patches_(shared + Shared<S>(problem).patches),
          thread_(thread),
          pixels_(S::patch_pixels(problem)) {
        const int pitch = static_cast<int>(problem_.pitch);
        const int rows = static_cast<int>(problem_.patch_rows);
        const int across = static_cast<int>(problem_.phases[1]);
#pragma unroll
        for (int i = 0; i < S::kSlots; ++i) {
            const int pixel = thread_ + i * S::kLoadingThreads;
            const int phase = pixel / (rows * pitch);
            int row = pixel / pitch % rows, column = pixel % pitch;
            if constexpr (!S::kUnfolds) {
                row = place(row, phase / across, 0);
                column = place(column, phase % across, 1);
            }
            steps_[i] = pixel < pixels_ ? row << 16 | column : kNone;
        }
    }

    // Brings the patches of all channels of a tile.
    __device__ __forceinline__ void load(const Tile& tile) {
        // What a tile meets is near its first image, within offsets of 32 bits.
        const int first_image =
            static_cast<int>(tile.row * problem_.stride[0] / problem_.tall_height);
        find_pixels(tile, first_image);
        const int channels = S::channels(problem_);
        const T* first = input_ + first_image * problem_.in_strides[0] +
                         tile.group * problem_.channels * problem_.in_strides[1];
#pragma unroll 1
        for (int channel = 0; channel < channels; channel += S::kBlockChannels) {
            ptx::mbarrier_wait(head_.patch_empty + ring_.stage, ring_.parity ^ 1);
            auto* patch =
                reinterpret_cast<Operand*>(patches_ + ring_.stage * S::patch_bytes(problem_));
            const T* from = first + (S::kUnfolds ? 0 : channel * problem_.in_strides[1]);
            const int here = min(channels - channel, S::kBlockChannels);
            first_channel_ = channel;
            const float mine = convert(patch, from, here);
            if constexpr (S::kScales) {
                unsigned largest = largest_of_all(magnitude_bits(mine));
                if (largest >= kInfinityBits) {
                    largest = largest_of_all(magnitude_bits(largest_finite(from, here)));
                }
                if (!suits(largest)) {
                    scale_ = scale_for(largest);
                    convert(patch, from, here);
                }
                if (thread_ == 0) head_.scales[ring_.stage] = scale_;
            }
            ptx::fence_proxy_async();
            ptx::mbarrier_arrive(head_.patch_full + ring_.stage);
            ring_.advance(static_cast<int>(problem_.patch_stages));
        }
    }

  private:
    // What is no pixel of this thread's, or is padding.
    static constexpr int kNone = INT_MIN;

    // The input row (or column) of a pixel of a phase, from the first one of the patch.
    __device__ __forceinline__ int place(int index, int phase, int axis) const {
        const auto stride = static_cast<int>(problem_.stride[axis]);
        return index * stride + phase * static_cast<int>(problem_.dilation[axis]) % stride;
    }

    __device__ __forceinline__ void find_pixels(const Tile& tile, int first_image) {
        const int tall = static_cast<int>(problem_.tall_height);
        const int stride_h = static_cast<int>(problem_.stride[0]);
        const int stride_w = static_cast<int>(problem_.stride[1]);
        const int first_row = tile.row * stride_h - first_image * tall;
        const int first_column = tile.column * stride_w - static_cast<int>(problem_.padding[1]);
#pragma unroll
        for (int i = 0; i < S::kSlots; ++i) {
            const int down = steps_[i] >> 16, across = steps_[i] & 0xffff;
            const int row = first_row + (S::kUnfolds ? down * stride_h : down);
            const int w = first_column + (S::kUnfolds ? across * stride_w : across);
            const int image = row / tall;  // from the first one on
            const int h = row % tall - static_cast<int>(problem_.padding[0]);
            bool exists = steps_[i] >= 0 && first_image + image < problem_.images;
            if constexpr (S::kUnfolds) {
                corners_[i] = static_cast<int>(static_cast<unsigned>(h) << 16 | (w & 0xffffu));
            } else {
                exists = exists && is_within(h, 0) && is_within(w, 1);
            }
            places_[i] = exists ? image * static_cast<int>(problem_.in_strides[0]) +
                                      h * static_cast<int>(problem_.in_strides[2]) +
                                      w * static_cast<int>(problem_.in_strides[3])
                                : kNone;
        }
    }

    __device__ __forceinline__ bool is_within(int place, int axis) const {
        return static_cast<unsigned>(place) < static_cast<unsigned>(problem_.in_size[axis]);
    }

    // The element of pixel `i` in channel `c` of a block, if there is one, else zero. `plane` is
    // where that channel begins, or the group's first one if it is unfolded.
    __device__ __forceinline__ T element(const T* plane, int i, int c, bool exists) const {
        exists = exists && places_[i] != kNone;
        int place = places_[i];
        if constexpr (S::kUnfolds) {
            const int channel = exists ? first_channel_ + c : 0;
            const int step = head_.steps[channel];
            const int h = (corners_[i] >> 16) + (step >> 16);
            const int w = static_cast<std::int16_t>(corners_[i] & 0xffff) + (step & 0xffff);
            exists = exists && is_within(h, 0) && is_within(w, 1);
            if (exists) place += head_.offsets[channel];
        }
        return ptx::load_if(exists, plane + place, Element<T>::narrow(0));
    }

    // Writes a patch; the largest magnitude of what this thread reads, infinity included.
    __device__ __forceinline__ float convert(Operand* patch, const T* from, int channels) {
        float largest = 0;
        auto* to = reinterpret_cast<Vector<Operand, kVector>*>(patch) + thread_;
#pragma unroll 1
        for (int c = 0; c < S::kBlockChannels; c += kVector) {
            const T* plane = from + (S::kUnfolds ? 0 : c * problem_.in_strides[1]);
            if (channels - c >= kVector) {
                convert_vectors<true>(to, plane, c, channels, largest);
            } else {
                convert_vectors<false>(to, plane, c, channels, largest);
            }
            to += pixels_;
        }
        return largest;
    }

    // kVector channels of all pixels of this thread, from channel `first_c` of the `channels` that
    // the block has.
    template <bool kAllExist>
    __device__ __forceinline__ void convert_vectors(Vector<Operand, kVector>* to, const T* from,
                                                    int first_c, int channels, float& largest) {
        constexpr int kAtOnce = S::kPixelsAtOnce;
#pragma unroll
        for (int first = 0; first < S::kSlots; first += kAtOnce) {
            T values[kAtOnce][kVector];
            const T* plane = from;
#pragma unroll
            for (int c = 0; c < kVector; ++c) {
#pragma unroll
                for (int i = 0; i < kAtOnce && first + i < S::kSlots; ++i) {
                    values[i][c] =
                        element(plane, first + i, first_c + c, kAllExist || first_c + c < channels);
                }
                if constexpr (!S::kUnfolds) plane += problem_.in_strides[1];
            }
#pragma unroll
            for (int i = 0; i < kAtOnce && first + i < S::kSlots; ++i) {
                const int pixel = (first + i) * S::kLoadingThreads;  // from this thread's first
                if (thread_ + pixel >= pixels_) continue;
                Vector<Operand, kVector> high, low;
#pragma unroll
                for (int c = 0; c < kVector; ++c) {
                    if constexpr (!S::kScales) {
                        high.values[c] = values[i][c];
                    } else {
                        largest = fmaxf(largest, fabsf(values[i][c]));
                        if constexpr (S::kParts == 2) {
                            split(scale_ * values[i][c], high.values[c], low.values[c]);
                        } else {
                            high.values[c] = Element<Operand>::narrow(scale_ * values[i][c]);
                        }
                    }
                }
                to[pixel] = high;
                if constexpr (S::kParts == 2)
                    to[pixel + S::kBlockChannels / kVector * pixels_] = low;
            }
        }
    }

    // The largest finite magnitude among the values of this thread.
    __device__ __forceinline__ float largest_finite(const T* from, int channels) const {
        float largest = 0;
        for (int c = 0; c < channels; ++c) {
            const T* plane = from + (S::kUnfolds ? 0 : c * problem_.in_strides[1]);
#pragma unroll
            for (int i = 0; i < S::kSlots; ++i) {
                const float value = fabsf(static_cast<float>(element(plane, i, c, true)));
                if (magnitude_bits(value) < kInfinityBits) largest = fmaxf(largest, value);
            }
        }
        return largest;
    }

    __device__ __forceinline__ unsigned largest_of_all(unsigned largest) {
        largest = ptx::reduce_max(largest);
        unsigned* each = head_.largest[turn_];
        turn_ ^= 1;
        if (thread_ % 32 == 0) each[thread_ / 32] = largest;
        ptx::bar_sync(kLoadersBarrier, S::kLoadingThreads);
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

    static __device__ __forceinline__ float float_of_bits(unsigned bits) {
#ifdef CONVSMITH_SIMULATOR
        return simulator::bits_of<float>(bits);
#else
        return __uint_as_float(bits);
#endif
    }

    const Problem& problem_;
    const T* input_;
    typename Shared<S>::Head& head_;
    unsigned char* patches_;
    int thread_, pixels_, turn_ = 0;
    float scale_ = 1;
    Ring ring_;
    int steps_[S::kSlots];   // rows and columns to this thread's pixels, in 16 bits each
    int places_[S::kSlots];  // where they lie
    int corners_[S::kUnfolds ? S::kSlots : 1];  // rows and columns there, in 16 bits each
    int first_channel_ = 0;                     // of the block
};

// Brings the weights of all channels of a tile, in stages of some taps; called by one thread.
template <typename S>
class WeightLoader {
  public:
    __device__ WeightLoader(const Problem& problem, const typename S::Operand* packed,
                            unsigned char* shared, typename Shared<S>::Head& head)
        : problem_(problem),
          packed_(reinterpret_cast<const unsigned char*>(packed)),
          head_(head),
          weights_(shared + Shared<S>(problem).weights) {}

    __device__ __forceinline__ void load(const Tile& tile) {
        if (problem_.weights_stay && have_come_) return;
        have_come_ = true;
        constexpr int kRings = S::kSplitsFilters ? 2 : 1;
        const int stages = static_cast<int>(problem_.weight_stages);
        const int count = S::channel_blocks(problem_) * (S::padded_taps(problem_) / S::kStageTaps);
        const std::int64_t first =
            (tile.group * filter_blocks<S>(problem_) + tile.first_filter / S::kFilters) *
            std::int64_t{kRings};
#pragma unroll 1
        for (int i = 0; i < count; ++i) {
#pragma unroll
            for (int ring = 0; ring < kRings; ++ring) {
                ptx::mbarrier_wait(head_.weights_empty[ring] + ring_.stage, ring_.parity ^ 1);
                ptx::Barrier* full = head_.weights_full[ring] + ring_.stage;
                ptx::mbarrier_arrive_expect_tx(full, S::kStageBytes);
                ptx::cp_async_bulk(weights_ + (ring * stages + ring_.stage) * S::kStageBytes,
                                   packed_ + ((first + ring) * count + i) * S::kStageBytes,
                                   S::kStageBytes, full);
            }
            ring_.advance(stages);
        }
    }

  private:
    const Problem& problem_;
    const unsigned char* packed_;
    typename Shared<S>::Head& head_;
    unsigned char* weights_;
    bool have_come_ = false;
    Ring ring_;
};

}  // namespace convsmith::implicit_gemm
