// Finished sums on their way to the output, filter by filter: as pairs of pixels, which a thread
// has side by side, or from shared memory, row by row, aligned rows by the copy engine.
#pragma once

#include "implicit_gemm_sums.cuh"

namespace convsmith::implicit_gemm {

// Lets the warpgroups store in turn, so that one multiplies meanwhile.
template <typename S>
class StoringTurn {
  public:
    __device__ StoringTurn(bool is_needed, int warpgroup)
        : is_needed_(is_needed), warpgroup_(warpgroup) {
        if (is_needed && warpgroup == 1) ptx::bar_arrive(kFirstBarrier, kThreads);
    }

    __device__ __forceinline__ void begin() const {
        if (is_needed_) ptx::bar_sync(kFirstBarrier + warpgroup_, kThreads);
    }
    __device__ __forceinline__ void end() const {
        if (is_needed_) ptx::bar_arrive(kFirstBarrier + (warpgroup_ ^ 1), kThreads);
    }

  private:
    static constexpr int kFirstBarrier = 2;  // the first warpgroup's
    static constexpr int kThreads = S::kConsumers * ptx::kWarpgroup;
    bool is_needed_;
    int warpgroup_;
};

template <typename S>
class Store : public FinishedSums<S> {
    using Base = FinishedSums<S>;

  public:
    using Base::Base;
    using typename Base::T;

    template <int kValues>
    __device__ __forceinline__ void store(const Tile& tile,
                                          const float (&sums)[S::kHalves][kValues]) const {
        const auto filters = static_cast<int>(problem_.filters);
        const std::int64_t first_channel = tile.group * problem_.filters;
#pragma unroll
        for (int half = 0; half < S::kHalves; ++half) {
            const Corner corner = corner_of(tile, half);
#pragma unroll
            for (int eight = 0; eight < 2; ++eight) {
                const int first = first_filter(tile) + eight * 8;
                if (first >= filters) continue;
                T* plane = tensors_.out + (first_channel + first) * problem_.out_strides[1] +
                           corner.first_image * problem_.out_strides[0];
                const int count = min(filters - first, 8);
                if (problem_.stores_pairs != 0) {
                    store_pairs(plane, corner, count, eight, sums[half]);
                    continue;
                }
                if (!S::kIsFlat && problem_.stores_in_bulk != 0) {
                    store_in_bulk(plane, corner, count, eight, sums[half]);
                    continue;
                }
                this->template stage<float>(sums[half], eight);
                if (problem_.stores_runs != 0) {
                    store_runs(plane, corner, count);
                } else {
                    store_scattered(plane, corner, count);
                }
                ptx::warp_sync();
            }
        }
    }

    // Returns when the copy engine has read what it was given, which then may be overwritten.
    static __device__ __forceinline__ void wait_until_read() {
        ptx::cp_async_bulk_wait_group_read();
        ptx::warp_sync();
    }

  private:
    using Base::corner_of, Base::position_of, Base::place_of, Base::first_filter;
    using Base::kNone, Base::kVectorPixels;
    using Base::pair, Base::staging_;
    using Base::problem_, Base::tensors_, Base::lane_, Base::tall_out_;
    using typename Base::Corner;

    // Short rows, eight neighbours of each filter: four threads have them as pairs, and store whole
    // sectors of 32 bytes at once, if rows are such.
    template <int kValues>
    __device__ __forceinline__ void store_pairs(T* plane, const Corner& corner, int count,
                                                int eight, const float (&sums)[kValues]) const {
        const int column = corner.column + lane_ % 4 * 2;
        if (lane_ / 4 >= count || column >= static_cast<int>(problem_.out_size[1])) return;
        T* out = plane + lane_ / 4 * problem_.out_strides[1] + column;
        int row = corner.row, image = corner.first_image;
        T* there = out + row * problem_.out_strides[2];
#pragma unroll
        for (int j = 0; j < kValues / 4; ++j) {
            if (row < static_cast<int>(problem_.out_size[0]) &&
                image < static_cast<int>(problem_.images)) {
                const Vector<float, 2> values = pair(sums, j, eight);
                *reinterpret_cast<Vector<T, 2>*>(there) = {Element<T>::narrow(values.values[0]),
                                                           Element<T>::narrow(values.values[1])};
            }
            there += problem_.out_strides[2];
            if (++row == tall_out_) {
                row = 0;
                ++image;
                out += problem_.out_strides[0];
                there = out;
            }
        }
    }

    // Long rows of whole 16 bytes: a lane for each filter has the copy engine store its run, while
    // the warp goes on.
    template <int kValues>
    __device__ __forceinline__ void store_in_bulk(T* plane, const Corner& corner, int count,
                                                  int eight, const float (&sums)[kValues]) const {
        const int place = place_of(corner, position_of(corner, 0));
        if (place == kNone) return;
        wait_until_read();
        this->template stage<T>(sums, eight);
        ptx::fence_proxy_async();
        ptx::warp_sync();
        if (lane_ < count) {
            const int columns = static_cast<int>(problem_.out_size[1]) - corner.column;
            ptx::cp_async_bulk_store(plane + lane_ * problem_.out_strides[1] + place,
                                     staging_ + lane_ * Shared<S>::kStagingPitch,
                                     min(columns, kHalf) * static_cast<int>(sizeof(T)));
            ptx::cp_async_bulk_commit_group();
        }
    }

