// Reads patches of tensors whose rows lie contiguously, and alike in all planes: kQuad neighbours
// in a row that lie at a multiple of their size, in kVector channels, are a quad, which a thread
// reads at once.
#pragma once

#include "implicit_gemm_source.cuh"
#include "ptx/load.cuh"
#include "ptx/warpgroup.cuh"

namespace convsmith::implicit_gemm {

template <typename S>
class QuadReader {
  public:
    using T = typename S::Value;
    static constexpr int kThreads = S::kLoadingThreads;

    __device__ QuadReader(const Problem& problem, const T* input, int* tables,
                          const typename Shared<S>::Head&, int thread)
        : problem_(problem),
          source_(problem, input),
          thread_(thread),
          rows_(S::quad_rows(problem)),
          quads_(static_cast<int>(problem.row_quads)),
          pixels_(S::patch_pixels(problem)),
          first_{thread / quads_, thread % quads_},
          step_{kThreads / quads_, kThreads % quads_},
          columns_(tables),
          firsts_(tables + S::quad_columns(problem)),
          places_(firsts_ + rows_) {
        const auto pitch = static_cast<int>(problem.pitch);
        const auto rows = static_cast<int>(problem.patch_rows);
        for (int i = thread; i < rows_; i += kThreads) {
            const int phase = i / rows * static_cast<int>(problem.phases[1]);
            firsts_[i] = (phase * rows + i % rows) * pitch;
        }
        for (int i = thread; i < S::quad_columns(problem); i += kThreads) columns_[i] = kNone;
        ptx::bar_sync(kLoadersBarrier, kThreads);
        for (int i = thread; i < static_cast<int>(problem.phases[1]) * pitch; i += kThreads) {
            const int phase = i / pitch, x = i % pitch;
            columns_[source_.step_to(x, phase, 1) + kQuad - 1] = phase * rows * pitch + x;
        }
    }

    // Goes over to a tile. There are two tables of where its rows lie: some threads may still be
    // reading the tile before.
    __device__ __forceinline__ void begin(const Tile& tile) {
        corner_ = source_.corner_of(tile);
        places_ += table_ == 0 ? rows_ : -rows_;
        table_ ^= 1;
        const auto rows = static_cast<int>(problem_.patch_rows);
        for (int i = thread_; i < rows_; i += kThreads) {
            const auto row = source_.row_of(corner_, source_.step_to(i % rows, i / rows, 0));
            const bool exists = row.place != kNone && source_.is_within(row.h, 0);
            places_[i] =
                exists ? row.place + row.h * static_cast<int>(problem_.in_strides[2]) : kNone;
        }
        ptx::bar_sync(kLoadersBarrier, kThreads);
    }

    // Calls `visitor` with each of this thread's vectors of a patch: its number, and its values.
    template <typename Visitor>
    __device__ __forceinline__ void visit(int channel, const Visitor& visitor) const {
        const T* plane = corner_.plane + channel * problem_.in_strides[1] + corner_.column;
        int left = static_cast<int>(problem_.channels) - channel;
        int vector = 0;  // the first one of a row's channels
        Place at = first_;
#pragma unroll 1
        for (;;) {
            while (at.row >= rows_) {
                at.row -= rows_;
                vector += pixels_;
                left -= kVector;
                plane += kVector * problem_.in_strides[1];
            }
            if (vector >= S::kVectors * pixels_) break;
            visit_quad(plane, at, left, vector, visitor);
            at.row += step_.row;
            at.quad += step_.quad;
            if (at.quad >= quads_) {
                at.quad -= quads_;
                ++at.row;
            }
        }
    }

  private:
    struct Place {
        int row, quad;
    };

    template <typename Visitor>
    __device__ __forceinline__ void visit_quad(const T* plane, const Place& at, int left,
                                               int vector, const Visitor& visitor) const {
        using Quad = Vector<T, kQuad>;
        const int place = places_[at.row];
        const T* from = plane + (place == kNone ? 0 : place);
        const auto late =
            static_cast<int>(reinterpret_cast<std::uintptr_t>(from) / sizeof(T) % kQuad);
        const int column = at.quad * kQuad - late;  // from the corner
        const int w = corner_.column + column;
        const auto width = static_cast<int>(problem_.in_size[1]);
        const bool exists = place != kNone && w > -kQuad && w < width;
        const bool is_whole = w >= 0 && w + kQuad <= width;
        from += column;

        // Read it. What is not of the row may be read, but not what is not of the tensor.
        Quad values[kVector];
        const T* last = from + (min(left, kVector) - 1) * problem_.in_strides[1] + kQuad;
        if (!exists || is_whole || (from >= source_.begin() && last <= source_.end())) {
#pragma unroll
            for (int c = 0; c < kVector; ++c) {
                values[c] =
                    ptx::load_if(exists && c < left, reinterpret_cast<const Quad*>(from), Quad{});
                from += problem_.in_strides[1];
            }
        } else {
#pragma unroll
            for (int c = 0; c < kVector; ++c) {
#pragma unroll
                for (int i = 0; i < kQuad; ++i) {
                    values[c].values[i] = ptx::load_if(c < left && source_.is_within(w + i, 1),
                                                       from + i, Element<T>::narrow(0));
                }
                from += problem_.in_strides[1];
            }
        }
        if (!is_whole) {
#pragma unroll
            for (int i = 0; i < kQuad; ++i) {
                if (source_.is_within(w + i, 1)) continue;
#pragma unroll
                for (int c = 0; c < kVector; ++c) values[c].values[i] = Element<T>::narrow(0);
            }
        }

        // Hand its vectors over.
        const int first = vector + firsts_[at.row];
#pragma unroll
        for (int i = 0; i < kQuad; ++i) {
            const int pixel = columns_[column + i + kQuad - 1];
            T turned[kVector];
#pragma unroll
            for (int c = 0; c < kVector; ++c) turned[c] = values[c].values[i];
            if (pixel != kNone) visitor(first + pixel, turned);
        }
    }

    const Problem& problem_;
    Source<S> source_;
    typename Source<S>::Corner corner_{};
    int thread_, rows_, quads_, pixels_;
    Place first_, step_;  // of a patch's quads: this thread's first one, and from one to the next
    // In shared memory. Of each column of the patch, and of kQuad - 1 on either side: which pixel
    // of a row it is, or kNone. Of each row: its first pixel, and where it lies from the corner's
    // plane.
    int *columns_, *firsts_, *places_;
    int table_ = 0;
};

}  // namespace convsmith::implicit_gemm
