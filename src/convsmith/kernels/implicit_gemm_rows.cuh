// Patches of tensors whose rows lie contiguously: rows of the input are copied as they are, in
// pieces of 16 bytes, to a ring of slices in shared memory, and read from there pixel by pixel.
//
// A slice holds kVector channels of some rows of a patch; unfolded, all channels of all rows that a
// tile meets. S::kAhead slices are on their way, whatever patch or tile they belong to. A row's
// pieces are those of 16 bytes in memory that it touches, so that it begins some elements late: at
// its shift. What of a piece is not of the row, or is padding, is zero.
#pragma once

#include <climits>

#include "implicit_gemm_patch.cuh"
#include "ptx/cp_async.cuh"
#include "ptx/load.cuh"

namespace convsmith::implicit_gemm {

template <typename S>
class RowLoader {
  public:
    using T = typename S::Value;
    using Vectors = typename PatchWriter<S>::Vectors;
    static constexpr int kThreads = S::kLoadingThreads;

    __device__ RowLoader(const Problem& problem, const T* input, unsigned char* shared,
                         typename Shared<S>::Head& head, int thread)
        : problem_(problem),
          input_(input),
          head_(head),
          writer_(problem, shared, head, thread),
          thread_(thread),
          pixels_(S::patch_pixels(problem)),
          raw_rows_(static_cast<int>(problem.raw_rows)),
          row_pieces_(static_cast<int>(problem.row_pieces)),
          slice_rows_(static_cast<int>(problem.slice_rows)),
          first_{thread / row_pieces_, thread % row_pieces_},
          step_{kThreads / row_pieces_, kThreads % row_pieces_} {
        const Shared<S> parts(problem);
        positions_ = reinterpret_cast<int*>(shared + parts.tables);
        rows_ = positions_ + 2 * pixels_;
        ring_ = reinterpret_cast<T*>(shared + parts.loads);
        shifts_ = reinterpret_cast<int*>(shared + parts.loads + (S::kAhead + 1) * slice_bytes());
        const int per_row = S::kUnfolds ? S::tile_columns(problem) : across() * patch_pitch();
        for (int i = thread; i < pixels_; i += kThreads) {
            const int row = i / per_row, column = i % per_row;
            int at_row = row, at_column = column * stride(1), pixel = i;
            if constexpr (S::kUnfolds) {
                at_row = row * stride(0);
            } else {
                const int phase = column / patch_pitch();
                at_column = step_to(column % patch_pitch(), phase, 1);
                const auto rows = static_cast<int>(problem.patch_rows);
                pixel = ((row / rows * across() + phase) * rows + row % rows) * patch_pitch() +
                        column % patch_pitch();
            }
            positions_[2 * i] = at_row << 16 | (at_row * row_elements() + at_column);
            positions_[2 * i + 1] = pixel;
        }
    }

    // Brings the patches of all channels of a block's tiles.
    __device__ __forceinline__ void load() {
        begin_tile();
#pragma unroll 1
        for (int i = 0; i < S::kAhead; ++i) begin_slice();
#pragma unroll 1
        for (TileWalk<S> tiles(problem_); tiles.exists(); tiles.advance()) {
            corner_ = corner_of(tiles.tile());
            if constexpr (S::kUnfolds) wait_for_slice();
#pragma unroll 1
            for (int channel = 0; channel < S::channels(problem_); channel += S::kBlockChannels) {
                load_patch(channel);
            }
        }
    }

  private:
    static constexpr int kNone = INT_MIN;  // the place of a row of padding
    static constexpr int kPiece = 16 / static_cast<int>(sizeof(T));  // elements

    __device__ __forceinline__ int stride(int axis) const {
        return static_cast<int>(problem_.stride[axis]);
    }
    __device__ __forceinline__ int across() const { return static_cast<int>(problem_.phases[1]); }
    __device__ __forceinline__ int patch_pitch() const { return static_cast<int>(problem_.pitch); }
    __device__ __forceinline__ int row_elements() const { return row_pieces_ * kPiece; }
    __device__ __forceinline__ int slice_bytes() const { return Shared<S>::slice_bytes(problem_); }

    // The input row (or column) of one of a phase, from the first one of the patch.
    __device__ __forceinline__ int step_to(int index, int phase, int axis) const {
        return index * stride(axis) +
               phase * static_cast<int>(problem_.dilation[axis]) % stride(axis);
    }

