// Weights as the tensor cores read them: scaled for each filter, in vectors of 16 bytes, by blocks
// of kRowsOfBlock filters and S::kBlockChannels channels,
//   [group][filter block][channel block][tap][part][channels / kVector][filter]
// with zeros where filters or channels are missing, followed by what undoes each filter's scale.
#pragma once

#include <algorithm>
#include <climits>

#include "implicit_gemm_operands.cuh"
#include "implicit_gemm_phases.cuh"
#include "ptx/grid_dependency.cuh"
#include "ptx/reduce.cuh"

namespace convsmith::implicit_gemm {

inline constexpr int kMostPackThreads = 512;

struct PackShared {
    int places[kMostTaps];  // of the taps' weights, from a channel's first one; or kNoWeight
    unsigned largest[kMostPackThreads / 32];  // of each warp's weights
};
inline constexpr int kNoWeight = INT_MIN;

// The weights that a filter of the family has.
template <typename S>
struct PackedFilter {
    using T = typename S::Value;
    const Problem& problem;
    const T* first;  // of the first channel
    int channels;    // none of a filter that does not exist
    TapRows rows;
    PhaseFilter phases;

    __device__ PackedFilter(const Problem& problem, const T* weight, std::int64_t row)
        : problem(problem), rows{0, static_cast<int>(problem.kernel_size[0])}, phases{} {
        const std::int64_t padded = filter_blocks<S>(problem) * std::int64_t{S::kFilters};
        const std::int64_t group = row / padded, filter = row % padded;
        std::int64_t of_group = filter;  // of the weights' filters
        bool exists = filter < problem.filters;
        if constexpr (S::kInterleaves) {
            phases = phase_filter(problem, static_cast<int>(filter));
            of_group = phases.channel;
            exists = phases.exists;
            rows = tap_rows(problem, phases.phase[0]);
        }
        channels = exists ? S::channels(problem) : 0;
        first = weight + problem.first_weight + group * problem.weight_strides[0] +
                of_group * problem.weight_strides[1];
    }

    // Where a tap's weight is, from its channel's first one, or kNoWeight; of unfolded channels,
    // that of the tap's first column.
    __device__ __forceinline__ int place_of(int tap) const {
        const int columns = S::tap_columns(problem);
        const int row = weight_index(0, tap / columns);
        const int column = S::kUnfolds ? 0 : weight_index(1, tap % columns);
        if (row < 0 || column < 0) return kNoWeight;
        return row * static_cast<int>(problem.weight_strides[3]) +
               column * static_cast<int>(problem.weight_strides[4]);
    }

    __device__ __forceinline__ float weight_at(int channel, int place) const {
        if (channel >= channels || place == kNoWeight) return 0.0f;
        if constexpr (S::kUnfolds) {
            const int run = channel / kVector, runs = S::runs(problem);
            const int column =
                run % runs * kVector + channel % kVector - static_cast<int>(problem.lead);
            if (column < 0 || column >= static_cast<int>(problem.kernel_size[1])) return 0.0f;
            const int index = weight_index(1, column);
            if (index < 0) return 0.0f;
            channel = run / runs;
            place += index * static_cast<int>(problem.weight_strides[4]);
        }
        return static_cast<float>(
            Element<T>::widen(first[channel * problem.weight_strides[2] + place]));
    }

  private:
    // The filter row (or column) that a row (or column) of taps meets, or -1.
    __device__ __forceinline__ int weight_index(int axis, int tap) const {
        if constexpr (!S::kInterleaves) return tap;
        return filter_index(problem, axis, phases.phase[axis], axis == 0 ? rows.first : 0, tap);
    }
};

// Threads of a block: as many as leave each few of a filter's weights, for what takes long is that
// they wait for memory again and again.
template <typename S>
int pack_threads(const Problem& problem) {
    constexpr int kEach = 8, kFewest = 128;
    const int weights = S::channels(problem) * S::padded_taps(problem);
    const int threads = (weights / kEach + kFewest - 1) / kFewest * kFewest;
    return std::min(std::max(threads, kFewest), kMostPackThreads);
}

// What a thread goes over: pairs of an outer number and a tap, as far apart as there are threads.
class TapWalk {
  public:
    int outer, tap;

