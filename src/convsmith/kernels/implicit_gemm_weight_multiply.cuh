// What a multiplying warpgroup does for the weight gradient: adds up S::kSlots units' products,
// line after line, and hands the sums on to the workspace before they get too long.
#pragma once

#include "implicit_gemm_weight_problem.cuh"
#include "ptx/add.cuh"
#include "ptx/shuffle.cuh"
#include "ptx/warpgroup.cuh"

namespace convsmith::implicit_gemm {

template <typename S>
class WeightMultiplier {
  public:
    using Operand = typename S::Operand;
    using Places = typename WeightShared<S>::Place;
    static constexpr int kValues = S::kColumns / 2;  // of a thread, of a unit

    __device__ WeightMultiplier(const WeightProblem& problem, const WeightShared<S>& parts,
                                unsigned char* shared, typename WeightShared<S>::Head& head,
                                int warpgroup)
        : problem_(problem), parts_(parts), head_(head), shared_(shared), warpgroup_(warpgroup) {
#pragma unroll
        for (int slot = 0; slot < S::kSlots; ++slot) {
            exponents_[slot] = 0;
            clear(sums_[slot]);
        }
    }

    // Adds up so many lines. The sums of unit u are written where [u][value][thread] is.
    __device__ __forceinline__ void multiply(int lines, float* partial) {
        Ring line;
        bool is_first = true;
        int kept = 0;  // lines that are in the sums
#pragma unroll 1
        for (; lines > 0; --lines) {
            ptx::mbarrier_wait(head_.full + line.stage, line.parity);
            int special = 0;
#pragma unroll
            for (int slot = 0; slot < S::kSlots; ++slot) {
                const int row = row_of(slot, line.stage);
                special |= head_.x_specials[row];
                if constexpr (S::kScales) {
                    rescale(slot, head_.y_exponents[line.stage] + head_.x_exponents[row]);
                }
            }
            if (special != 0) {
                add_singly(line.stage);
                ptx::warp_sync();
            } else if constexpr (S::kParts == 1) {
                add_line(line.stage);
            } else {
                add_line_in_parts(line.stage);
            }
            if (threadIdx.x % 32 == 0) ptx::mbarrier_arrive(head_.empty + line.stage);
            line.advance(static_cast<int>(problem_.lines));
            if (++kept < kLinesKept && lines > 1) continue;
            hand_on(partial, is_first);
            is_first = false;
            kept = 0;
        }
    }

  private:
    // Pixels that are added to the same sums. The tensor cores truncate when they add, which is a
    // bias that grows with the length of a sum; where products are added with rounding, they have
    // those of S::kSumPixels at once.
    static constexpr int kKeptPixels = S::kParts == 1 ? 8192 : 1024;
    static constexpr int kLinesKept = kKeptPixels / S::kPixels;

    static __device__ __forceinline__ void clear(float (&sums)[kValues]) {
#pragma unroll
        for (int i = 0; i < kValues; ++i) sums[i] = 0;
    }

    // Writes the sums to memory, or adds them to what is there; and begins anew.
    __device__ __forceinline__ void hand_on(float* partial, bool is_first) {
        const int thread = static_cast<int>(threadIdx.x) % ptx::kWarpgroup;
#pragma unroll
        for (int slot = 0; slot < S::kSlots; ++slot) {
            const int unit = warpgroup_ * S::kSlots + slot;
            if (unit >= Job::units(problem_)) continue;
            const int half = exponents_[slot] / 2;
            const float factors[2] = {power_of_two(-half), power_of_two(half - exponents_[slot])};
            float* to = partial + unit * S::kUnitValues + thread;
#pragma unroll
            for (int i = 0; i < kValues; ++i) {
                const float sum = sums_[slot][i] * factors[0] * factors[1];
                if (is_first) {
                    to[i * ptx::kWarpgroup] = sum;
                } else {
                    ptx::add_to_memory(to + i * ptx::kWarpgroup, sum);
                }
            }
            clear(sums_[slot]);
        }
    }

    // A warpgroup's missing units are its first one again, and are not stored.
    __device__ __forceinline__ const Places& places(int slot) const {
        const int unit = warpgroup_ * S::kSlots + slot;
        return head_.places[unit < Job::units(problem_) ? unit : 0];
    }