    // Where a tile's patches begin: the image that its first row is of, that row, in the padded
    // image, and the first column. All a tile meets is within offsets of 32 bits from that image's
    // first channel of the group, at `plane`.
    struct Corner {
        int image, row, column;
        const T* plane;
    };

    __device__ __forceinline__ Corner corner_of(const Tile& tile) const {
        const int row = tile.row * stride(0);
        const int tall = static_cast<int>(problem_.tall_height);
        const int image = row / tall;
        const T* plane = input_ + image * problem_.in_strides[0] +
                         tile.group * problem_.channels * problem_.in_strides[1];
        const int column = tile.column * stride(1) - static_cast<int>(problem_.padding[1]);
        return {image, row - image * tall, column, plane};
    }

    // Where a row of the patch begins, from the corner's plane; or kNone.
    __device__ __forceinline__ int place_of(const Corner& corner, int row) const {
        int h = corner.row + row, image = 0;
        if constexpr (!S::kUnfolds) {
            const auto rows = static_cast<int>(problem_.patch_rows);
            h = corner.row + step_to(row % rows, row / rows, 0);
        }
        while (h >= static_cast<int>(problem_.tall_height)) {
            h -= static_cast<int>(problem_.tall_height);
            ++image;
        }
        h -= static_cast<int>(problem_.padding[0]);
        const bool exists = row < raw_rows_ &&
                            corner.image + image < static_cast<int>(problem_.images) &&
                            static_cast<unsigned>(h) < static_cast<unsigned>(problem_.in_size[0]);
        return exists ? image * static_cast<int>(problem_.in_strides[0]) +
                            h * static_cast<int>(problem_.in_strides[2])
                      : kNone;
    }

    // How many elements late a row begins in its first piece.
    static __device__ __forceinline__ int shift_of(const T* element) {
        return static_cast<int>(reinterpret_cast<std::uintptr_t>(element) / sizeof(T) % kPiece);
    }

    // How much later than in the plane before it a row begins in the next channel's.
    __device__ __forceinline__ int plane_shift() const {
        return S::kRowsAlike ? 0 : static_cast<int>(problem_.in_strides[1]) & (kPiece - 1);
    }

    // Goes over to the next tile that is to be copied, if there is one. There are two tables of its
    // rows: some threads may still be copying the tile before.
    __device__ __forceinline__ void begin_tile() {
        if (!next_.exists()) return;
        next_corner_ = corner_of(next_.tile());
        next_table_ ^= 1;
        int* places = rows_ + next_table_ * (raw_rows_ + slice_rows_);
        for (int row = thread_; row < raw_rows_ + slice_rows_; row += kThreads) {
            places[row] = place_of(next_corner_, row);
        }
        PatchWriter<S>::wait_for_loaders();
        next_channel_ = next_row_ = 0;
    }

    // Begins to copy the next slice.
    __device__ __forceinline__ void begin_slice() {
        if (next_.exists()) {
            copy_slice();
            next_stage_ = next_stage_ == S::kAhead ? 0 : next_stage_ + 1;
            next_row_ += slice_rows_;
            if (next_row_ >= raw_rows_) {
                next_row_ = 0;
                next_channel_ += kVector;
                if (S::kUnfolds ||
                    next_channel_ >= S::channel_blocks(problem_) * S::kBlockChannels) {
                    next_.advance();
                    begin_tile();
                }
            }
        }
        ptx::cp_async_commit_group();
    }

