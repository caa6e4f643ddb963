// Weights as the tensor cores read them: 16-bit, scaled for each filter, in blocks of kRowsOfBlock
// filters and S::kBlockChannels channels,
//   [group][filter block][channel block][tap][high, low][channels / kVector][filter][kVector]
// with zeros where filters or channels are missing, followed by what undoes each filter's scale.
#pragma once

#include "implicit_gemm_phases.cuh"
#include "ptx/grid_dependency.cuh"
#include "ptx/reduce.cuh"

namespace convsmith::implicit_gemm {

// The power of two that brings a largest magnitude, given as float bits, to [2**14, 2**15); 1 for
// what is zero, infinite or not a number.
__device__ __forceinline__ float scale_for(unsigned largest) {
    const int exponent = static_cast<int>(largest >> 23);
    if (largest == 0 || exponent == 255) return 1.0f;
    const int wanted = min(max(127 + 127 + 14 - exponent, 1), 254);
#ifdef CONVSMITH_SIMULATOR
    return simulator::bits_of<float>(static_cast<unsigned>(wanted) << 23);
#else
    return __uint_as_float(static_cast<unsigned>(wanted) << 23);
#endif
}

// Magnitude as an integer that orders like it.
__device__ __forceinline__ unsigned magnitude_bits(float value) {
#ifdef CONVSMITH_SIMULATOR
    return simulator::bits_of<unsigned>(value) & 0x7fffffffu;
#else
    return __float_as_uint(value) & 0x7fffffffu;
#endif
}

inline constexpr unsigned kInfinityBits = 0x7f800000u;

// High and low parts of a scaled value. What is not finite is all in the low part, which meets the
// other operand's high part alone: its low part may have the other sign.
template <typename Operand>
__device__ __forceinline__ void split(float value, Operand& high, Operand& low) {
    constexpr float kInfinity = __builtin_huge_valf();
    high = Element<Operand>::narrow(fabsf(value) < kInfinity ? value : 0.0f);
    low = Element<Operand>::narrow(value - Element<Operand>::widen(high));
}

inline constexpr int kPackThreads = 128;

// A block packs one filter.
template <typename S>
__global__ void __launch_bounds__(kPackThreads)
    pack(const Problem problem, const typename S::Value* __restrict__ weight,
         typename S::Operand* __restrict__ packed, float* __restrict__ unscale) {
    using Operand = typename S::Operand;
    ptx::griddepcontrol_launch_dependents();  // they load patches meanwhile
    const int thread = static_cast<int>(threadIdx.x);
    const std::int64_t row = blockIdx.x;  // of padded filters
    const std::int64_t padded = filter_blocks<S>(problem) * std::int64_t{S::kFilters};
    const std::int64_t group = row / padded, filter = row % padded;
    std::int64_t of_group = filter;  // of the weights' filters
    bool exists = filter < problem.filters;
    TapRows rows{0, static_cast<int>(problem.kernel_size[0])};
    PhaseFilter phases{};
    if constexpr (S::kInterleaves) {
        phases = phase_filter(problem, static_cast<int>(filter));
        of_group = phases.channel;
        exists = phases.exists;
        rows = tap_rows(problem, phases.phase[0]);
    }
    const int taps = S::taps(problem, rows.count),
              padded_taps = S::padded_taps(problem, rows.count);
    const int channels = exists ? S::channels(problem) : 0;
    const auto* strides = problem.weight_strides;
    const auto* from = weight + problem.first_weight + group * strides[0] + of_group * strides[1];
    const auto value_of = [&](int channel, int tap) {
        if (channel >= channels) return 0.0f;
        const int s = static_cast<int>(problem.kernel_size[1]);
        if constexpr (S::kUnfolds) {
            const int run = channel / kVector, runs = S::runs(problem);
            const int column =
                run % runs * kVector + channel % kVector - static_cast<int>(problem.lead);
            if (column < 0 || column >= s) return 0.0f;
            tap = tap * s + column;
            channel = run / runs;
        }
        int row = tap / s, column = tap % s;
        if constexpr (S::kInterleaves) {
            row = filter_index(problem, 0, phases.phase[0], rows.first, row);
            column = filter_index(problem, 1, phases.phase[1], 0, column);
            if (row < 0 || column < 0) return 0.0f;
        }
        return static_cast<float>(Element<typename S::Value>::widen(
            from[channel * strides[2] + row * strides[3] + column * strides[4]]));
    };

    // Find the scale.
    float scale = 1;
    if constexpr (S::kScales) {
        unsigned largest = 0;
#pragma unroll 4
        for (int i = thread; i < channels * taps; i += kPackThreads) {
            const unsigned bits = magnitude_bits(value_of(i / taps, i % taps));
            if (bits < kInfinityBits) largest = max(largest, bits);
        }
        auto* each = shared_memory<unsigned>();
        largest = ptx::reduce_max(largest);
        if (thread % 32 == 0) each[thread / 32] = largest;
        __syncthreads();
#pragma unroll
        for (int i = 0; i < kPackThreads / 32; ++i) largest = max(largest, each[i]);
        scale = scale_for(largest);
    }
    if (thread == 0) unscale[row] = 1 / scale;

    // Write the vectors. Taps that fill the last stage meet what the first one meets, and have a
    // share of its weight: of weight zero, they would turn infinity into NaN.
    const std::int64_t block = row / kRowsOfBlock;
    const int in_block = static_cast<int>(row % kRowsOfBlock);
    constexpr int kPart = S::kBlockChannels * kRowsOfBlock, kVectors = S::kBlockChannels / kVector;
    const int filling = padded_taps - taps;
#pragma unroll 2
    for (int i = thread; i < S::channel_blocks(problem) * kVectors * padded_taps;
         i += kPackThreads) {
        const int tap = i % padded_taps, vector = i / padded_taps;
        const int halvings = tap == 0 ? filling : tap < taps ? 0 : tap - taps + 1;
        const float factor = scale / static_cast<float>(1 << halvings);
        Vector<Operand, kVector> high, low;
#pragma unroll
        for (int c = 0; c < kVector; ++c) {
            const float value = factor * value_of(vector * kVector + c, tap < taps ? tap : 0);
            if constexpr (S::kParts == 2) {
                split(value, high.values[c], low.values[c]);
            } else {
                high.values[c] = Element<Operand>::narrow(value);
            }
        }
        const std::int64_t stage =
            (block * S::channel_blocks(problem) + vector / kVectors) * S::padded_taps(problem) +
            tap;
        auto* to = reinterpret_cast<Vector<Operand, kVector>*>(
            packed + stage * S::kParts * kPart +
            (vector % kVectors * kRowsOfBlock + in_block) * kVector);
        to[0] = high;
        if constexpr (S::kParts == 2) to[kPart / kVector] = low;
    }
}

}  // namespace convsmith::implicit_gemm
