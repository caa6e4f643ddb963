// Weights as the tensor cores read them: 16-bit, scaled for each filter, in blocks of kRowsOfBlock
// filters and S::kBlockChannels channels,
//   [group][filter block][channel block][tap][high, low][channels / kVector][filter][kVector]
// with zeros where filters or channels are missing, followed by what undoes each filter's scale.
#pragma once

#include "implicit_gemm_problem.cuh"
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

// A warp packs one filter.
template <typename S>
__global__ void pack(const Problem problem, const typename S::Value* __restrict__ weight,
                     typename S::Operand* __restrict__ packed, float* __restrict__ unscale) {
    using Operand = typename S::Operand;
    constexpr int kWarp = 32;
    const int lane = static_cast<int>(threadIdx.x) % kWarp;
    const std::int64_t row =
        (std::int64_t{blockIdx.x} * blockDim.x + threadIdx.x) / kWarp;  // of padded filters
    const std::int64_t padded = filter_blocks<S>(problem) * std::int64_t{S::kFilters};
    if (row >= problem.groups * padded) return;
    const std::int64_t group = row / padded, filter = row % padded;
    const bool exists = filter < problem.filters;
    const int taps = S::taps(problem), padded_taps = S::padded_taps(problem);
    const int blocks = S::channel_blocks(problem);
    const auto* strides = problem.weight_strides;
    const auto* from = weight + problem.first_weight + group * strides[0] + filter * strides[1];
    const auto value_of = [&](int channel, int tap) {
        if (!exists || channel >= S::channels(problem) || tap >= taps) return 0.0f;
        const int s = static_cast<int>(problem.kernel_size[1]);
        if constexpr (S::kUnfolds) {
            const int all_taps = static_cast<int>(problem.kernel_size[0]) * s;
            tap = channel % all_taps;
            channel /= all_taps;
        }
        return static_cast<float>(Element<typename S::Value>::widen(
            from[channel * strides[2] + tap / s * strides[3] + tap % s * strides[4]]));
    };

    float scale = 1;
    if constexpr (S::kScales) {
        unsigned largest = 0;
        for (int i = lane; i < S::channels(problem) * taps; i += kWarp) {
            const unsigned bits = magnitude_bits(value_of(i / taps, i % taps));
            if (bits < kInfinityBits) largest = max(largest, bits);
        }
        scale = scale_for(ptx::reduce_max(largest));
    }
    if (lane == 0) unscale[row] = 1 / scale;

    const std::int64_t block = row / kRowsOfBlock;
    const int in_block = static_cast<int>(row % kRowsOfBlock);
    constexpr int kPart = S::kBlockChannels * kRowsOfBlock;
    for (int i = lane; i < blocks * padded_taps * S::kBlockChannels; i += kWarp) {
        const int channel = i % S::kBlockChannels, tap = i / S::kBlockChannels % padded_taps;
        const int channel_block = i / S::kBlockChannels / padded_taps;
        const float value = scale * value_of(channel_block * S::kBlockChannels + channel, tap);
        Operand* to = packed +
                      ((block * blocks + channel_block) * padded_taps + tap) * S::kParts * kPart +
                      (channel / kVector * kRowsOfBlock + in_block) * kVector + channel % kVector;
        if constexpr (S::kParts == 2) {
            split(value, to[0], to[kPart]);
        } else {
            to[0] = Element<Operand>::narrow(value);
        }
    }
}

}  // namespace convsmith::implicit_gemm
