// A slice of a row, of a vector's channels of a line's images, on its way to shared memory: as it
// is, in aligned pieces of 16 bytes. Each channel's row of an image lies as far beyond a multiple
// of 16 bytes as it does in the tensor, which is how it is found again.
#pragma once

#include "implicit_gemm_weight_problem.cuh"
#include "ptx/cp_async.cuh"

namespace convsmith::implicit_gemm {

template <typename S>
struct Slice {
    using T = typename S::Value;

    std::uintptr_t begin;
    std::int64_t of_channel, of_image;  // from one to the next, in bytes
    int bytes;                          // of a row
    int images, channels;               // that exist, or more; missing channels are zeros
    int segments, row_bytes;            // images, and bytes of a row, that there is room for
    bool is_unfolded;                   // it has S::kVectorChannels

    // Whole pieces do not reach over the tensor's ends.
    bool is_inside;

    // Begins to copy it.
    __device__ __forceinline__ void copy(unsigned char* to, int lane) const {
        if (!is_inside) {
            copy_singly(to, lane);
        } else if constexpr (S::kSideBySide) {
            copy_images(to, lane);
        } else {
            copy_image(to, lane);
        }
    }

    static __device__ __forceinline__ std::uintptr_t floor_of(std::uintptr_t address) {
        return address & ~std::uintptr_t{15};
    }

  private:
    // Channels that there is room for.
    __device__ __forceinline__ int rooms() const {
        return S::kUnfolds && is_unfolded ? S::kVectorChannels : kVector;
    }

    static __device__ __forceinline__ void copy_piece(unsigned char* to, std::uintptr_t from,
                                                      bool exists) {
        ptx::cp_async<16>(to, reinterpret_cast<const void*>(from), exists);
    }

    // Of one image: all lanes have pieces of every channel's row.
    __device__ __forceinline__ void copy_image(unsigned char* to, int lane) const {
        if (of_channel % 16 != 0) {
            copy_unlike_rows(to, lane);
            return;
        }
        // All channels' rows lie alike, to 16 bytes.
        const std::uintptr_t first = floor_of(begin), end = begin + bytes;
#pragma unroll 1
        for (std::uintptr_t from = first + lane * 16; from < end; from += 32 * 16) {
            unsigned char* there = to + (from - first);
            std::uintptr_t piece = from;
#pragma unroll
            for (int c = 0; c < kVector; ++c) {
                if (c >= rooms()) break;
                copy_piece(there, piece, c < channels);
                there += row_bytes;
                piece += of_channel;
            }
        }
    }

    __device__ __forceinline__ void copy_unlike_rows(unsigned char* to, int lane) const {
#pragma unroll 1
        for (int at = lane * 16; at < row_bytes; at += 32 * 16) {
            std::uintptr_t from = begin;
#pragma unroll
            for (int c = 0; c < kVector; ++c) {
                if (c >= rooms()) break;
                const std::uintptr_t first = floor_of(from) + at;
                if (first < from + bytes) {
                    copy_piece(to + c * row_bytes + at, first, c < channels);
                }
                from += of_channel;
            }
        }
    }

    // Of several images: each lane has a channel's row of one, or shares it with its neighbours.
    __device__ __forceinline__ void copy_images(unsigned char* to, int lane) const {
        const int rows = rooms() * images;
        int sharing = 0;  // two to the power of it
        while (rows << (sharing + 1) <= 32) ++sharing;
#pragma unroll 1
        for (int i = lane >> sharing; i < rows; i += 32 >> sharing) {
            const int c = i % rooms(), segment = i / rooms();
            const std::uintptr_t from = begin + c * of_channel + segment * of_image;
            unsigned char* there = to + (c * segments + segment) * row_bytes;
#pragma unroll 4
            for (int at = (lane & ((1 << sharing) - 1)) * 16; at < row_bytes; at += 16 << sharing) {
                const std::uintptr_t first = floor_of(from) + at;
                if (first < from + bytes) {
                    copy_piece(there + at, first, c < channels);
                }
            }
        }
    }

    // Where whole pieces would reach over the tensor's ends.
    __device__ __forceinline__ void copy_singly(unsigned char* to, int lane) const {
#pragma unroll 1
        for (int i = 0; i < rooms() * images; ++i) {
            const int c = i % rooms(), segment = i / rooms();
            const std::uintptr_t from = begin + c * of_channel + segment * of_image;
            unsigned char* there =
                to + (c * segments + segment) * row_bytes + (from - floor_of(from));
            const auto* values = reinterpret_cast<const T*>(from);
#pragma unroll 1
            for (int at = lane; at < bytes / static_cast<int>(sizeof(T)); at += 32) {
                reinterpret_cast<T*>(there)[at] = c < channels ? values[at] : Element<T>::narrow(0);
            }
        }
    }
};

// How the rows of a slice lie when it has been copied, in elements.
template <typename S>
struct SliceLayout {
    using T = typename S::Value;
    static constexpr int kPiece = 16 / sizeof(T);

    int begin, of_channel, of_image;  // in the tensor
    int room, segments;               // of a row, and images that there is room for

    // Of a slice of the row of `tensor` that begins at `row`.
    __device__ __forceinline__ SliceLayout(const typename WeightShared<S>::Tensor& tensor,
                                           const T* row, int segments_)
        : begin(static_cast<int>(reinterpret_cast<std::uintptr_t>(row) / sizeof(T))),
          of_channel(static_cast<int>(tensor.of_channel / std::int64_t{sizeof(T)})),
          of_image(static_cast<int>(tensor.of_image / std::int64_t{sizeof(T)})),
          room(tensor.load_bytes / static_cast<int>(sizeof(T))),
          segments(segments_) {}

    // Where an image's rows begin, from some channel's on, in a slice that begins at `place`.
    template <typename Place, int kCount>
    __device__ __forceinline__ void find_rows(Place place, int channel, int segment,
                                              Place (&rows)[kCount]) const {
        place += segment * room;
        int shift = begin + channel * of_channel + segment * of_image;
#pragma unroll
        for (int c = 0; c < kCount; ++c) {
            rows[c] = place + (shift & (kPiece - 1));
            place += room * segments;
            shift += of_channel;
        }
    }
};

}  // namespace convsmith::implicit_gemm
