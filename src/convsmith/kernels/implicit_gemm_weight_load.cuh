// Rows of dy and of x on their way to shared memory, as 16-bit operands.
//
// A loading warp has every kLoadingWarps-th slice of a row, of kVector channels. It has the copy
// engine bring the rows of such a slice as they are, several slices ahead, whatever row or line
// those belong to, and when they have arrived it turns them around: a lane takes a pixel, reads
// its channels, rounds or splits them, and writes a vector.
//
// float32 values are scaled to the range of 16 bits by a power of two, one of x and one of dy, that
// all loading threads keep for as long as it suits; a row that it does not suit they take over
// again. Once some values were large, those that follow get no scale that is so much larger that it
// would drive the sums beyond float32's range.
#pragma once

#include "implicit_gemm_weight_problem.cuh"
#include "ptx/load.cuh"
#include "ptx/warpgroup.cuh"

namespace convsmith::implicit_gemm {

template <typename S>
class RowLoader {
  public:
    using T = typename S::Value;
    using Operand = typename S::Operand;
    using Operands = Vector<Operand, kVector>;
    static constexpr int kThreads = kLoadingWarps * 32;

    // One of the two tensors, and which of its channels the block has.
    struct Source {
        const T* channels;  // where the first one lies
        int count, slices;  // channels, from there on, that exist; their slices
    };

    __device__ RowLoader(const WeightProblem& problem, const Job& job, const Tensors& tensors,
                         bool sums_bias, unsigned char* shared, const WeightShared<S>& parts, typename WeightShared<S>::Head& head,
                         int thread)
        : problem_(problem),
          tensors_(tensors),
          parts_(parts),
          head_(head),
          shared_(shared),
          warp_(thread / 32),
          lane_(thread % 32),
          first_row_(job.first_tap / static_cast<int>(problem.kernel_size[1]) *
                         static_cast<int>(problem.dilation[0]) -
                     static_cast<int>(problem.padding[0])),
          sums_bias_(sums_bias),
          line_(problem, job.split),
          oldest_(line_),
          next_line_(line_) {
        const auto block_filters = static_cast<int>(problem.unit_filters) * kRowsOfBlock;
        const auto block_channels = static_cast<int>(problem.unit_channels) * S::kColumns;
        upstream_ =
            source(tensors.of<T>(0), problem.y_strides, problem.y_size, problem.filters, job.group,
                   job.first_filter, block_filters);
        input_ = source(tensors.of<T>(1), problem.x_strides, problem.x_size, problem.channels, job.group,
                        job.first_channel, block_channels);
        loads_ = shared + parts.loads +
                 warp_ * static_cast<int>(problem.loads) * parts.load_bytes;
        biases_ = reinterpret_cast<float*>(shared + parts.biases) + lane_;
        make_tables(thread);
        if (sums_bias) {
            for (int i = warp_; i < block_filters; i += kLoadingWarps) biases_[i * 32] = 0;
        }
        ptx::bar_sync(kBarrier, kThreads);
    }

    // Brings all lines of the split, then writes the sums of dy, of each filter of the block.
    __device__ __forceinline__ void load(float* bias_sums) {
        next_slice_ = warp_;
        skip_rows();
#pragma unroll 1
        for (int i = 0; i < static_cast<int>(problem_.loads); ++i) begin_load(i);
        const auto ring = static_cast<int>(problem_.rows);
        int slot = 0;  // of the next row of x
#pragma unroll 1
        for (; line_.exists(); line_.advance()) {
            const int number = line_.lowest() + static_cast<int>(problem_.span) - line_.fresh();
#pragma unroll 1
            for (int i = 0; i < line_.fresh(); ++i) {
                while (oldest_.lowest() <= number + i - ring) wait_for_oldest();
                const int special = bring<true>(
                    row_of<true>(line_, i), shared_ + parts_.x + slot * parts_.x_bytes, x_scale_);
                if (warp_ == 0 && lane_ == 0) {
                    head_.x_exponents[slot] = x_scale_.exponent;
                    head_.x_specials[slot] = special;
                }
                slot = slot + 1 == ring ? 0 : slot + 1;
            }
            if (waiting_ == static_cast<int>(problem_.lines)) wait_for_oldest();
            bring<false>(row_of<false>(line_, 0),
                         shared_ + parts_.y + stage_.stage * parts_.y_bytes, y_scale_);
            if (warp_ == 0 && lane_ == 0) {
                const int lowest = slot - static_cast<int>(problem_.span);
                head_.rows[stage_.stage] = lowest < 0 ? lowest + ring : lowest;
                head_.y_exponents[stage_.stage] = y_scale_.exponent;
                head_.images[stage_.stage] = line_.image();
                head_.columns[stage_.stage] = line_.column();
            }
            ptx::fence_proxy_async();
            ptx::mbarrier_arrive(head_.full + stage_.stage);
            stage_.advance(static_cast<int>(problem_.lines));
            ++waiting_;
        }
        if (sums_bias_) {
            ptx::bar_sync(kBarrier, kThreads);
            const float* lanes = biases_ - lane_;
            for (int i = warp_ * 32 + lane_; i < upstream_.count; i += kThreads) {
                float sum = 0;
                for (int lane = 0; lane < 32; ++lane) sum += lanes[i * 32 + (lane + i) % 32];
                bias_sums[i] = sum;
            }
        }
    }

