// What a consumer warpgroup does: multiplies the weights of kRowsOfBlock filters with kHalf
// pixels of a patch, or two halves of as many each, tap after tap.
#pragma once

#include "compensated.cuh"
#include "implicit_gemm_phases.cuh"

namespace convsmith::implicit_gemm {

template <typename S>
class Multiplier {
  public:
    using Operand = typename S::Operand;
    static constexpr int kValues = kHalf / 2;  // of a thread, in each half
    float sums[S::kHalves][kValues];

    __device__ Multiplier(const Problem& problem, unsigned char* shared,
                          typename Shared<S>::Head& head, int warpgroup)
        : problem_(problem), head_(head), ring_of_weights_(S::kSplitsFilters ? warpgroup : 0) {
        const Shared<S> parts(problem);
        patches_ = shared + parts.patches;
        weights_ = shared + parts.weights +
                   ring_of_weights_ * static_cast<int>(problem.weight_stages) * S::kStageBytes;
        pixels_ = S::patch_pixels(problem);
        const int pitch = static_cast<int>(problem.pitch);
        half_shift_ =
            static_cast<int>(problem.half_down) * pitch + static_cast<int>(problem.half_right);
        first_pixel_ = S::kSplitsFilters
                           ? 0
                           : warpgroup * (static_cast<int>(problem.group_down) * pitch +
                                          static_cast<int>(problem.group_right));
        group_bytes_ = 16 * (problem.half_columns == 8 ? pitch : 8);
    }

    // The sums of a tile, each over all channels and taps, still to be multiplied by what undoes
    // the filters' scales.
    __device__ __forceinline__ void multiply(const Taps& taps) {
#pragma unroll
        for (int half = 0; half < S::kHalves; ++half) {
#pragma unroll
            for (int i = 0; i < kValues; ++i) sums[half][i] = 0;
        }
        if (S::kInterleaves && taps.count == 0) return;
        int blocks = S::channel_blocks(problem_);
        if constexpr (S::kProducts == 1) {
            // Patches of one scale follow one another; where it changes, the sums change with it.
            float scale = next_scale();
#pragma unroll 1
            for (;;) {
                float next;
#pragma unroll 1
                do {
                    add_patch(taps);
                    next = --blocks > 0 ? next_scale() : 1.0f;
                } while (blocks > 0 && next == scale);
                // What would be scaled up by more is still zero.
                multiply_sums(blocks > 0 ? fminf(next / scale, kMostRise) : 1 / scale);
                if (blocks == 0) break;
                scale = next;
            }
        } else if constexpr (S::kCompensates) {
            float lost[kValues] = {};
#pragma unroll 1
            for (; blocks > 0; --blocks) add_patch_compensated(taps, 1 / next_scale(), lost);
#pragma unroll
            for (int i = 0; i < kValues; ++i) {
                // Where nothing was lost, as of small integers, nothing was cut off either.
                if (lost[i] != 0) sums[0][i] += lost[i] + kCutOff * sums[0][i];
            }
        } else {
#pragma unroll 1
            for (; blocks > 0; --blocks) add_patch_in_parts(taps, 1 / next_scale());
        }
    }

  private:
    // Of split operands: 16 channels of a tap are a term here, and so many of them a sum of the
    // tensor cores, which they truncate with each term; and the share of it that is cut off, in the
    // mean.
    static constexpr int kStageTerms = S::kStageTaps * S::kSteps, kSumTerms = S::kSumTerms;
    static constexpr float kCutOff = 0.74f * 0x1p-24f * kSumTerms;
    // Stages whose sums are added before what is lost is kept.
    static constexpr int kStagesAtOnce = kStageTerms == 1 ? 1 : S::kHasResidues ? 2 : 4;

    __device__ __forceinline__ void multiply_sums(float factor) {
#pragma unroll
        for (int half = 0; half < S::kHalves; ++half) {
#pragma unroll
            for (int i = 0; i < kValues; ++i) sums[half][i] *= factor;
        }
    }

    __device__ __forceinline__ std::uint64_t pixels_of(int half) const {
        return ptx::matrix_descriptor(patches_ + patch_.stage * S::patch_bytes(problem_) +
                                          (first_pixel_ + half * half_shift_) * 16,
                                      pixels_ * 16, group_bytes_);
    }

    // Waits for the next patch; what its values have been multiplied by.
    __device__ __forceinline__ float next_scale() const {
        ptx::mbarrier_wait(head_.patch_full + patch_.stage, patch_.parity);
        return S::kScales ? head_.scales[patch_.stage] : 1.0f;
    }

    // Waits for the next stage of weights.
    __device__ __forceinline__ std::uint64_t filters() const {
        const int parity = problem_.weights_stay ? 0 : weight_.parity;
        ptx::mbarrier_wait(head_.weights_full[ring_of_weights_] + weight_.stage, parity);
        return ptx::matrix_descriptor(weights_ + weight_.stage * S::kStageBytes, kRowsOfBlock * 16,
                                      128);
    }

