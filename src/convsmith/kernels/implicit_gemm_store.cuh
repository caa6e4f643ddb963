// Finished sums on their way to the output: a warp brings those of eight filters and one half of
// the pixels to shared memory, and stores them row by row.
#pragma once

#include <climits>

#include "implicit_gemm_phases.cuh"
#include "ptx/warpgroup.cuh"

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
class Store {
  public:
    using T = typename S::Value;

    struct Tensors {
        const T *input, *weight, *bias;
        const float* unscale;
        T* out;
    };

    __device__ Store(const Problem& problem, const Tensors& tensors, unsigned char* shared,
                     int warpgroup)
        : problem_(problem),
          tensors_(tensors),
          warpgroup_(warpgroup),
          lane_(static_cast<int>(threadIdx.x) % 32),
          tall_out_(static_cast<int>(problem.tall_height / problem.stride[0])) {
        const int warp = static_cast<int>(threadIdx.x) / 32;
        staging_ = reinterpret_cast<float*>(shared + Shared<S>(problem).staging +
                                            warp * Shared<S>::kStagingBytes);
    }

    // Begins to read what the sums of a tile are multiplied with and what is added to them.
    __device__ __forceinline__ void prepare(const Tile& tile) {
        const auto filters = static_cast<int>(problem_.filters);
        const float* unscale =
            tensors_.unscale + tile.group * filter_blocks<S>(problem_) * S::kFilters;
#pragma unroll
        for (int eight = 0; eight < 2; ++eight) {
            const int filter = min(first_filter(tile) + eight * 8 + lane_ / 4, filters - 1);
            factors_[eight] = unscale[filter];
            biases_[eight] = tensors_.bias == nullptr
                                 ? 0.0f
                                 : static_cast<float>(Element<T>::widen(
                                       tensors_.bias[tile.group * problem_.filters + filter]));
        }
    }