  private:
    static constexpr int kBarrier = 1;                 // its number
    static constexpr int kAligned = 16 / sizeof(T);    // elements
    static constexpr int kUsualExponent = 10;          // suits the most usual magnitudes
    static constexpr int kMostRise = 20;

    struct Scale {
        int exponent = S::kScales ? kUsualExponent : 0;
        int least = 127;  // that there was a need for
    };

    // A row of a line: where its columns [begin, end) lie, of the line's first image and the
    // block's first channel. A pixel's column is `first` and what the table has for it.
    struct Row {
        const T* values;
        int first, begin, end;  // none where the row is padding
        int images;             // that exist, of the line's
    };

    __device__ __forceinline__ static Source source(const T* tensor,
                                                    const std::int64_t (&strides)[4],
                                                    const std::int64_t (&size)[2],
                                                    std::int64_t of_group, int group, int first,
                                                    int of_block) {
        const int count = min(static_cast<int>(of_group) - first, of_block);
        return {tensor + (group * of_group + first) * strides[1], count,
                (count + kVector - 1) / kVector};
    }

    // For each pixel: segment and column, in 16 bits each, or -1.
    __device__ __forceinline__ void make_tables(int thread) {
        auto* x = reinterpret_cast<int*>(shared_ + parts_.tables);
        const int pixels = WeightShared<S>::pixels_of_x(problem_);
        const auto row = static_cast<int>(problem_.x_pixels);
        const auto pitch = static_cast<int>(problem_.pitch);
        const auto segments = static_cast<int>(problem_.segments);
        const auto stride = static_cast<int>(problem_.stride[1]);
        for (int i = thread; i < pixels; i += kThreads) {
            const int segment = i % row / pitch, phase = i / row;
            const int column =
                i % row % pitch * stride + phase * static_cast<int>(problem_.dilation[1]) % stride;
            x[i] = segment < segments ? segment << 16 | column : -1;
        }
        for (int i = thread; i < S::kPixels; i += kThreads) {
            const int segment = i / pitch, column = i % pitch;
            const bool exists = segment < segments && column < static_cast<int>(problem_.run_columns);
            x[pixels + i] = exists ? segment << 16 | column : -1;
        }
    }

    // The line's row of dy, or the i-th of its new rows of x.
    template <bool kIsX>
    __device__ __forceinline__ Row row_of(const LineWalk& line, int i) const {
        const Source& source = kIsX ? input_ : upstream_;
        const auto& strides = kIsX ? problem_.x_strides : problem_.y_strides;
        const int image = line.image();
        int h = line.row(), first = line.column();
        int end = min(first + static_cast<int>(problem_.run_columns),
                      static_cast<int>(problem_.y_size[1]));
        bool exists = true;
        if constexpr (kIsX) {
            const auto stride = static_cast<int>(problem_.stride[1]);
            h = h * static_cast<int>(problem_.stride[0]) + first_row_ +
                (static_cast<int>(problem_.span) - line.fresh() + i) *
                    static_cast<int>(problem_.row_step);
            exists = h >= 0 && h < static_cast<int>(problem_.x_size[0]);
            first = first * stride - static_cast<int>(problem_.padding[1]);
            end = min(first + static_cast<int>(problem_.pitch) * stride,
                      static_cast<int>(problem_.x_size[1]));
        }
        const int begin = max(first, 0);
        return {source.channels + image * strides[0] + h * strides[2] + begin, first, begin,
                exists ? end : begin,
                min(static_cast<int>(problem_.images) - image,
                    static_cast<int>(problem_.segments))};
    }