    // Place in the ring of the row of x that a unit meets.
    __device__ __forceinline__ int row_of(int slot, int stage) const {
        const int row = head_.rows[stage] + places(slot).row;
        const auto ring = static_cast<int>(problem_.rows);
        return row >= ring ? row - ring : row;
    }

    // The sums are multiplied by the same power of two as the products that follow.
    __device__ __forceinline__ void rescale(int slot, int exponent) {
        if (exponent == exponents_[slot]) return;
        const float factor = power_of_two(exponent - exponents_[slot]);
        exponents_[slot] = exponent;
#pragma unroll
        for (int i = 0; i < kValues; ++i) sums_[slot][i] *= factor;
    }

    // Where the first pixel of this warp's 16 filters is.
    __device__ __forceinline__ const unsigned char* own_filters(int slot, int stage) const {
        const int warp = static_cast<int>(threadIdx.x) / 32 % 4;
        return shared_ + parts_.y + stage * parts_.y_bytes +
               (places(slot).y + warp * (16 / kVector) * S::kPixels) * 16;
    }
    static __device__ __forceinline__ void read_filters(ptx::Fragments& filters,
                                                        const unsigned char* from, int pixel) {
        ptx::ldmatrix_x4_trans(filters, from + pixel * 16, S::kPixels * 16);
    }
    // Where the channels are that the filters meet: the same for all lanes, which the compiler does
    // not see: it would keep each wgmma's in registers of every thread.
    __device__ __forceinline__ std::uint64_t channels(int slot, int stage) const {
        return ptx::matrix_descriptor(
            shared_ + ptx::shared_by_lanes(parts_.x + row_of(slot, stage) * parts_.x_bytes +
                                           places(slot).x * 16),
            kVector * 16, S::template kRowPixels<true> * 16);
    }

    // Filters in registers by channels in shared memory.
    static __device__ __forceinline__ void multiply_by(float (&sums)[kValues],
                                                       const ptx::Fragments& filters,
                                                       std::uint64_t channels, bool accumulates) {
        ptx::wgmma<Operand, S::kColumns, ptx::Major::kMN>(sums, filters, channels, accumulates);
    }

    // Adds a line's products to the sums, as the tensor cores do. Filters come from registers: from
    // shared memory, each unit's products would read them once more, and leave none of its rate to
    // those who load.
    __device__ __forceinline__ void add_line(int stage) {
        constexpr int kKinds = S::kFilterKinds;
        const unsigned char* a[kKinds];
        std::uint64_t b[S::kSlots];
#pragma unroll
        for (int kind = 0; kind < kKinds; ++kind) a[kind] = own_filters(kind, stage);
#pragma unroll
        for (int slot = 0; slot < S::kSlots; ++slot) b[slot] = channels(slot, stage);
        ptx::Fragments fragments[2][kKinds];  // by turns: products go on while others are read
#pragma unroll
        for (int pixel = 0; pixel < S::kPixels; pixel += ptx::kWgmmaTerms) {
            auto& of_pixels = fragments[pixel / ptx::kWgmmaTerms % 2];
#pragma unroll
            for (int kind = 0; kind < kKinds; ++kind) read_filters(of_pixels[kind], a[kind], pixel);
            ptx::wgmma_fence();
#pragma unroll
            for (int slot = 0; slot < S::kSlots; ++slot) {
                multiply_by(sums_[slot], of_pixels[S::kSharesFilters ? 0 : slot],
                            ptx::moved(b[slot], pixel), true);
            }
            ptx::wgmma_commit_group();
            ptx::wgmma_wait_group<1>();
        }
        ptx::wgmma_wait_group<0>();
    }

    // The same with split operands: the tensor cores' sums are of S::kSumPixels.
    __device__ __forceinline__ void add_line_in_parts(int stage) {
        constexpr int kWhole = S::kPixels / S::kSumPixels * S::kSumPixels;
        std::uint64_t b[S::kSlots];
#pragma unroll
        for (int slot = 0; slot < S::kSlots; ++slot) b[slot] = channels(slot, stage);
#pragma unroll 1
        for (int first = 0; first < kWhole; first += S::kSumPixels) {
            add_pixels<S::kSumPixels>(stage, first, b);
        }
        if constexpr (kWhole < S::kPixels) add_pixels<S::kPixels - kWhole>(stage, kWhole, b);
    }