    // Adds the products of a patch to the sums, as the tensor cores do.
    __device__ __forceinline__ void add_patch(const Taps& taps) {
        int done = -1;  // the stage of weights whose products may still be on their way
#pragma unroll 1
        for (int tap = taps.first; tap < taps.first + taps.count; tap += S::kStageTaps) {
            const std::uint64_t a = filters();
            ptx::wgmma_fence();
#pragma unroll
            for (int half = 0; half < S::kHalves; ++half) {
#pragma unroll
                for (int t = 0; t < S::kStageTaps; ++t) {
                    const int shift = head_.tap_shifts[tap + t];
#pragma unroll
                    for (int step = 0; step < S::kSteps; ++step) {
                        ptx::wgmma<Operand, kHalf>(
                            sums[half], ptx::moved(a, t * kTapVectors + filters_at(step)),
                            ptx::moved(pixels_of(half), shift + pixels_at(step)), true);
                    }
                }
            }
            ptx::wgmma_commit_group();
            ptx::wgmma_wait_group<1>();
            if (done >= 0) release_weights(done);
            done = weight_.stage;
            weight_.advance(static_cast<int>(problem_.weight_stages));
        }
        ptx::wgmma_wait_group<0>();
        release_weights(done);
        release_patch();
    }

    // The same with split operands. The tensor cores truncate when they add to a sum, so theirs are
    // short, and are added to the sums with rounding.
    __device__ __forceinline__ void add_patch_in_parts(const Taps& taps, float unscale) {
#pragma unroll 1
        for (int tap = taps.first; tap < taps.first + taps.count; tap += S::kStageTaps) {
            const std::uint64_t a = filters();
#pragma unroll
            for (int half = 0; half < S::kHalves; ++half) {
#pragma unroll
                for (int term = 0; term < kStageTerms; term += kSumTerms) {
                    float products[kValues];
                    begin_products(products, a, tap, half, term);
                    ptx::wgmma_wait_group<0>();
#pragma unroll
                    for (int i = 0; i < kValues; ++i) sums[half][i] += unscale * products[i];
                }
            }
            release_weights(weight_.stage);
            weight_.advance(static_cast<int>(problem_.weight_stages));
        }
        release_patch();
    }

    // The same with sums that err least: what is lost when those of some stages are added is kept.
    __device__ __forceinline__ void add_patch_compensated(const Taps& taps, float unscale,
                                                          float (&lost)[kValues]) {
        const int end = taps.first + taps.count;
        int added = 0;  // stages, to what was lost
#pragma unroll 1
        for (int tap = taps.first; tap < end; tap += S::kStageTaps) {
            const std::uint64_t a = filters();
#pragma unroll
            for (int term = 0; term < kStageTerms; term += kSumTerms) {
                float products[kValues];
                begin_products(products, a, tap, 0, term);
                ptx::wgmma_wait_group<0>();
                if (term + kSumTerms == kStageTerms) release_weights(weight_.stage);
#pragma unroll
                for (int i = 0; i < kValues; ++i) lost[i] += unscale * products[i];
            }
            weight_.advance(static_cast<int>(problem_.weight_stages));
            if (++added < kStagesAtOnce && tap + S::kStageTaps < end) continue;
            added = 0;
#pragma unroll
            for (int i = 0; i < kValues; ++i) add_compensated(sums[0][i], lost[i]);
        }
        release_patch();
    }

    // Begins the products of a stage's terms from `first` on, which the tensor cores sum up, the
    // small ones first.
    __device__ __forceinline__ void begin_products(float (&products)[kValues], std::uint64_t stage,
                                                   int first_tap, int half, int first) const {
        // Which parts of a filter and of a pixel are multiplied.
        struct Pair {
            int filter, pixel;
        };
        constexpr Pair kPairs[] = {{2, 2}, {1, 1}, {0, 1}, {1, 0}, {0, 0}};  // residues, and parts
        constexpr int kFirst = 5 - S::kProducts;
        ptx::wgmma_fence();
#pragma unroll
        for (int pair = kFirst; pair < 5; ++pair) {
#pragma unroll
            for (int i = first; i < first + kSumTerms; ++i) {
                const int t = i / S::kSteps, step = i % S::kSteps;
                const int shift = head_.tap_shifts[first_tap + t];
                const auto [filter, pixel] = kPairs[pair];
                const auto a =
                    ptx::moved(stage, t * kTapVectors + filters_at(filter * S::kSteps + step));
                const auto b =
                    ptx::moved(pixels_of(half), shift + pixels_at(pixel * S::kSteps + step));
                const bool accumulates = pair != kFirst || i != first;
                if (pair == 0) {
                    ptx::wgmma_e5m2<kHalf>(products, a, b, accumulates);
                } else {
                    ptx::wgmma<Operand, kHalf>(products, a, b, accumulates);
                }
            }
        }
        ptx::wgmma_commit_group();
    }

    __device__ __forceinline__ void release_patch() {
        release(head_.patch_empty + patch_.stage);
        patch_.advance(static_cast<int>(problem_.patch_stages));
    }

    static constexpr int kTapVectors = S::kTapBytes / 16;

    // From an operand's start to the channels of a later wgmma, in 16 bytes; a part's follow the
    // last ones of the part before it.
    static __device__ __forceinline__ constexpr int filters_at(int step) {
        return step * (ptx::kWgmmaTerms / kVector) * kRowsOfBlock;
    }
    __device__ __forceinline__ int pixels_at(int step) const {
        return step * (ptx::kWgmmaTerms / kVector) * pixels_;
    }

    __device__ __forceinline__ void release_weights(int stage) const {
        if (!problem_.weights_stay) release(head_.weights_empty[ring_of_weights_] + stage);
    }

    static __device__ __forceinline__ void release(ptx::Barrier* barrier) {
        if (threadIdx.x % 32 == 0) ptx::mbarrier_arrive(barrier);
    }

    const Problem& problem_;
    typename Shared<S>::Head& head_;
    unsigned char *patches_, *weights_;
    int ring_of_weights_, pixels_, half_shift_, first_pixel_, group_bytes_;
    Ring patch_, weight_;
};

}  // namespace convsmith::implicit_gemm