    // A half's pixels are neighbours, at least those of an image.
    __device__ __forceinline__ void store_runs(T* plane, const Corner& corner, int count) const {
        if constexpr (S::kIsFlat) {
            store_flat(plane, corner, count);
            return;
        }
        const int place = place_of(corner, position_of(corner, 0));
        if (place == kNone) return;
        if (problem_.owns_sectors != 0) {
            store_sectors(plane + place, corner.column, count);
            return;
        }
        const int columns = static_cast<int>(problem_.out_size[1]) - corner.column;
        store_run(plane + place, min(columns, kHalf), count, [](int pixel) { return pixel; });
    }

    // What a flat half has of an image are neighbours but for the padding between its rows.
    __device__ __forceinline__ void store_flat(T* plane, const Corner& corner, int count) const {
        const auto columns = static_cast<int>(problem_.out_size[1]);
        const auto pitch = static_cast<int>(problem_.flat_columns);
        const int images = static_cast<int>(problem_.images) - corner.first_image;
        // Quotients of less than 2**16 / columns, where there is padding: then columns are few.
        const unsigned inverse = 65535u / static_cast<unsigned>(columns) + 1;
        int from = corner.row * pitch + corner.column;  // the half's first pixel, in the image
        for (int image = 0; from > -kHalf && image < images; ++image) {
            const int begin = stored_before(from), end = stored_before(from + kHalf);
            const int row = begin / columns, in_row = begin - row * columns;
            const int staged = begin - from + row * (pitch - columns);
            store_run(plane + begin, end - begin, count, [&](int pixel) {
                if constexpr (S::kUnfolds) return staged + pixel;  // there is no padding
                const auto rows = static_cast<int>((in_row + pixel) * inverse >> 16);
                return staged + pixel + rows * (pitch - columns);
            });
            plane += problem_.out_strides[0];
            from -= tall_out_ * pitch;
        }
    }

    // How many elements of an image, of a channel, lie before a place of a flat tile.
    __device__ __forceinline__ int stored_before(int place) const {
        const auto rows = static_cast<int>(problem_.out_size[0]);
        const auto columns = static_cast<int>(problem_.out_size[1]);
        const auto pitch = static_cast<int>(problem_.flat_columns);
        const int row = max(place, 0) / pitch, column = max(place, 0) % pitch;
        return row < rows ? row * columns + min(column, columns) : rows * columns;
    }

    // Stores neighbours, which lie in a staged row where `staged_at` says: but for their ends in
    // whole sectors of 32 bytes, for memory reads what is to be written in part.
    template <typename Place>
    __device__ __forceinline__ void store_run(T* out, int pixels, int count,
                                              const Place& staged_at) const {
#pragma unroll 2
        for (int f = 0; f < count; ++f) {
            store_pixels(out, staging_ + f * Shared<S>::kStagingPitch, elements_before(out), 0,
                         pixels, staged_at);
            out += problem_.out_strides[1];
        }
    }

    static constexpr int kSector = 32 / sizeof(T);  // elements

    // From the sector's start.
    static __device__ __forceinline__ int elements_before(const T* out) {
        return static_cast<int>(reinterpret_cast<std::uintptr_t>(out) / sizeof(T) % kSector);
    }

    // A warp's 32 at once are whole sectors.
    template <typename Place>
    __device__ __forceinline__ void store_pixels(T* out, const float* row, int before, int begin,
                                                 int end, const Place& staged_at) const {
#pragma unroll
        for (int i = 0; i <= kVectorPixels; ++i) {
            const int pixel = i * 32 + lane_ - before;
            if (pixel >= begin && pixel < end) {
                out[pixel] = Element<T>::narrow(row[staged_at(pixel)]);
            }
        }
    }

    // Stores the sectors that begin in this tile, of a row: its first one and its last one may be
    // stored in part.
    __device__ __forceinline__ void store_sectors(T* out, int column, int count) const {
        const int columns = min(static_cast<int>(problem_.out_size[1]) - column, kHalf);
        const auto width = static_cast<int>(problem_.tile_size[1]);
#pragma unroll 2
        for (int f = 0; f < count; ++f) {
            const int before = elements_before(out), after = (kSector - before) % kSector;
            const int begin = column == 0 ? 0 : after, end = min(columns, width + after);
            store_pixels(out, staging_ + f * Shared<S>::kStagingPitch, before, begin, end,
                         [](int pixel) { return pixel; });
            out += problem_.out_strides[1];
        }
    }

    __device__ __forceinline__ void store_scattered(T* plane, const Corner& corner,
                                                    int count) const {
        int places[kVectorPixels];
#pragma unroll
        for (int i = 0; i < kVectorPixels; ++i)
            places[i] = place_of(corner, position_of(corner, i * 32 + lane_));
#pragma unroll 2
        for (int f = 0; f < count; ++f) {
            const float* row = staging_ + f * Shared<S>::kStagingPitch;
#pragma unroll
            for (int i = 0; i < kVectorPixels; ++i) {
                if (places[i] != kNone) {
                    plane[places[i]] = Element<T>::narrow(row[i * 32 + lane_]);
                }
            }
            plane += problem_.out_strides[1];
        }
    }
};

}  // namespace convsmith::implicit_gemm