    __device__ __forceinline__ void copy_slice() {
        const int* places = rows_ + next_table_ * (raw_rows_ + slice_rows_) + next_row_;
        const T* plane =
            next_corner_.plane + next_channel_ * problem_.in_strides[1] + next_corner_.column;
        int* shifts = shifts_ + next_stage_ * slice_rows_;
        for (int row = thread_; row < slice_rows_; row += kThreads) {
            const int place = places[row];
            shifts[row] = shift_of(plane + (place == kNone ? 0 : place));
        }
        const int pieces = slice_rows_ * row_pieces_;
        const int channels = S::kUnfolds ? static_cast<int>(problem_.channels) : kVector;
        const int left = static_cast<int>(problem_.channels) - next_channel_;
        const auto width = static_cast<int>(problem_.in_size[1]);
        T* stage = ring_ + next_stage_ * (slice_bytes() / static_cast<int>(sizeof(T)));
        int channel = 0, row = first_.row, piece = first_.piece;
#pragma unroll 1
        for (;;) {
            while (row >= slice_rows_) {
                row -= slice_rows_;
                ++channel;
            }
            if (channel >= channels) break;
            const int place = places[row];
            const T* from = plane + channel * problem_.in_strides[1] + (place == kNone ? 0 : place);
            const int first = piece * kPiece - shift_of(from);  // from the corner's column
            const int w = next_corner_.column + first;
            const int in_channel = row * row_pieces_ + piece;
            T* to = stage +
                    (S::kUnfolds ? channel * pieces + in_channel : in_channel * kSlots + channel) *
                        kPiece;
            const bool exists = place != kNone && channel < left && w < width && w > -kPiece;
            if (!exists || (w >= 0 && w + kPiece <= width)) {
                ptx::cp_async<16>(to, exists ? from + first : input_, exists);
            } else {
                copy_part(to, from + first, w);
            }
            row += step_.row;
            piece += step_.piece;
            if (piece >= row_pieces_) {
                piece -= row_pieces_;
                ++row;
            }
        }
    }

    // Copies what of a piece is in columns that there are.
    __device__ __forceinline__ void copy_part(T* to, const T* from, int w) const {
#pragma unroll
        for (int i = 0; i < kPiece; ++i) {
            const bool exists =
                static_cast<unsigned>(w + i) < static_cast<unsigned>(problem_.in_size[1]);
            if constexpr (sizeof(T) == 4) {
                ptx::cp_async<4>(to + i, exists ? from + i : input_, exists);
            } else {  // asynchronous copies are of four bytes at least
                to[i] = ptx::load_if(exists, from + i, Element<T>::narrow(0));
            }
        }
    }

    // Waits for the slice that is to be read next, and begins to copy another one.
    __device__ __forceinline__ void wait_for_slice() {
        stage_ = stage_ == S::kAhead ? 0 : stage_ + 1;
        ptx::cp_async_wait_group<S::kAhead - 1>();
        PatchWriter<S>::wait_for_loaders();
        begin_slice();
    }

    __device__ __forceinline__ void load_patch(int channel) {
        Vectors* to = writer_.begin();
        if constexpr (S::kUnfolds) {
#pragma unroll 1
            for (int v = 0; v < S::kVectors; ++v) read_run(to + v * pixels_, channel / kVector + v);
        } else {
#pragma unroll 1
            for (int v = 0; v < S::kVectors; ++v) {
#pragma unroll 1
                for (int row = 0; row < raw_rows_; row += slice_rows_) {
                    wait_for_slice();
                    read_slice(to + v * pixels_, row);
                }
            }
        }
        writer_.end([&](const auto& visitor) { visit(to, channel, visitor); });
    }

    static constexpr int kAtOnce = 2;  // vectors that a thread reads before it writes them
    static constexpr int kSlots = Shared<S>::kSlots;

    __device__ __forceinline__ const T* slice() const {
        return ring_ + stage_ * (slice_bytes() / static_cast<int>(sizeof(T)));
    }

    // Reads the pixels of a slice that begins at row `first` of a patch.
    __device__ __forceinline__ void read_slice(Vectors* to, int first) {
        const int per_row = across() * patch_pitch();
        const int end = min(first + slice_rows_, raw_rows_) * per_row;
        const T* from = slice();
        const int* shifts = shifts_ + stage_ * slice_rows_ - first;
        const int start = first * row_elements();
#pragma unroll 1
        for (int i = first * per_row + thread_; i < end; i += kAtOnce * kThreads) {
            T values[kAtOnce][kVector];
            int pixels[kAtOnce];
#pragma unroll
            for (int j = 0; j < kAtOnce; ++j) {
                const int item = min(i + j * kThreads, end - 1);
                const int position = positions_[2 * item];
                pixels[j] = positions_[2 * item + 1];
                int e = (position & 0xffff) - start;
                int shift = shifts[position >> 16];
                if constexpr (S::kRowsAlike) {
                    e += shift;
                    const T* at = from + e / kPiece * (kSlots * kPiece) + e % kPiece;
#pragma unroll
                    for (int c = 0; c < kVector; ++c) values[j][c] = at[c * kPiece];
                } else {
#pragma unroll
                    for (int c = 0; c < kVector; ++c) {
                        const int at = e + shift % kPiece;
                        values[j][c] = from[(at / kPiece * kSlots + c) * kPiece + at % kPiece];
                        shift += plane_shift();
                    }
                }
            }
#pragma unroll
            for (int j = 0; j < kAtOnce; ++j) {
                if (i + j * kThreads < end) writer_.write(to + pixels[j], values[j]);
            }
        }
    }