    // Goes over to the next row of which this warp has a slice, if next_slice_ is past the end.
    __device__ __forceinline__ void skip_rows() {
        while (next_line_.exists() &&
               next_slice_ >=
                   (next_row_ < next_line_.fresh() ? input_.slices : upstream_.slices)) {
            next_slice_ = warp_;
            if (next_row_++ == next_line_.fresh()) {
                next_row_ = 0;
                next_line_.advance();
            }
        }
    }

    // Begins to load this warp's next slice.
    __device__ __forceinline__ void begin_load(int stage) {
        if (!next_line_.exists()) return;
        if (next_row_ < next_line_.fresh()) {
            copy_slice<true>(row_of<true>(next_line_, next_row_), stage);
        } else {
            copy_slice<false>(row_of<false>(next_line_, 0), stage);
        }
        next_slice_ += kLoadingWarps;
        skip_rows();
    }

    // Whole pieces of 16 bytes, but for what lies beyond the tensor's ends.
    template <bool kIsX>
    __device__ __forceinline__ void copy_slice(const Row& row, int stage) {
        const Source& source = kIsX ? input_ : upstream_;
        const auto& strides = kIsX ? problem_.x_strides : problem_.y_strides;
        ptx::Barrier* barrier = head_.loaded[warp_] + stage;
        unsigned char* to = loads_ + stage * parts_.load_bytes;
        const auto row_bytes = static_cast<int>(problem_.load_bytes);
        const auto segments = static_cast<int>(problem_.segments);
        int bytes = 0;
        if (row.end > row.begin) {
#pragma unroll 1
            for (int i = lane_; i < kVector * row.images; i += 32) {
                const int c = i % kVector, segment = i / kVector;
                const int channel = next_slice_ * kVector + c;
                if (channel >= source.count) continue;
                const T* from = row.values + segment * strides[0] + channel * strides[1];
                unsigned char* there = to + (c * segments + segment) * row_bytes;
                bytes += copy_row<kIsX>(there, from, row.end - row.begin, barrier);
            }
        }
        ptx::mbarrier_arrive_expect_tx(barrier, bytes);
    }

    template <bool kIsX>
    __device__ __forceinline__ int copy_row(unsigned char* to, const T* from, int count,
                                            ptx::Barrier* barrier) const {
        const auto first = reinterpret_cast<std::uintptr_t>(from);
        const std::uintptr_t floor = first & ~std::uintptr_t{15};
        const std::uintptr_t last = first + static_cast<std::uintptr_t>(count) * sizeof(T);
        std::uintptr_t begin = floor, end = (last + 15) & ~std::uintptr_t{15};
        if (begin < tensors_.begin[kIsX]) begin += 16;
        if (end > tensors_.end[kIsX]) end -= 16;
        if (begin > floor) copy_singly(to, floor, first, min(begin, last));
        if (end < last && end >= floor) copy_singly(to, floor, max(max(end, begin), first), last);
        if (end <= begin) return 0;
        const auto bytes = static_cast<int>(end - begin);
        ptx::cp_async_bulk(to + (begin - floor), reinterpret_cast<const void*>(begin), bytes,
                           barrier);
        return bytes;
    }

    static __device__ __forceinline__ void copy_singly(unsigned char* to, std::uintptr_t floor,
                                                       std::uintptr_t begin, std::uintptr_t end) {
        for (std::uintptr_t at = begin; at < end; at += sizeof(T)) {
            *reinterpret_cast<T*>(to + (at - floor)) = *reinterpret_cast<const T*>(at);
        }
    }

    // Returns when the oldest line that is not multiplied yet has been.
    __device__ __forceinline__ void wait_for_oldest() {
        ptx::mbarrier_wait(head_.empty + done_.stage, done_.parity);
        done_.advance(static_cast<int>(problem_.lines));
        oldest_.advance();
        --waiting_;
    }