    // Adds kCount pixels' products to the sums with rounding. The tensor cores' sums begin with the
    // low parts' products, which are small.
    template <int kCount>
    __device__ __forceinline__ void add_pixels(int stage, int first,
                                               const std::uint64_t (&b)[S::kSlots]) {
        constexpr int kSteps = kCount / ptx::kWgmmaTerms;
        ptx::Fragments high[kSteps], low[kSteps];
#pragma unroll
        for (int slot = 0; slot < S::kSlots; ++slot) {
            if (slot == 0 || !S::kSharesFilters) {
                const unsigned char* a = own_filters(slot, stage);
#pragma unroll
                for (int step = 0; step < kSteps; ++step) {
                    const int pixel = first + step * ptx::kWgmmaTerms;
                    read_filters(high[step], a, pixel);
                    read_filters(low[step], a, parts_.y_vectors + pixel);
                }
            }
            float products[kValues];
            ptx::wgmma_fence();
#pragma unroll
            for (int step = 0; step < kSteps; ++step) {
                const auto high_b = ptx::moved(b[slot], first + step * ptx::kWgmmaTerms);
                multiply_by(products, high[step], ptx::moved(high_b, parts_.x_vectors), step > 0);
                multiply_by(products, low[step], high_b, true);
            }
#pragma unroll
            for (int step = 0; step < kSteps; ++step) {
                multiply_by(products, high[step],
                            ptx::moved(b[slot], first + step * ptx::kWgmmaTerms), true);
            }
            ptx::wgmma_commit_group();
            ptx::wgmma_wait_group<0>();
#pragma unroll
            for (int i = 0; i < kValues; ++i) sums_[slot][i] += products[i];
        }
    }

    // The same of x with infinity or NaN, which must not meet the zeros that fill a row of dy up.
    __device__ __forceinline__ void add_singly(int stage) {
        const int thread = static_cast<int>(threadIdx.x) % ptx::kWarpgroup;
        constexpr int kXPixels = S::template kRowPixels<true>;
        const int* table = reinterpret_cast<const int*>(shared_ + parts_.tables) + kXPixels;
        const int images = static_cast<int>(problem_.images) - head_.images[stage];
        const int columns = static_cast<int>(problem_.y_size[1]) - head_.columns[stage];
#pragma unroll
        for (int slot = 0; slot < S::kSlots; ++slot) {
            // A thread's values are of two filters, and of two channels of every vector.
            const auto* y = reinterpret_cast<const Operand*>(
                shared_ + parts_.y + stage * parts_.y_bytes +
                (places(slot).y + thread / 32 * 2 * S::kPixels) * 16 + thread % 32 / 4 * 2);
            const auto* x = reinterpret_cast<const Operand*>(shared_ + parts_.x +
                                                             row_of(slot, stage) * parts_.x_bytes +
                                                             places(slot).x * 16 + thread % 4 * 4);
#pragma unroll 1
            for (int pixel = 0; pixel < S::kPixels; ++pixel) {
                const int entry = table[pixel];
                if (entry < 0 || entry >> 16 >= images || (entry & 0xffff) >= columns) continue;
                const Operand* of_y = y + pixel * kVector;
                const float filters[2] = {value_at(of_y, parts_.y_vectors),
                                          value_at(of_y + S::kPixels * kVector, parts_.y_vectors)};
                const Operand* of_x = x + pixel * kVector;
#pragma unroll
                for (int i = 0; i < kValues; i += 4) {
#pragma unroll
                    for (int odd = 0; odd < 2; ++odd) {
                        const float value = value_at(of_x + odd, parts_.x_vectors);
                        sums_[slot][i + odd] += filters[0] * value;
                        sums_[slot][i + 2 + odd] += filters[1] * value;
                    }
                    of_x += kXPixels * kVector;
                }
            }
        }
    }

    static __device__ __forceinline__ float value_at(const Operand* from, int low) {
        const float value = Element<Operand>::widen(from[0]);
        if constexpr (S::kParts == 1) return value;
        return value + Element<Operand>::widen(from[low * kVector]);
    }

    const WeightProblem& problem_;
    const WeightShared<S>& parts_;
    typename WeightShared<S>::Head& head_;
    unsigned char* shared_;
    int warpgroup_;
    int exponents_[S::kSlots];
    float sums_[S::kSlots][kValues];
};

}  // namespace convsmith::implicit_gemm