    __device__ TapWalk(int first, int taps)
        : outer(first / max(taps, 1)),
          tap(first % max(taps, 1)),
          taps_(taps),
          outer_step_(static_cast<int>(blockDim.x) / max(taps, 1)),
          tap_step_(static_cast<int>(blockDim.x) % max(taps, 1)) {}

    __device__ __forceinline__ void advance() {
        outer += outer_step_;
        tap += tap_step_;
        if (tap >= taps_) {
            tap -= taps_;
            ++outer;
        }
    }

  private:
    int taps_, outer_step_, tap_step_;
};

// A block packs one filter.
template <typename S>
__global__ void __launch_bounds__(kMostPackThreads)
    pack(const Problem problem, const typename S::Value* __restrict__ weight,
         typename S::Operand* __restrict__ packed, float* __restrict__ unscale) {
    using Operand = typename S::Operand;
    ptx::griddepcontrol_launch_dependents();  // they load patches meanwhile
    auto& shared = *shared_memory<PackShared>();
    const int thread = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
    const std::int64_t row = blockIdx.x;  // of padded filters
    const PackedFilter<S> filter(problem, weight, row);
    const int taps = S::taps(problem, filter.rows.count);
    const int padded_taps = S::padded_taps(problem, filter.rows.count);
    for (int tap = thread; tap < taps; tap += threads) {
        shared.places[tap] = filter.place_of(tap);
    }
    __syncthreads();

    // Find the scale.
    float scale = 1;
    if constexpr (S::kScales) {
        unsigned largest = 0;
        TapWalk walk(thread, taps);
#pragma unroll 4
        for (int i = thread; i < filter.channels * taps; i += threads) {
            const float value = filter.weight_at(walk.outer, shared.places[walk.tap]);
            const unsigned bits = magnitude_bits(value);
            if (bits < kInfinityBits) largest = max(largest, bits);
            walk.advance();
        }
        largest = ptx::reduce_max(largest);
        if (thread % 32 == 0) shared.largest[thread / 32] = largest;
        __syncthreads();
        for (int i = 0; i < threads / 32; ++i) largest = max(largest, shared.largest[i]);
        scale = scale_for(largest);
    }
    if (thread == 0) unscale[row] = 1 / scale;

    // Write the vectors. Taps that fill the last stage meet what the first one meets, and have a
    // share of its weight: of weight zero, they would turn infinity into NaN.
    const std::int64_t first_stage =
        row / kRowsOfBlock * S::channel_blocks(problem) * S::padded_taps(problem);
    const int in_block = static_cast<int>(row % kRowsOfBlock);
    constexpr int kPart = S::kBlockChannels * kRowsOfBlock, kVectors = S::kBlockChannels / kVector;
    const int filling = padded_taps - taps;
    const int vectors = S::channel_blocks(problem) * kVectors;
    TapWalk walk(thread, padded_taps);
#pragma unroll 2
    for (int i = thread; i < vectors * padded_taps; i += threads) {
        const int tap = walk.tap, vector = walk.outer;
        walk.advance();
        const int halvings = tap == 0 ? filling : tap < taps ? 0 : tap - taps + 1;
        const float factor = scale / static_cast<float>(1 << halvings);
        const int place = shared.places[tap < taps ? tap : 0];
        float values[kVector];
#pragma unroll
        for (int c = 0; c < kVector; ++c) {
            values[c] = factor * filter.weight_at(vector * kVector + c, place);
        }
        const std::int64_t stage =
            first_stage + std::int64_t{vector / kVectors} * S::padded_taps(problem) + tap;
        auto* to = reinterpret_cast<Vector<Operand, kVector>*>(
            packed + stage * S::kParts * kPart +
            (vector % kVectors * kRowsOfBlock + in_block) * kVector);
        write_parts<S::kParts, true, Side::kFilters>(values, to, kPart / kVector);
    }
}

}  // namespace convsmith::implicit_gemm