    // Reads a run of a filter row's taps for all pixels.
    __device__ __forceinline__ void read_run(Vectors* to, int run) {
        const int count = run < S::channels(problem_) / kVector ? head_.counts[run] : 0;
        const int steps = count > 0 ? head_.steps[run] : 0;
        const int channel = count > 0 ? head_.offsets[run] : 0;
        const T* from = slice() + channel * raw_rows_ * row_elements() +
                        (steps >> 16) * row_elements() + (steps & 0xffff);
        const auto step = static_cast<int>(problem_.dilation[1]);
        const int* shifts = shifts_ + stage_ * slice_rows_ + (steps >> 16);
#pragma unroll 2
        for (int i = thread_; i < pixels_; i += kThreads) {
            const int position = positions_[2 * i];
            const int shift = shifts[position >> 16] + channel * plane_shift();
            const T* at = from + (position & 0xffff) + shift % kPiece;
            T values[kVector];
#pragma unroll
            for (int c = 0; c < kVector; ++c) {
                values[c] = c < count ? at[c * step] : Element<T>::narrow(0);
            }
            writer_.write(to + i, values);
        }
    }

    // Reads this thread's vectors of a patch from memory once more.
    template <typename Visitor>
    __device__ __forceinline__ void visit(Vectors* to, int channel, const Visitor& visitor) const {
#pragma unroll 1
        for (int i = thread_; i < S::kVectors * pixels_; i += kThreads) {
            const int item = i % pixels_, v = i / pixels_;
            const int position = positions_[2 * item];
            int row = position >> 16, w = (position & 0xffff) % row_elements();
            int c = channel + v * kVector, steps_w = 0, steps_c = 1;
            int count = static_cast<int>(problem_.channels) - c;
            if constexpr (S::kUnfolds) {
                const int run = c / kVector;
                const bool exists = c < S::channels(problem_);
                count = exists ? head_.counts[run] : 0;
                c = exists ? head_.offsets[run] : 0;
                row += exists ? head_.steps[run] >> 16 : 0;
                w += exists ? head_.steps[run] & 0xffff : 0;
                steps_w = static_cast<int>(problem_.dilation[1]);
                steps_c = 0;
            }
            const int place = place_of(corner_, row);
            const T* from =
                corner_.plane + c * problem_.in_strides[1] + (place == kNone ? 0 : place);
            w += corner_.column;
            T values[kVector];
#pragma unroll
            for (int j = 0; j < kVector; ++j) {
                const bool exists =
                    place != kNone && j < count &&
                    static_cast<unsigned>(w) < static_cast<unsigned>(problem_.in_size[1]);
                values[j] = ptx::load_if(exists, from + w, Element<T>::narrow(0));
                from += steps_c * problem_.in_strides[1];
                w += steps_w;
            }
            visitor(to + v * pixels_ + positions_[2 * item + 1], values);
        }
    }

    const Problem& problem_;
    const T* input_;
    typename Shared<S>::Head& head_;
    PatchWriter<S> writer_;
    int thread_, pixels_, raw_rows_, row_pieces_, slice_rows_;
    struct Piece {
        int row, piece;
    };
    Piece first_, step_;  // of a slice's pieces, which this thread copies first; to its next one
    // In shared memory. Of each pixel, ordered by rows of the input: that row in the upper half,
    // where its element is in the lower one; and the pixel's number in the patch.
    int* positions_;
    int* rows_;    // two tables of where a tile's rows lie
    T* ring_;      // of slices
    int* shifts_;  // of each slice's rows
    Corner corner_{};
    int stage_ = S::kAhead;  // of the ring, that was read last
    // What is to be copied next: some rows and channels of a tile.
    TileWalk<S> next_{problem_};
    Corner next_corner_{};
    int next_table_ = 0, next_channel_ = 0, next_row_ = 0, next_stage_ = 0;
};

}  // namespace convsmith::implicit_gemm
