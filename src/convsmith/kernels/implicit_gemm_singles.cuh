// Reads patches of tensors of any strides, and unfolded ones, element by element.
#pragma once

#include "implicit_gemm_source.cuh"
#include "ptx/load.cuh"
#include "ptx/warpgroup.cuh"

namespace convsmith::implicit_gemm {

template <typename S>
class SingleReader {
  public:
    using T = typename S::Value;
    static constexpr int kThreads = S::kLoadingThreads;

    __device__ SingleReader(const Problem& problem, const T* input, int* tables,
                            const typename Shared<S>::Head& head, int thread)
        : problem_(problem),
          source_(problem, input),
          head_(head),
          thread_(thread),
          pixels_(S::patch_pixels(problem)),
          steps_(tables),
          places_(tables + pixels_) {
        const auto pitch = static_cast<int>(problem.pitch);
        const auto rows = static_cast<int>(problem.patch_rows);
        const auto across = static_cast<int>(problem.phases[1]);
        for (int i = thread; i < pixels_; i += kThreads) {
            const int phase = i / (rows * pitch);
            const int row = source_.step_to(i / pitch % rows, phase / across, 0);
            steps_[i] = row << 16 | source_.step_to(i % pitch, phase % across, 1);
        }
    }

    // Goes over to a tile. There are two tables of where its pixels lie: some threads may still be
    // reading the tile before.
    __device__ __forceinline__ void begin(const Tile& tile) {
        corner_ = source_.corner_of(tile);
        places_ += table_ == 0 ? kTable * pixels_ : -kTable * pixels_;
        table_ ^= 1;
#pragma unroll 1
        for (int i = thread_; i < pixels_; i += kThreads) {
            const int step = steps_[i];
            const auto row = source_.row_of(corner_, step >> 16);
            const int w = corner_.column + (step & 0xffff);
            bool exists = row.place != kNone;
            if constexpr (S::kUnfolds) {
                places_[pixels_ + i] =
                    static_cast<int>(static_cast<unsigned>(row.h) << 16 | (w & 0xffffu));
            } else {
                exists = exists && source_.is_within(row.h, 0) && source_.is_within(w, 1);
            }
            places_[i] = exists ? row.place + row.h * static_cast<int>(problem_.in_strides[2]) +
                                      w * static_cast<int>(problem_.in_strides[3])
                                : kNone;
        }
        ptx::bar_sync(kLoadersBarrier, kThreads);
    }

    // Calls `visitor` with each of this thread's vectors of a patch: its number, and its values.
    template <typename Visitor>
    __device__ __forceinline__ void visit(int channel, const Visitor& visitor) const {
        const int count = S::kVectors * pixels_;
        const T* plane = corner_.plane + (S::kUnfolds ? 0 : channel * problem_.in_strides[1]);
        int pixel = thread_;
#pragma unroll 1
        for (int i = thread_; i < count; i += kAtOnce * kThreads) {
            T values[kAtOnce][kVector];
#pragma unroll
            for (int j = 0; j < kAtOnce; ++j) {
                while (pixel >= pixels_) {
                    pixel -= pixels_;
                    channel += kVector;
                    if constexpr (!S::kUnfolds) plane += kVector * problem_.in_strides[1];
                }
                read(plane, pixel, channel, i + j * kThreads < count, values[j]);
                pixel += kThreads;
            }
#pragma unroll
            for (int j = 0; j < kAtOnce; ++j) {
                if (i + j * kThreads < count) visitor(i + j * kThreads, values[j]);
            }
        }
    }

  private:
    static constexpr int kTable = S::kUnfolds ? 2 : 1;  // of a tile: places, and corners
    static constexpr int kAtOnce = 4;                   // vectors that a thread reads at once

    __device__ __forceinline__ void read(const T* plane, int pixel, int channel, bool is_wanted,
                                         T (&values)[kVector]) const {
        const int place = is_wanted ? places_[pixel] : kNone;
        const T* from = plane + (place == kNone ? 0 : place);
        if constexpr (S::kUnfolds) {
            const bool is_run = place != kNone && channel < S::channels(problem_);
            const int run = is_run ? channel / kVector : 0;
            const int corner = is_run ? places_[pixels_ + pixel] : 0, step = head_.steps[run];
            const bool exists = is_run && source_.is_within((corner >> 16) + (step >> 16), 0);
            const int count = exists ? head_.counts[run] : 0;
            int w = static_cast<std::int16_t>(corner & 0xffff) + (step & 0xffff);
            from += head_.offsets[run];
#pragma unroll
            for (int c = 0; c < kVector; ++c) {
                values[c] =
                    ptx::load_if(c < count && source_.is_within(w, 1), from, Element<T>::narrow(0));
                w += static_cast<int>(problem_.dilation[1]);
                from += problem_.dilation[1] * problem_.in_strides[3];
            }
        } else {
            const int left = place == kNone ? 0 : static_cast<int>(problem_.channels) - channel;
#pragma unroll
            for (int c = 0; c < kVector; ++c) {
                values[c] = ptx::load_if(c < left, from, Element<T>::narrow(0));
                from += problem_.in_strides[1];
            }
        }
    }

    const Problem& problem_;
    Source<S> source_;
    typename Source<S>::Corner corner_{};
    const typename Shared<S>::Head& head_;
    int thread_, pixels_;
    // In shared memory, of each pixel: steps to it in rows and columns, in 16 bits each; where it
    // lies from the corner's plane, or kNone; and unfolded, its row and column in the image.
    int *steps_, *places_;
    int table_ = 0;
};

}  // namespace convsmith::implicit_gemm
