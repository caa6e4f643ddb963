// Finished sums on their way to the output, filter by filter: as pairs of pixels, which a thread
// has side by side, or from shared memory, row by row, long rows by the copy engine.
#pragma once

#include "implicit_gemm_sums.cuh"
#include "ptx/elect.cuh"

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
                if (!S::kIsFlat && problem_.owns_sectors != 0) {
                    store_sectors(plane, corner, count, eight, sums[half]);
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

    // Long rows of whole 16 bytes, by the copy engine, while the warp goes on.
    template <int kValues>
    __device__ __forceinline__ void store_in_bulk(T* plane, const Corner& corner, int count,
                                                  int eight, const float (&sums)[kValues]) const {
        const int place = place_of(corner, position_of(corner, 0));
        if (place == kNone) return;
        const int columns = static_cast<int>(problem_.out_size[1]) - corner.column;
        const int bytes = min(columns, kHalf) * static_cast<int>(sizeof(T));
        wait_until_read();
        this->template stage<T>(sums, eight);
        T* out = plane + place;
        begin_copies([&](int filter) {
            if (filter < count) {
                const float* row = staging_ + filter * Shared<S>::kStagingPitch;
                ptx::cp_async_bulk_store(out, row, bytes);
            }
            out += problem_.out_strides[1];
        });
    }

    // Has one lane begin the copies of eight filters' staged rows: at addresses that all lanes
    // share one follows another without waiting.
    template <typename Copy>
    __device__ __forceinline__ void begin_copies(const Copy& copy) const {
        ptx::fence_proxy_async();
        ptx::warp_sync();
        if (!ptx::elect_sync()) return;
#pragma unroll
        for (int filter = 0; filter < 8; ++filter) copy(filter);
        ptx::cp_async_bulk_commit_group();
    }

    // What a tile owns of a long row: the sectors that begin in it. The row's last one is shared
    // with the next row, whose first pixels the last tile has beyond what is padding.
    struct Part {
        int columns, padding;  // of the row from the tile's first one on; between it and the next
        int own;               // columns in which these sectors begin
        bool is_last, begins_plane, ends_plane;
    };

    __device__ __forceinline__ Part part_of(const Corner& corner) const {
        const auto all = static_cast<int>(problem_.out_size[1]);
        const auto width = static_cast<int>(problem_.tile_size[1]);
        const int columns = all - corner.column;
        const bool is_last = corner.column == static_cast<int>(problem_.tiles[1] - 1) * width;
        const bool is_last_row = corner.row + 1 == static_cast<int>(problem_.out_size[0]);
        return {columns, static_cast<int>(problem_.flat_columns) - all, is_last ? columns : width,
                is_last, corner.row == 0 && corner.column == 0,         is_last && is_last_row};
    }

    // These sectors, by the copy engine. What begins or ends a plane, and shares its sector with
    // another one, is stored element by element.
    template <int kValues>
    __device__ __forceinline__ void store_sectors(T* plane, const Corner& corner, int count,
                                                  int eight, const float (&sums)[kValues]) const {
        const int place = place_of(corner, position_of(corner, 0));
        if (place == kNone) return;
        T* first = plane + place;
        const Part part = part_of(corner);
        wait_until_read();
        stage_part(first + lane_ / 4 * problem_.out_strides[1], part, eight, sums);
        T* out = first;
        begin_copies([&](int filter) {
            const Sectors own(out, part);
            if (filter < count && own.bytes > 0) {
                ptx::cp_async_bulk_store(own.begin, staged(own, filter) + own.skipped, own.bytes);
            }
            out += problem_.out_strides[1];
        });
        if ((part.begins_plane || part.ends_plane) && lane_ < count) {
            out = first + lane_ * problem_.out_strides[1];
            const Sectors own(out, part);
            const int end = own.skipped + own.bytes / static_cast<int>(sizeof(T));
            if (part.begins_plane) copy_elements(out, staged(own, lane_), 0, own.skipped);
            if (part.ends_plane) copy_elements(out, staged(own, lane_), end, part.own);
        }
    }

    // Sectors that a part of a row owns; before them it has `skipped` elements.
    struct Sectors {
        T* begin;
        int skipped, bytes;

        __device__ __forceinline__ Sectors(T* out, const Part& part) {
            const auto first = reinterpret_cast<std::uintptr_t>(out);
            const auto from = (first + kSector - 1) / kSector * kSector;
            const auto last = first + part.own * sizeof(T) + (part.ends_plane ? 0 : kSector - 1);
            begin = reinterpret_cast<T*>(from);
            skipped = static_cast<int>(static_cast<unsigned>(from - first) / sizeof(T));
            bytes = static_cast<int>(last / kSector * kSector - from);
        }
    };

    // Where a filter's part of a row is staged: its sectors begin at whole 16 bytes.
    __device__ __forceinline__ T* staged(const Sectors& own, int filter) const {
        auto* row = reinterpret_cast<T*>(staging_ + filter * Shared<S>::kStagingPitch);
        return row + (-own.skipped & (16 / static_cast<int>(sizeof(T)) - 1));
    }

    static __device__ __forceinline__ void copy_elements(T* out, const T* row, int begin, int end) {
        for (int i = begin; i < end; ++i) out[i] = row[i];
    }

    // Brings this warp's eight filters of a half to shared memory, a thread those of the row that
    // belongs to `out`; of a row's last ones without the padding before the next row.
    template <int kValues>
    __device__ __forceinline__ void stage_part(T* out, const Part& part, int eight,
                                               const float (&sums)[kValues]) const {
        T* row = staged(Sectors(out, part), lane_ / 4);
        const int first = lane_ % 4 * 2;
        const bool are_pairs = reinterpret_cast<std::uintptr_t>(row) % (2 * sizeof(T)) == 0;
        if (are_pairs && !part.is_last) {
#pragma unroll
            for (int j = 0; j < kValues / 4; ++j) {
                const Vector<float, 2> values = pair(sums, j, eight);
                *reinterpret_cast<Vector<T, 2>*>(row + 8 * j + first) = {
                    Element<T>::narrow(values.values[0]), Element<T>::narrow(values.values[1])};
            }
            return;
        }
#pragma unroll
        for (int j = 0; j < kValues / 4; ++j) {
            const Vector<float, 2> values = pair(sums, j, eight);
#pragma unroll
            for (int i = 0; i < 2; ++i) {
                const int pixel = 8 * j + first + i;
                const bool is_next = pixel >= part.columns + part.padding;
                if (pixel < part.columns || is_next) {
                    row[is_next ? pixel - part.padding : pixel] =
                        Element<T>::narrow(values.values[i]);
                }
            }
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
            store_pixels(out, staging_ + f * Shared<S>::kStagingPitch, pixels, staged_at);
            out += problem_.out_strides[1];
        }
    }

    static constexpr std::uintptr_t kSector = 32;  // bytes

    // A warp's 32 at once are whole sectors.
    template <typename Place>
    __device__ __forceinline__ void store_pixels(T* out, const float* row, int pixels,
                                                 const Place& staged_at) const {
        const auto before =  // in the first one's sector
            static_cast<int>(reinterpret_cast<std::uintptr_t>(out) % kSector / sizeof(T));
#pragma unroll
        for (int i = 0; i <= kVectorPixels; ++i) {
            const int pixel = i * 32 + lane_ - before;
            if (pixel >= 0 && pixel < pixels) {
                out[pixel] = Element<T>::narrow(row[staged_at(pixel)]);
            }
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