    template <int kValues>
    __device__ __forceinline__ void store(const Tile& tile,
                                          const float (&sums)[S::kHalves][kValues]) {
        if constexpr (S::kInterleaves) {
            store_phases(tile, sums);
            return;
        }
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
                stage(sums[half], eight);
                if (problem_.stores_runs != 0) {
                    store_runs(plane, corner, count);
                } else {
                    store_scattered(plane, corner, count);
                }
                ptx::warp_sync();
            }
        }
    }

  private:
    // Of this warp's 16, of which a thread's values are of two, 8 apart.
    __device__ __forceinline__ int first_filter(const Tile& tile) const {
        const int warp = static_cast<int>(threadIdx.x) / 32 % 4;
        return tile.first_filter + (S::kSplitsFilters ? warpgroup_ * kRowsOfBlock : 0) + warp * 16;
    }

    // Neighbouring pixels 8 j + 2 (lane % 4) and the next one.
    template <int kValues>
    __device__ __forceinline__ Vector<float, 2> pair(const float (&sums)[kValues], int j,
                                                     int eight) const {
        const float* from = sums + 4 * j + 2 * eight;
        return {factors_[eight] * from[0] + biases_[eight],
                factors_[eight] * from[1] + biases_[eight]};
    }

    __device__ __forceinline__ bool is_flat() const {
        return S::kUnfolds && problem_.flat_columns != 0;
    }

    // Brings this warp's eight filters of a half to shared memory.
    template <int kValues>
    __device__ __forceinline__ void stage(const float (&sums)[kValues], int eight) const {
        auto* to = reinterpret_cast<Vector<float, 2>*>(
            staging_ + lane_ / 4 * Shared<S>::kStagingPitch + lane_ % 4 * 2);
#pragma unroll
        for (int j = 0; j < kValues / 4; ++j) to[4 * j] = pair(sums, j, eight);
        ptx::warp_sync();
    }

    struct Corner {
        int row, column;  // of the half, in the first image
        int first_image;
    };

    __device__ __forceinline__ Corner corner_of(const Tile& tile, int half) const {
        const int group = S::kSplitsFilters ? 0 : warpgroup_;
        int row = tile.row + group * static_cast<int>(problem_.group_down) +
                  half * static_cast<int>(problem_.half_down);
        int column = tile.column + group * static_cast<int>(problem_.group_right) +
                     half * static_cast<int>(problem_.half_right);
        if (is_flat()) {
            const auto columns = static_cast<int>(problem_.flat_columns);
            row = column / columns;
            column %= columns;
        }
        const int image = row / tall_out_;
        return {row - image * tall_out_, column, image};
    }

    // Where pixel `pixel` of a half is: its image, from the first one on, its row and column.
    struct Position {
        int image, row, column;
    };

    __device__ __forceinline__ Position position_of(const Corner& corner, int pixel) const {
        const bool is_narrow = problem_.half_columns == 8;
        int p = corner.row + (is_narrow ? pixel / 8 : 0), image = 0;
        int q = corner.column + (is_narrow ? pixel % 8 : pixel);
        if (is_flat()) {
            p += q / static_cast<int>(problem_.flat_columns);
            q %= static_cast<int>(problem_.flat_columns);
        }
        while (p >= tall_out_) {
            p -= tall_out_;
            ++image;
        }
        return {image, p, q};
    }

    // And where it belongs, from the first image's first channel on; or kNone.
    static constexpr int kNone = INT_MIN;

    __device__ __forceinline__ int place_of(const Corner& corner, const Position& at) const {
        const bool exists = corner.first_image + at.image < static_cast<int>(problem_.images) &&
                            at.row < static_cast<int>(problem_.out_size[0]) &&
                            at.column < static_cast<int>(problem_.out_size[1]);
        return exists ? at.image * static_cast<int>(problem_.out_strides[0]) +
                            at.row * static_cast<int>(problem_.out_strides[2]) +
                            at.column * static_cast<int>(problem_.out_strides[3])
                      : kNone;
    }

    static constexpr int kVectorPixels = kHalf / 32;

    // Rows of the output are whole sectors of 32 bytes, which eight neighbours of a filter fill,
    // and four threads have: they store them at once.
    template <int kValues>
    __device__ __forceinline__ void store_pairs(T* plane, const Corner& corner, int count,
                                                int eight, const float (&sums)[kValues]) const {
        if (lane_ / 4 >= count) return;
        T* out = plane + lane_ / 4 * problem_.out_strides[1];
        const int column = corner.column + lane_ % 4 * 2;
        const int columns = static_cast<int>(problem_.out_size[1]);
        if (problem_.half_columns != 8) {
            const int place = place_of(corner, position_of(corner, lane_ % 4 * 2));
            if (place == kNone) return;
            out += place;
#pragma unroll
            for (int j = 0; j < kValues / 4; ++j) {
                if (column + 8 * j < columns) store_pair(out + 8 * j, pair(sums, j, eight));
            }
        } else if (column < columns) {
            out += column;
            int row = corner.row, image = corner.first_image;
            T* there = out + row * problem_.out_strides[2];
#pragma unroll
            for (int j = 0; j < kValues / 4; ++j) {
                if (row < static_cast<int>(problem_.out_size[0]) &&
                    image < static_cast<int>(problem_.images)) {
                    store_pair(there, pair(sums, j, eight));
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
    }

    static __device__ __forceinline__ void store_pair(T* out, const Vector<float, 2>& values) {
        *reinterpret_cast<Vector<T, 2>*>(out) = {Element<T>::narrow(values.values[0]),
                                                 Element<T>::narrow(values.values[1])};
    }

    // A half is a run of neighbours, or a flat one's are where an image ends.
    __device__ __forceinline__ void store_runs(T* plane, const Corner& corner, int count) const {
        const auto rows = static_cast<int>(problem_.out_size[0]);
        const auto columns = static_cast<int>(problem_.out_size[1]);
        if (!is_flat()) {
            const int place = place_of(corner, position_of(corner, 0));
            if (place == kNone) return;
            if (problem_.owns_sectors != 0) {
                store_sectors(plane + place, corner.column, count);
            } else {
                store_run(plane + place, 0, min(columns - corner.column, kHalf), count);
            }
            return;
        }
        const int images = static_cast<int>(problem_.images) - corner.first_image;
        int first = -(corner.row * columns + corner.column);  // the image's
        for (int image = 0; first < kHalf && image < images; ++image) {
            const int begin = max(first, 0), end = min(first + rows * columns, kHalf);
            T* out = plane + image * problem_.out_strides[0] + (begin - first);
            if (begin < end) store_run(out, begin, end - begin, count);
            first += tall_out_ * columns;
        }
    }

    // Stores neighbours, from pixel `first` on: but for their ends in whole sectors of 32 bytes,
    // for memory reads what is to be written in part.
    __device__ __forceinline__ void store_run(T* out, int first, int pixels, int count) const {
#pragma unroll 2
        for (int f = 0; f < count; ++f) {
            store_pixels(out, staging_ + f * Shared<S>::kStagingPitch + first, elements_before(out),
                         0, pixels);
            out += problem_.out_strides[1];
        }
    }

    static constexpr int kSector = 32 / sizeof(T);  // elements

    // From the sector's start.
    static __device__ __forceinline__ int elements_before(const T* out) {
        return static_cast<int>(reinterpret_cast<std::uintptr_t>(out) / sizeof(T) % kSector);
    }

    // A warp's 32 at once are whole sectors.
    __device__ __forceinline__ void store_pixels(T* out, const float* row, int before, int begin,
                                                 int end) const {
#pragma unroll
        for (int i = 0; i <= kVectorPixels; ++i) {
            const int pixel = i * 32 + lane_ - before;
            if (pixel >= begin && pixel < end) out[pixel] = Element<T>::narrow(row[pixel]);
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
            store_pixels(out, staging_ + f * Shared<S>::kStagingPitch, before, begin, end);
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

    // Stores a tile whose filters are phases. What infinity times zero has spoilt is computed anew.
    template <int kValues>
    __device__ __forceinline__ void store_phases(const Tile& tile,
                                                 const float (&sums)[S::kHalves][kValues]) const {
        bool has_nan = false;
#pragma unroll
        for (int half = 0; half < S::kHalves; ++half) {
            const Corner corner = corner_of(tile, half);
            PhasedPixel pixels[kVectorPixels];
#pragma unroll
            for (int i = 0; i < kVectorPixels; ++i) pixels[i] = phased_pixel(corner, i);
#pragma unroll
            for (int eight = 0; eight < 2; ++eight) {
                const int first = first_filter(tile) + eight * 8;
                if (first >= static_cast<int>(problem_.filters)) continue;
                stage(sums[half], eight);
                has_nan |= problem_.out_phases.stores_vectors != 0
                               ? store_columns<true>(tile.group, corner, pixels, first)
                               : store_columns<false>(tile.group, corner, pixels, first);
                ptx::warp_sync();
            }
        }
        if (has_nan) repair_phases(tile);
        ptx::warp_sync();
    }

    // A pixel of a half that is phases of x: the image, from the first one on, row and column of
    // the first ones, and where they belong.
    struct PhasedPixel {
        int image, h, w, place;
    };

    // This lane's in part `part` of the half, a warp's.
    __device__ __forceinline__ PhasedPixel phased_pixel(const Corner& corner, int part) const {
        const OutPhases& out = problem_.out_phases;
        const bool is_narrow = problem_.half_columns == 8;
        const Corner of_part{corner.row + (is_narrow ? part * (32 / 8) : 0),
                             corner.column + (is_narrow ? 0 : part * 32), corner.first_image};
        const Position at = position_of(of_part, lane_);
        const int place = place_of(corner, at);
        const auto h = place == kNone ? static_cast<int>(out.x_size[0])  // beyond x
                                      : at.row * static_cast<int>(out.stride[0]);
        return {at.image, h, at.column * static_cast<int>(out.stride[1]), place};
    }

    __device__ __forceinline__ bool is_in_x(const PhasedPixel& pixel, const PhaseFilter& filter,
                                            int column) const {
        return pixel.h + filter.phase[0] < static_cast<int>(problem_.out_phases.x_size[0]) &&
               pixel.w + filter.phase[1] + column < static_cast<int>(problem_.out_phases.x_size[1]);
    }

    // Where a filter's phase of the first image's first pixel belongs.
    __device__ __forceinline__ T* plane_of(int group, const Corner& corner,
                                           const PhaseFilter& filter) const {
        const OutPhases& out = problem_.out_phases;
        return tensors_.out + corner.first_image * problem_.out_strides[0] +
               (group * static_cast<int>(out.channels) + filter.channel) * problem_.out_strides[1] +
               (filter.phase[0] * static_cast<int>(out.x_strides[0]) +
                filter.phase[1] * static_cast<int>(out.x_strides[1]));
    }

    // Stores eight filters, from `first` on. Some column phases of a channel, which are neighbours
    // in x, come together: as one vector, or one by one. Returns whether a sum is NaN.
    template <bool kAsVectors>
    __device__ __forceinline__ bool store_columns(int group, const Corner& corner,
                                                  const PhasedPixel (&pixels)[kVectorPixels],
                                                  int first) const {
        const OutPhases& out = problem_.out_phases;
        const auto across = static_cast<int>(out.stride[1]);
        const auto of_column = static_cast<int>(out.x_strides[1]);
        const float* from = staging_ + lane_;
        PhaseFilter filter = phase_filter(problem_, first);
        T* plane = plane_of(group, corner, filter);
        bool has_nan = false;
#pragma unroll 1
        for (int f = 0; f < 8 && filter.exists; f += S::kTogether) {
#pragma unroll
            for (int i = 0; i < kVectorPixels; ++i) {
                Vector<T, S::kTogether> values;
#pragma unroll
                for (int j = 0; j < S::kTogether; ++j) {
                    const float value = from[j * Shared<S>::kStagingPitch + i * 32];
                    has_nan = has_nan || value != value;
                    values.values[j] = Element<T>::narrow(value);
                }
#pragma unroll
                for (int j = 0; j < S::kTogether; j += kAsVectors ? S::kTogether : 1) {
                    if (!is_in_x(pixels[i], filter, j)) continue;
                    T* to = plane + pixels[i].place;
                    if constexpr (kAsVectors) {
                        *reinterpret_cast<Vector<T, S::kTogether>*>(to) = values;
                    } else {
                        to[j * of_column] = values.values[j];
                    }
                }
            }
            from += S::kTogether * Shared<S>::kStagingPitch;
            filter.phase[1] += S::kTogether;
            plane += S::kTogether * of_column;
            if (filter.phase[1] < across) continue;
            filter.phase[1] = 0;
            plane += problem_.out_strides[1] - across * of_column;
            if (++filter.channel < static_cast<int>(out.channels)) continue;
            filter = phase_filter(problem_, first + f + S::kTogether);
            plane = plane_of(group, corner, filter);
        }
        return has_nan;
    }

    // Computes anew what this lane has stored of a tile and is NaN.
    __device__ __forceinline__ void repair_phases(const Tile& tile) const {
#pragma unroll 1
        for (int i = 0; i < S::kHalves * 16 * kVectorPixels; ++i) {
            const Corner corner = corner_of(tile, i / (16 * kVectorPixels));
            const PhasedPixel pixel = phased_pixel(corner, i % kVectorPixels);
            const PhaseFilter filter =
                phase_filter(problem_, first_filter(tile) + i / kVectorPixels % 16);
            if (!filter.exists || !is_in_x(pixel, filter, 0)) continue;
            T* to = plane_of(tile.group, corner, filter) + pixel.place;
            const float value = Element<T>::widen(*to);
            if (value == value) continue;
            *to = Element<T>::narrow(input_gradient<S>(
                problem_, tensors_.input, tensors_.weight, corner.first_image + pixel.image,
                tile.group, filter.channel, pixel.h + filter.phase[0], pixel.w + filter.phase[1]));
        }
    }

    const Problem& problem_;
    Tensors tensors_;
    float* staging_;
    float factors_[2], biases_[2];
    int warpgroup_, lane_, tall_out_;
};

}  // namespace convsmith::implicit_gemm
