// How the values of a patch become operands, with a scale that suits them.
//
// float32 values are scaled to the range of 16 bits by a power of two. All loading threads keep one
// scale for as long as it suits; where a patch does not suit it, they take it over again.
#pragma once

#include "implicit_gemm_pack.cuh"
#include "ptx/reduce.cuh"
#include "ptx/warpgroup.cuh"

namespace convsmith::implicit_gemm {

// A patch's operands lie as [high, low][channels / kVector][pixel][kVector].
template <typename S>
class PatchWriter {
  public:
    using T = typename S::Value;
    using Operand = typename S::Operand;
    using Vectors = Vector<Operand, kVector>;

    __device__ PatchWriter(const Problem& problem, unsigned char* shared,
                           typename Shared<S>::Head& head, int thread)
        : head_(head),
          patches_(shared + Shared<S>(problem).patches),
          stages_(static_cast<int>(problem.patch_stages)),
          patch_bytes_(S::patch_bytes(problem)),
          low_(S::kVectors * S::patch_pixels(problem)),
          thread_(thread) {}

    // Waits for room; where the next patch's operands belong.
    __device__ __forceinline__ Vectors* begin() {
        ptx::mbarrier_wait(head_.patch_empty + patch_.stage, patch_.parity ^ 1);
        largest_ = 0;
        return reinterpret_cast<Vectors*>(patches_ + patch_.stage * patch_bytes_);
    }

    // Writes a vector, and remembers its largest magnitude, infinity included.
    __device__ __forceinline__ void write(Vectors* to, const T (&values)[kVector]) {
        convert(to, values);
        if constexpr (S::kScales) largest_ = fmaxf(largest_, largest_of(values));
    }

    // Hands the patch over. Where the scale does not suit it, it is written anew before:
    // `revisit(visitor)` calls the visitor with each vector's place and its values once more.
    template <typename Revisit>
    __device__ __forceinline__ void end(const Revisit& revisit) {
        if constexpr (S::kScales) {
            const unsigned bits = largest_of_all(magnitude_bits(largest_));
            if (!suits(bits)) take_over(bits, revisit);
            if (thread_ == 0) head_.scales[patch_.stage] = scale_;
        }
        ptx::fence_proxy_async();
        ptx::mbarrier_arrive(head_.patch_full + patch_.stage);
        patch_.advance(stages_);
    }

  private:
    static __device__ __forceinline__ float largest_of(const T (&values)[kVector]) {
        float pairs[kVector / 2];
#pragma unroll
        for (int c = 0; c < kVector; c += 2) {
            pairs[c / 2] = fmaxf(fabsf(values[c]), fabsf(values[c + 1]));
        }
        return fmaxf(fmaxf(pairs[0], pairs[1]), fmaxf(pairs[2], pairs[3]));
    }

    __device__ __forceinline__ void convert(Vectors* to, const T (&values)[kVector]) const {
        Vectors high, low;
#pragma unroll
        for (int c = 0; c < kVector; ++c) {
            if constexpr (!S::kScales) {
                high.values[c] = values[c];
            } else if constexpr (S::kParts == 2) {
                split(scale_ * values[c], high.values[c], low.values[c]);
            } else {
                high.values[c] = Element<Operand>::narrow(scale_ * values[c]);
            }
        }
        to[0] = high;
        if constexpr (S::kParts == 2) to[low_] = low;
    }

    // Writes a patch anew, with a scale that suits it.
    template <typename Revisit>
    __device__ __forceinline__ void take_over(unsigned largest, const Revisit& revisit) {
        if (largest >= kInfinityBits) {
            float finite = 0;
            revisit([&](Vectors*, const T(&values)[kVector]) {
                for (const T value : values) {
                    const float magnitude = fabsf(static_cast<float>(value));
                    if (magnitude_bits(magnitude) < kInfinityBits) {
                        finite = fmaxf(finite, magnitude);
                    }
                }
            });
            largest = largest_of_all(magnitude_bits(finite));
            if (suits(largest)) return;
        }
        scale_ = scale_for(largest);
        revisit([&](Vectors* to, const T(&values)[kVector]) { convert(to, values); });
    }

    __device__ __forceinline__ unsigned largest_of_all(unsigned largest) {
        largest = ptx::reduce_max(largest);
        unsigned* each = head_.largest[turn_];
        turn_ ^= 1;
        if (thread_ % 32 == 0) each[thread_ / 32] = largest;
        ptx::bar_sync(kLoadersBarrier, S::kLoadingThreads);
#pragma unroll
        for (int i = 0; i < S::kLoadingWarps; ++i) largest = max(largest, each[i]);
        return largest;
    }

    // Whether the scale keeps a patch within 16 bits' range, and uses enough of it.
    __device__ __forceinline__ bool suits(unsigned largest) const {
        const unsigned scaled = magnitude_bits(scale_ * ptx::float_of_bits(largest));
        constexpr unsigned kLeast = (127u + 8) << 23, kMost = (127u + 15) << 23;  // 2**8, 2**15
        return largest == 0 || (scaled >= kLeast && scaled < kMost);
    }

    typename Shared<S>::Head& head_;
    unsigned char* patches_;
    int stages_, patch_bytes_;
    int low_;  // from a vector to that of its low parts
    int thread_, turn_ = 0;
    float scale_ = 1024;  // suits the most usual magnitudes
    float largest_ = 0;
    Ring patch_;
};

}  // namespace convsmith::implicit_gemm