    // Writes a row's operands; whether there is infinity or NaN.
    template <bool kIsX>
    __device__ __forceinline__ int bring(const Row& row, unsigned char* to, Scale& scale) {
        const Source& source = kIsX ? input_ : upstream_;
        const auto& strides = kIsX ? problem_.x_strides : problem_.y_strides;
        const int pixels = kIsX ? WeightShared<S>::pixels_of_x(problem_)
                                : S::kPixels;
        const int* table = reinterpret_cast<const int*>(shared_ + parts_.tables) +
                           (kIsX ? 0 : WeightShared<S>::pixels_of_x(problem_));
        auto* vectors = reinterpret_cast<Operands*>(to);
        const float factor = power_of_two(scale.exponent);
        const auto segments = static_cast<int>(problem_.segments);
        const auto row_values = static_cast<int>(problem_.load_bytes / sizeof(T));
        const auto between = static_cast<int>(strides[1]);
        const auto aligned_at =
            static_cast<int>(reinterpret_cast<std::uintptr_t>(row.values) / sizeof(T));
        float largest = 0;
#pragma unroll 1
        for (int slice = warp_; slice < source.slices; slice += kLoadingWarps) {
            ptx::mbarrier_wait(head_.loaded[warp_] + load_.stage, load_.parity);
            const auto* loaded =
                reinterpret_cast<const T*>(loads_ + load_.stage * parts_.load_bytes);
            const int count = source.count - slice * kVector;
            float sums[kVector] = {};
#pragma unroll 2
            for (int pixel = lane_; pixel < pixels; pixel += 32) {
                const int entry = table[pixel];
                const int segment = entry >> 16, column = row.first + (entry & 0xffff);
                const bool exists = entry >= 0 && segment < row.images && column >= row.begin &&
                                    column < row.end;
                const T* from = loaded + segment * row_values + column - row.begin;
                int shift = aligned_at + segment * static_cast<int>(strides[0]);
                T values[kVector];
#pragma unroll
                for (int c = 0; c < kVector; ++c) {
                    values[c] = Element<T>::narrow(0);
                    if (exists && c < count) values[c] = from[shift & (kAligned - 1)];
                    from += segments * row_values;
                    shift += between;
                }
                convert<kIsX>(values, factor, vectors + slice * pixels + pixel);
                largest = fmaxf(largest, largest_of(values));
                if constexpr (!kIsX) {
#pragma unroll
                    for (int c = 0; c < kVector; ++c) sums[c] += widened(values[c]);
                }
            }
            if constexpr (!kIsX) {
                if (sums_bias_) {
#pragma unroll
                    for (int c = 0; c < kVector; ++c) {
                        biases_[(slice * kVector + c) * 32] += sums[c];
                    }
                }
            }
            ptx::warp_sync();
            begin_load(load_.stage);
            load_.advance(static_cast<int>(problem_.loads));
        }
        return agree<kIsX>(row, vectors, pixels, table, scale, magnitude_bits(largest));
    }

    // Takes the row over with another scale if that does not suit it; whether it has infinity or
    // NaN.
    template <bool kIsX>
    __device__ __forceinline__ int agree(const Row& row, Operands* vectors, int pixels,
                                         const int* table, Scale& scale, unsigned bits) {
        if constexpr (!S::kScales && !kIsX) return 0;
        bits = largest_of_all(bits);
        const bool special = bits >= kInfinityBits;
        if constexpr (S::kScales) {
            if (special) {
                float finite = 0;
                visit<kIsX>(row, pixels, table, [&](const T(&values)[kVector], int) {
                    for (const T value : values) {
                        const float magnitude = fabsf(widened(value));
                        if (magnitude_bits(magnitude) < kInfinityBits) {
                            finite = fmaxf(finite, magnitude);
                        }
                    }
                });
                bits = largest_of_all(magnitude_bits(finite));
            }
            if (bits == 0) return special;
            const int exponent = static_cast<int>(bits >> 23) - 127;
            const int wanted = min(min(max(14 - exponent, -126), 127), scale.least + kMostRise);
            // With the present scale, the largest is in [2**8, 2**15), or need not be.
            if (wanted < scale.exponent || wanted > scale.exponent + 6) {
                scale.exponent = wanted;
                const float factor = power_of_two(wanted);
                visit<kIsX>(row, pixels, table, [&](const T(&values)[kVector], int vector) {
                    convert<kIsX>(values, factor, vectors + vector);
                });
            }
            scale.least = min(scale.least, scale.exponent);
        }
        return special;
    }

