// A slice of a row, of a vector's channels of a line's images, on its way to shared memory: as it
// is, in aligned pieces of 16 bytes. Each channel's row of an image lies as far beyond a multiple
// of 16 bytes as it does in the tensor, which is how it is found again.
#pragma once

#include "implicit_gemm_weight_problem.cuh"
#include "ptx/cp_async.cuh"

namespace convsmith::implicit_gemm {

inline constexpr int kPieceBytes = 16;

template <typename S, bool kIsX>
struct Slice {
    using T = typename S::Value;
    static constexpr int kChannels = kIsX ? S::kXChannels : kVector;
    static constexpr int kRowBytes = S::template kRowBytes<kIsX>;  // that there is room for

    std::uintptr_t begin;
    std::int64_t of_channel, of_image;  // from one to the next, in bytes
    int bytes;                          // of a row
    int images, channels;               // that exist, or more; missing channels are zeros

    // Begins to copy it. Whole pieces may be copied if it is inside: if they do not reach over the
    // tensor's ends.
    __device__ __forceinline__ void copy(unsigned char* to, int lane, bool is_inside) const {
        if (!is_inside) {
            copy_singly(to, lane);
        } else if constexpr (S::kSideBySide) {
            copy_images(to, lane);
        } else {
            copy_image(to, lane);
        }
    }

    static __device__ __forceinline__ std::uintptr_t floor_of(std::uintptr_t address) {
        return address & ~std::uintptr_t{kPieceBytes - 1};
    }

  private:
    // Where a row of an image begins, and where it goes.
    __device__ __forceinline__ std::uintptr_t row(int channel, int segment) const {
        return begin + channel * of_channel + segment * of_image;
    }
    static __device__ __forceinline__ int place_of(int channel, int segment) {
        return (channel * S::kSegments + segment) * kRowBytes;
    }

    // Of one image: neighbouring lanes have neighbouring pieces of a channel's row.
    __device__ __forceinline__ void copy_image(unsigned char* to, int lane) const {
        constexpr int kLanes = lanes_of_row(), kStep = 32 / kLanes;
        int channel = lane / kLanes;
        const int first = lane % kLanes * kPieceBytes;
        std::uintptr_t from = row(channel, 0);
        to += place_of(channel, 0) + first;
        int before = static_cast<int>(from % kPieceBytes);
#pragma unroll
        for (int i = 0; i < kChannels; i += kStep) {
            if constexpr (!S::template kLieAlike<kIsX>) {
                before = static_cast<int>(from % kPieceBytes);
            }
            const auto* piece = reinterpret_cast<const unsigned char*>(from - before) + first;
#pragma unroll
            for (int at = 0; at < kRowBytes; at += kLanes * kPieceBytes) {
                if (at < before + bytes - first) {
                    ptx::cp_async<kPieceBytes>(to + place_of(i, 0) + at, piece + at,
                                               channel < channels);
                }
            }
            channel += kStep;
            from += kStep * of_channel;
        }
    }
    static __host__ __device__ constexpr int lanes_of_row() {
        int lanes = 32 / kChannels;
        while (lanes < 32 && lanes * kPieceBytes < kRowBytes) lanes *= 2;
        return lanes;
    }

    // Of several images: each lane has a channel's row of one, or shares it with its neighbours.
    __device__ __forceinline__ void copy_images(unsigned char* to, int lane) const {
        const int rows = kChannels * images;
        int sharing = 0;  // two to the power of it
        while (rows << (sharing + 1) <= 32) ++sharing;
#pragma unroll 1
        for (int i = lane >> sharing; i < rows; i += 32 >> sharing) {
            const int channel = i % kChannels, segment = i / kChannels;
            const std::uintptr_t from = row(channel, segment);
            const int end = static_cast<int>(from - floor_of(from)) + bytes;
            unsigned char* there = to + place_of(channel, segment);
#pragma unroll 4
            for (int at = (lane & ((1 << sharing) - 1)) * kPieceBytes; at < end;
                 at += kPieceBytes << sharing) {
                ptx::cp_async<kPieceBytes>(there + at,
                                           reinterpret_cast<const void*>(floor_of(from) + at),
                                           channel < channels);
            }
        }
    }

    // Where whole pieces would reach over the tensor's ends.
    __device__ __forceinline__ void copy_singly(unsigned char* to, int lane) const {
#pragma unroll 1
        for (int i = 0; i < kChannels * images; ++i) {
            const int c = i % kChannels, segment = i / kChannels;
            const std::uintptr_t from = row(c, segment);
            unsigned char* there = to + place_of(c, segment) + (from - floor_of(from));
            const auto* values = reinterpret_cast<const T*>(from);
#pragma unroll 1
            for (int at = lane; at < bytes / static_cast<int>(sizeof(T)); at += 32) {
                reinterpret_cast<T*>(there)[at] = c < channels ? values[at] : Element<T>::narrow(0);
            }
        }
    }
};

// How the rows of a slice lie when it has been copied, in elements.
template <typename S, bool kIsX>
struct SliceLayout {
    using T = typename S::Value;
    static constexpr int kPiece = kPieceBytes / sizeof(T);
    static constexpr int kRoom = S::template kRowBytes<kIsX> / sizeof(T);

    int begin, of_channel, of_image;  // in the tensor

    // Of a slice of the row of `tensor` that begins at `row`.
    __device__ __forceinline__ SliceLayout(const typename WeightShared<S>::Tensor& tensor,
                                           const T* row)
        : begin(static_cast<int>(reinterpret_cast<std::uintptr_t>(row) / sizeof(T))),
          of_channel(static_cast<int>(tensor.of_channel / std::int64_t{sizeof(T)})),
          of_image(static_cast<int>(tensor.of_image / std::int64_t{sizeof(T)})) {}

    // Where an image's rows begin, from some channel's on, in a slice that begins at `place`.
    template <typename Place, int kCount>
    __device__ __forceinline__ void find_rows(Place place, int channel, int segment,
                                              Place (&rows)[kCount]) const {
        place += segment * kRoom;
        int shift = begin;
        if constexpr (!S::template kLieAlike<kIsX>) {
            shift += channel * of_channel + segment * of_image;
        }
#pragma unroll
        for (int c = 0; c < kCount; ++c) {
            rows[c] = place + c * (kRoom * S::kSegments) + (shift & (kPiece - 1));
            if constexpr (!S::template kLieAlike<kIsX>) shift += of_channel;
        }
    }
};

}  // namespace convsmith::implicit_gemm