    // Reads this warp's slices of a row once more.
    template <bool kIsX, typename Visitor>
    __device__ __forceinline__ void visit(const Row& row, int pixels, const int* table,
                                          const Visitor& visitor) const {
        const Source& source = kIsX ? input_ : upstream_;
        const auto& strides = kIsX ? problem_.x_strides : problem_.y_strides;
#pragma unroll 1
        for (int slice = warp_; slice < source.slices; slice += kLoadingWarps) {
#pragma unroll 1
            for (int pixel = lane_; pixel < pixels; pixel += 32) {
                const int entry = table[pixel];
                const int segment = entry >> 16, column = row.first + (entry & 0xffff);
                const bool exists = entry >= 0 && segment < row.images && column >= row.begin &&
                                    column < row.end;
                const T* from = row.values + segment * strides[0] +
                                slice * kVector * strides[1] + column - row.begin;
                T values[kVector];
#pragma unroll
                for (int c = 0; c < kVector; ++c) {
                    values[c] = ptx::load_if(exists && slice * kVector + c < source.count, from,
                                             Element<T>::narrow(0));
                    from += strides[1];
                }
                visitor(values, slice * pixels + pixel);
            }
        }
    }

    static __device__ __forceinline__ float widened(T value) {
        return static_cast<float>(Element<T>::widen(value));
    }

    static __device__ __forceinline__ float largest_of(const T (&values)[kVector]) {
        float largest = 0;
        // (fmaxf passes over NaN, and magnitude_bits has to see it.)
        float sum = 0;
#pragma unroll
        for (int c = 0; c < kVector; ++c) {
            const float magnitude = fabsf(widened(values[c]));
            largest = fmaxf(largest, magnitude);
            sum += magnitude;
        }
        return sum <= __builtin_huge_valf() ? largest : __builtin_huge_valf();
    }

    template <bool kIsX>
    __device__ __forceinline__ void convert(const T (&values)[kVector], float factor,
                                            Operands* to) const {
        Operands high, low;
#pragma unroll
        for (int c = 0; c < kVector; ++c) {
            if constexpr (!S::kScales) {
                high.values[c] = values[c];
            } else if constexpr (S::kParts == 2) {
                split(factor * values[c], high.values[c], low.values[c]);
            } else {
                high.values[c] = Element<Operand>::narrow(factor * values[c]);
            }
        }
        to[0] = high;
        if constexpr (S::kParts == 2) to[kIsX ? parts_.x_vectors : parts_.y_vectors] = low;
    }

    __device__ __forceinline__ unsigned largest_of_all(unsigned largest) {
        largest = ptx::reduce_max(largest);
        unsigned* each = head_.largest[turn_];
        turn_ ^= 1;
        if (lane_ == 0) each[warp_] = largest;
        ptx::bar_sync(kBarrier, kThreads);
#pragma unroll
        for (int i = 0; i < kLoadingWarps; ++i) largest = max(largest, each[i]);
        return largest;
    }

    const WeightProblem& problem_;
    const Tensors& tensors_;
    const WeightShared<S>& parts_;
    typename WeightShared<S>::Head& head_;
    unsigned char *shared_, *loads_;
    float* biases_;  // every 32nd from here on is this lane's
    int warp_, lane_, first_row_, turn_ = 0;
    bool sums_bias_;
    Source upstream_, input_;
    Scale x_scale_, y_scale_;
    LineWalk line_;      // that is brought
    Ring stage_, load_;  // of lines, and of this warp's loads
    // The oldest line that is not multiplied yet, and how many there are.
    LineWalk oldest_;
    Ring done_;
    int waiting_ = 0;
    // What is to be loaded next.
    LineWalk next_line_;
    int next_row_ = 0, next_slice_ = 0;
};

}  // namespace convsmith::implicit_gemm
