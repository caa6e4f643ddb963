// Rows of dy and of x on their way to shared memory, as 16-bit operands.
//
// A loading warp has every S::kLoadingWarps-th slice of the rows, of kVector channels. It copies
// the rows of such a slice as they are, in aligned pieces of 16 bytes, S::kLoads slices ahead,
// whatever row or line those belong to, and when they have arrived it turns them around: a lane
// takes a pixel, reads its channels, rounds or splits them, and writes a vector. Of an unfolded
// slice of x, that is what some of a filter row's taps meet.
//
// float32 values are scaled to the range of 16 bits by a power of two, one of x and one of dy, that
// all loading threads keep for as long as it suits; what they have brought for a line that it does
// not suit they take over again. Once some values were large, those that follow get no scale that
// is so much larger that it would drive the sums beyond float32's range.
#pragma once

#include "implicit_gemm_weight_convert.cuh"
#include "implicit_gemm_weight_copy.cuh"
#include "ptx/load.cuh"
#include "ptx/warpgroup.cuh"

namespace convsmith::implicit_gemm {

template <typename S>
class RowLoader {
  public:
    using T = typename S::Value;
    using Operand = typename S::Operand;
    using Operands = Vector<Operand, kVector>;
    static constexpr int kThreads = S::kLoadingWarps * 32;

    // `thread` is of the loading ones.
    __device__ RowLoader(const WeightProblem& problem, const Job& job, const Tensors& tensors,
                         unsigned char* shared, const WeightShared<S>& parts,
                         typename WeightShared<S>::Head& head, int thread)
        : problem_(problem),
          parts_(parts),
          head_(head),
          shared_(shared),
          warp_(thread / 32),
          lane_(thread % 32),
          first_row_(job.first_tap / static_cast<int>(problem.kernel_size[1]) *
                         static_cast<int>(problem.dilation[0]) -
                     static_cast<int>(problem.padding[0])),
          first_slice_(job.first_channel / kVector),
          sums_bias_(S::kSumsBias && job.has_bias()),
          line_(problem, job.split),
          next_line_(line_) {
        loads_ = shared + parts.loads + warp_ * S::kLoads * S::kSliceBytes;
        biases_ = reinterpret_cast<float*>(shared + parts.biases);
        if (thread == 0) {
            describe(tensors, job);
        }
        make_tables<S>(problem, reinterpret_cast<int*>(shared + parts.tables), thread);
        if (sums_bias_) {
            const auto filters = static_cast<int>(problem.unit_filters) * kRowsOfBlock;
            for (int i = thread; i < filters * 32; i += kThreads) biases_[i] = 0;
        }
        ptx::bar_sync(kBarrier, kThreads);
    }

    // Brings all lines of the split, then writes the sums of dy, of each filter of the block.
    __device__ __forceinline__ void load(float* bias_sums) {
        next_slice_ = slice_ = warp_;
        skip_rows();
#pragma unroll 1
        for (int i = 0; i < S::kLoads; ++i) begin_load(i);
        Scale<S> x_scale, y_scale;
        int slot = 0;  // of the next row of x
#pragma unroll 1
        for (; line_.exists(); line_.advance()) {
            const int fresh = line_.fresh(), first = slot;
            float x_largest = 0, y_largest = 0;
#pragma unroll 1
            for (int i = 0; i < fresh; ++i, slot = next_slot(slot)) {
                make_room_for_x(i);
                bring<true>(row_of<true>(line_, i), place_of<true>(slot), x_scale.exponent,
                            x_largest);
            }
            if (waiting_ == static_cast<int>(problem_.lines)) wait_for_oldest();
            bring<false>(row_of<false>(line_, 0), place_of<false>(slot), y_scale.exponent,
                         y_largest);
            unsigned x_bits = magnitude_bits(x_largest), y_bits = magnitude_bits(y_largest);
            find_largest(x_bits, y_bits);
            if constexpr (S::kScales) {
                agree<true>(first, x_scale, x_bits);
                agree<false>(first, y_scale, y_bits);
            }
            if (lane_ == 0) head_.lowest[stage_.stage][warp_] = line_.lowest();
            if (warp_ == 0 && lane_ == 0) {
                note(first, x_scale.exponent, y_scale.exponent, x_bits >= kInfinityBits);
            }
            ptx::warp_sync();  // for what the first lane has written down
            ptx::fence_proxy_async();
            ptx::mbarrier_arrive(head_.full + stage_.stage);
            stage_.advance(static_cast<int>(problem_.lines));
            ++waiting_;
        }
        if (!S::kSumsBias || !sums_bias_) return;
        ptx::bar_sync(kBarrier, kThreads);
        for (int i = warp_ * 32 + lane_; i < head_.tensors[0].count; i += kThreads) {
            float sum = 0;
            for (int lane = 0; lane < 32; ++lane) sum += biases_[i * 32 + (lane + i) % 32];
            bias_sums[i] = sum;
        }
    }

  private:
    static constexpr int kBarrier = 1;  // its number

    // A row of a line: where its `count` columns lie, of the line's first image and the block's
    // first channel. What the table has for a pixel is a column, from the `before`-th one on.
    struct Row {
        const T* values;
        int before, count;  // none where the row is padding
        int images;         // that exist, of the line's
    };

    // Of an unfolded slice of x: its first channel; columns from what a channel's first tap meets
    // to what the slice's first one does, and from each to the next; and how many taps there are.
    struct Taps {
        int channel, first, step, count;
    };

    // Writes down what is to be known of dy and of x.
    __device__ __forceinline__ void describe(const Tensors& tensors, const Job& job) {
        const auto describe_one = [&](int number, const std::int64_t (&strides)[4],
                                      std::int64_t of_group, int first, int of_block, int table,
                                      int low) {
            auto& tensor = head_.tensors[number];
            tensor.begin = tensors.begin[number];
            tensor.end = tensors.end[number];
            tensor.channels = tensors.begin[number] +
                              (job.group * of_group + first) * strides[1] * std::int64_t{sizeof(T)};
            tensor.of_image = strides[0] * std::int64_t{sizeof(T)};
            tensor.of_channel = strides[1] * std::int64_t{sizeof(T)};
            tensor.of_row = strides[2] * std::int64_t{sizeof(T)};
            tensor.last = (min(static_cast<int>(of_group) - first, of_block) - 1) * strides[1] *
                          std::int64_t{sizeof(T)};
            tensor.count = min(static_cast<int>(of_group) - first, of_block);
            tensor.slices = (tensor.count + kVector - 1) / kVector;
            tensor.table = table;
            tensor.low = low;
        };
        describe_one(0, problem_.y_strides, problem_.filters, job.first_filter,
                     static_cast<int>(problem_.unit_filters) * kRowsOfBlock,
                     S::template kRowPixels<true>, parts_.y_vectors);
        describe_one(1, problem_.x_strides, problem_.channels, job.first_channel,
                     static_cast<int>(problem_.unit_channels) * S::kColumns, 0, parts_.x_vectors);
        if constexpr (S::kUnfolds) {
            // Of which channels the block's slices are, each says itself.
            auto& x = head_.tensors[1];
            x.channels = x.begin;
            x.last = (job.first_channel + x.count - 1) / S::kLanes * x.of_channel;
        }
    }

    // Unfolded, a slice's first channel, and its taps.
    __device__ __forceinline__ int channel_of(int slice) const {
        return (first_slice_ + slice) * kVector / S::kLanes;
    }
    __device__ __forceinline__ Taps taps_of(int slice) const {
        const int tap = (first_slice_ + slice) * kVector % S::kLanes;
        const auto dilation = static_cast<int>(problem_.dilation[1]);
        return {channel_of(slice), tap * dilation, dilation,
                static_cast<int>(problem_.unfolded) - tap};
    }

    // Channels that exist from a slice's first one on.
    template <bool kIsX>
    __device__ __forceinline__ int channels_from(int slice) const {
        if constexpr (S::kUnfolds && kIsX) {
            return static_cast<int>(problem_.channels) / S::kLanes - channel_of(slice);
        }
        return head_.tensors[kIsX].count - slice * kVector;
    }

    // From a row of the block's first channel to a slice's, in bytes.
    template <bool kIsX>
    __device__ __forceinline__ std::int64_t offset_of(int slice) const {
        const std::int64_t of_channel = head_.tensors[kIsX].of_channel;
        if constexpr (S::kUnfolds && kIsX) return channel_of(slice) * of_channel;
        return slice * (kVector * of_channel);
    }

    // The i-th new row of x of a line, or its row of dy.
    template <bool kIsX>
    __device__ __forceinline__ Row row_of(const LineWalk<S>& line, int i) const {
        const auto& tensor = head_.tensors[kIsX];
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
            end = min(first + static_cast<int>(problem_.x_columns),
                      static_cast<int>(problem_.x_size[1]));
        }
        const int begin = max(first, 0);
        const T* values =
            reinterpret_cast<const T*>(tensor.channels + line.image() * tensor.of_image +
                                       h * tensor.of_row) +
            begin;
        return {values, begin - first, exists ? max(end - begin, 0) : 0,
                min(static_cast<int>(problem_.images) - line.image(), S::kSegments)};
    }

    // Goes over to the next row of which this warp has a slice, if next_slice_ is past the end.
    __device__ __forceinline__ void skip_rows() {
        while (next_line_.exists() &&
               next_slice_ >= head_.tensors[next_row_ < next_line_.fresh()].slices) {
            next_slice_ -= head_.tensors[next_row_ < next_line_.fresh()].slices;
            if (next_row_++ == next_line_.fresh()) {
                next_row_ = 0;
                next_line_.advance();
            }
        }
        if (!next_line_.exists()) return;
        if (next_row_ < next_line_.fresh()) {
            begin_row<true>();
        } else {
            begin_row<false>();
        }
    }
    template <bool kIsX>
    __device__ __forceinline__ void begin_row() {
        const auto& tensor = head_.tensors[kIsX];
        const Row row = row_of<kIsX>(next_line_, next_row_);
        const auto begin = reinterpret_cast<std::uintptr_t>(row.values);
        next_begin_ = begin;
        next_bytes_ = row.count * static_cast<int>(sizeof(T));
        next_images_ = row.images;
        const std::uintptr_t last =
            begin + tensor.last + (row.images - 1) * tensor.of_image + next_bytes_;
        next_is_inside_ = Slice<S, kIsX>::floor_of(begin) >= tensor.begin &&
                          Slice<S, kIsX>::floor_of(last + kPieceBytes - 1) <= tensor.end;
    }

    // Begins to copy this warp's next slice.
    __device__ __forceinline__ void begin_load(int stage) {
        if (next_line_.exists()) {
            const bool is_x = next_row_ < next_line_.fresh();
            unsigned char* to = loads_ + stage * S::kSliceBytes;
            if (next_bytes_ > 0) {
                if (is_x) {
                    begin_slice<true>(to);
                } else {
                    begin_slice<false>(to);
                }
            }
            next_slice_ += S::kLoadingWarps;
            if (next_slice_ >= head_.tensors[is_x].slices) skip_rows();
        }
        ptx::cp_async_commit_group();
    }
    template <bool kIsX>
    __device__ __forceinline__ void begin_slice(unsigned char* to) const {
        const auto& tensor = head_.tensors[kIsX];
        const Slice<S, kIsX> slice{next_begin_ + offset_of<kIsX>(next_slice_),
                                   tensor.of_channel,
                                   tensor.of_image,
                                   next_bytes_,
                                   next_images_,
                                   channels_from<kIsX>(next_slice_)};
        slice.copy(to, lane_, next_is_inside_);
    }

    // Returns when the place of the line's i-th new row of x is free.
    __device__ __forceinline__ void make_room_for_x(int i) {
        const int number = line_.lowest() + static_cast<int>(problem_.span) - line_.fresh() + i;
        while (waiting_ > 0 &&
               head_.lowest[done_.stage][warp_] <= number - static_cast<int>(problem_.rows)) {
            wait_for_oldest();
        }
    }

    // Returns when the oldest line that is not multiplied yet has been.
    __device__ __forceinline__ void wait_for_oldest() {
        ptx::mbarrier_wait(head_.empty + done_.stage, done_.parity);
        done_.advance(static_cast<int>(problem_.lines));
        --waiting_;
    }

    __device__ __forceinline__ int next_slot(int slot) const {
        return slot + 1 == static_cast<int>(problem_.rows) ? 0 : slot + 1;
    }

    // Where the line's row of dy is to be, or a row of x of some slot.
    template <bool kIsX>
    __device__ __forceinline__ Operands* place_of(int slot) const {
        return reinterpret_cast<Operands*>(
            shared_ +
            (kIsX ? parts_.x + slot * parts_.x_bytes : parts_.y + stage_.stage * parts_.y_bytes));
    }

    // Writes down what the multiplying warpgroups have to know of the line, and of its new rows of
    // x, from the first one's slot on.
    __device__ __forceinline__ void note(int first, int x_exponent, int y_exponent,
                                         bool x_special) const {
        int slot = first;
        for (int i = 0; i < line_.fresh(); ++i) {
            head_.x_exponents[slot] = x_exponent;
            head_.x_specials[slot] = x_special;
            slot = next_slot(slot);
        }
        const int lowest = slot - static_cast<int>(problem_.span);
        head_.rows[stage_.stage] = lowest < 0 ? lowest + static_cast<int>(problem_.rows) : lowest;
        head_.y_exponents[stage_.stage] = y_exponent;
        head_.images[stage_.stage] = line_.image();
        head_.columns[stage_.stage] = line_.column();
    }

    // Which column of a row a pixel is, if it exists; and of which image.
    struct Pixel {
        int segment, column;
        bool exists;
    };

    template <bool kIsX>
    __device__ __forceinline__ const int* table_of() const {
        return reinterpret_cast<const int*>(shared_ + parts_.tables) + head_.tensors[kIsX].table;
    }

    // Unfolded, which column its channels' first tap meets; each tap's may exist or not.
    template <bool kIsX>
    __device__ __forceinline__ Pixel pixel_of(const Row& row, const int* table, int number) const {
        constexpr bool kIsUnfolded = S::kUnfolds && kIsX;
        const int step = kIsUnfolded ? static_cast<int>(problem_.stride[1]) : 1;
        const int entry = S::kIsPlain ? number * step : table[number];
        const int segment = S::kSideBySide ? entry >> 16 : 0;
        const int column = (S::kSideBySide ? entry & 0xffff : entry) - row.before;
        bool exists =
            kIsUnfolded || static_cast<unsigned>(column) < static_cast<unsigned>(row.count);
        if constexpr (S::kSideBySide) {
            exists = exists && static_cast<unsigned>(segment) < static_cast<unsigned>(row.images);
        }
        return {segment, column, exists};
    }

    // Whether the i-th of an unfolded slice's taps meets an element of x.
    static __device__ __forceinline__ bool meets(const Row& row, const Pixel& pixel,
                                                 const Taps& taps, int i) {
        const int column = pixel.column + taps.first + i * taps.step;
        return pixel.exists && i < taps.count &&
               static_cast<unsigned>(column) < static_cast<unsigned>(row.count);
    }

    // Writes a row's operands; `largest` is this thread's largest magnitude, or infinity or NaN.
    template <bool kIsX>
    __device__ __forceinline__ void bring(const Row& row, Operands* to, int exponent,
                                          float& largest) {
        constexpr int kPixels = S::template kRowPixels<kIsX>;
        const auto& tensor = head_.tensors[kIsX];
        const SliceLayout<S, kIsX> layout(tensor, row.values);
        const float factor = power_of_two(exponent);
        const int slices = tensor.slices;
        auto* vectors = to + slice_ * kPixels + lane_;
        int stage = load_stage_, slice = slice_;
#pragma unroll 1
        for (; slice < slices; slice += S::kLoadingWarps) {
            ptx::cp_async_wait_group<S::kLoads - 1>();
            ptx::warp_sync();
            turn_around<kIsX>(row, layout, factor, slice,
                              reinterpret_cast<const T*>(loads_ + stage * S::kSliceBytes), vectors,
                              largest);
            vectors += S::kLoadingWarps * kPixels;
            ptx::warp_sync();
            begin_load(stage);
            stage = stage + 1 == S::kLoads ? 0 : stage + 1;
        }
        load_stage_ = stage;
        slice_ = slice - slices;
    }

    // Writes a slice's operands, this lane's from `to` on: of some pixels at once, so that each
    // need not wait for its own values.
    template <bool kIsX>
    __device__ __forceinline__ void turn_around(const Row& row, const SliceLayout<S, kIsX>& layout,
                                                float factor, int slice, const T* loaded,
                                                Operands* to, float& largest) {
        constexpr int kPixels = S::template kRowPixels<kIsX>;
        constexpr int kWhole = kPixels / (32 * S::kAtOnce) * (32 * S::kAtOnce);
        constexpr bool kSums = S::kSumsBias && !kIsX;
        const int low = head_.tensors[kIsX].low;
        float sums[kVector] = {};
        const auto turn = [&](auto count, int first) {
            constexpr int kCount = decltype(count)::value;
            T values[kCount][kVector];
            take<kIsX>(row, layout, slice, loaded, first, values);
#pragma unroll
            for (int i = 0; i < kCount; ++i) {
                const int pixel = first + i * 32;
                if (kPixels % 32 == 0 || pixel + lane_ < kPixels) {
                    write_operands<S, false>(values[i], factor, to + pixel, low);
                }
                largest = larger_of<S>(largest, values[i]);
                if constexpr (kSums) {
#pragma unroll
                    for (int c = 0; c < kVector; ++c) sums[c] += widened<S>(values[i][c]);
                }
            }
        };
#pragma unroll 1
        for (int first = 0; first < kWhole; first += 32 * S::kAtOnce) {
            turn(std::integral_constant<int, S::kAtOnce>{}, first);
        }
        if constexpr (kWhole < kPixels) {
            turn(std::integral_constant<int, (kPixels - kWhole + 31) / 32>{}, kWhole);
        }
        if (kSums && sums_bias_) {
#pragma unroll
            for (int c = 0; c < kVector; ++c) {
                biases_[(slice * kVector + c) * 32 + lane_] += sums[c];
            }
        }
    }

    // What lies in a slice of this lane's pixels, of every 32nd one from the first on.
    template <bool kIsX, int kCount>
    __device__ __forceinline__ void take(const Row& row, const SliceLayout<S, kIsX>& layout,
                                         int slice, const T* loaded, int first,
                                         T (&values)[kCount][kVector]) const {
        constexpr int kPixels = S::template kRowPixels<kIsX>;
        const int* table = table_of<kIsX>();
        const T* rows[kVector];
        if constexpr (!S::kSideBySide && !(S::kUnfolds && kIsX)) {
            layout.find_rows(S::kIsPlain ? loaded + lane_ - row.before : loaded, 0, 0, rows);
        }
#pragma unroll
        for (int i = 0; i < kCount; ++i) {
            const int number = first + i * 32 + lane_;
            Pixel pixel = pixel_of<kIsX>(row, table, min(number, kPixels - 1));
            pixel.exists = pixel.exists && (kPixels % 32 == 0 || number < kPixels);
            if constexpr (S::kUnfolds && kIsX) {
                take_apart(loaded, row, layout, pixel, taps_of(slice), values[i]);
            } else if constexpr (S::kSideBySide) {
                take_of_image(loaded, layout, pixel, values[i]);
            } else {
#pragma unroll
                for (int c = 0; c < kVector; ++c) {
                    values[i][c] = Element<T>::narrow(0);
                    if (pixel.exists) {
                        values[i][c] = rows[c][S::kIsPlain ? first + i * 32 : pixel.column];
                    }
                }
            }
        }
    }

    // A pixel's values of a slice of several images.
    template <bool kIsX>
    static __device__ __forceinline__ void take_of_image(const T* loaded,
                                                         const SliceLayout<S, kIsX>& layout,
                                                         const Pixel& pixel, T (&values)[kVector]) {
        int rows[kVector];
        layout.find_rows(pixel.column, 0, pixel.segment, rows);
#pragma unroll
        for (int c = 0; c < kVector; ++c) {
            values[c] = Element<T>::narrow(0);
            if (pixel.exists) values[c] = loaded[rows[c]];
        }
    }

    // What the taps of an unfolded slice meet of x.
    __device__ __forceinline__ void take_apart(const T* loaded, const Row& row,
                                               const SliceLayout<S, true>& layout,
                                               const Pixel& pixel, const Taps& taps,
                                               T (&values)[kVector]) const {
        const T* rows[S::kXChannels];
        layout.find_rows(loaded + pixel.column + taps.first, taps.channel, pixel.segment, rows);
#pragma unroll
        for (int i = 0; i < kVector; ++i) {
            const int tap = i % S::kLanesOfVector;
            values[i] = Element<T>::narrow(0);
            if (meets(row, pixel, taps, tap)) {
                values[i] = rows[i / S::kLanesOfVector][tap * taps.step];
            }
        }
    }

    // Takes over again what the line has brought of x or of dy, of which the largest magnitude is
    // known, if its scale does not suit it.
    template <bool kIsX>
    __device__ __forceinline__ void agree(int first, Scale<S>& scale, unsigned bits) {
        const bool special = bits >= kInfinityBits;
        if (special) {
            float finite = 0;
            visit<kIsX>(first, [&](const T(&values)[kVector], Operands*) {
#pragma unroll
                for (int c = 0; c < kVector; ++c) {
                    const float magnitude = fabsf(widened<S>(values[c]));
                    if (magnitude_bits(magnitude) < kInfinityBits) {
                        finite = fmaxf(finite, magnitude);
                    }
                }
            });
            bits = magnitude_bits(finite);
            unsigned other = 0;
            find_largest(bits, other);
        }
        const bool suits = scale.suits(bits);
        if (!suits || (special && S::kParts == 2)) {
            const float factor = power_of_two(scale.exponent);
            const int low = head_.tensors[kIsX].low;
            visit<kIsX>(first, [&](const T(&values)[kVector], Operands* to) {
                write_operands<S, true>(values, factor, to, low);
            });
        }
    }

    // Reads this warp's slices of the line's new rows once more, and where their operands are.
    template <bool kIsX, typename Visitor>
    __device__ __forceinline__ void visit(int first, const Visitor& visitor) const {
        constexpr int kPixels = S::template kRowPixels<kIsX>;
        const int rows = kIsX ? line_.fresh() : 1;
        int slot = first;
#pragma unroll 1
        for (int i = 0; i < rows; ++i, slot = next_slot(slot)) {
            const Row row = row_of<kIsX>(line_, i);
            Operands* to = place_of<kIsX>(slot);
#pragma unroll 1
            for (int slice = warp_; slice < head_.tensors[kIsX].slices; slice += S::kLoadingWarps) {
#pragma unroll 1
                for (int number = lane_; number < kPixels; number += 32) {
                    T values[kVector];
                    read<kIsX>(row, slice, number, values);
                    visitor(values, to + slice * kPixels + number);
                }
            }
        }
    }

    // Reads a pixel's values of a slice from the tensor.
    template <bool kIsX>
    __device__ __forceinline__ void read(const Row& row, int slice, int number,
                                         T (&values)[kVector]) const {
        constexpr bool kIsUnfolded = S::kUnfolds && kIsX;
        const auto& tensor = head_.tensors[kIsX];
        const Pixel pixel = pixel_of<kIsX>(row, table_of<kIsX>(), number);
        Taps taps{};
        if constexpr (kIsUnfolded) taps = taps_of(slice);
        const int count = channels_from<kIsX>(slice);
        const auto from = reinterpret_cast<std::uintptr_t>(row.values + pixel.column + taps.first) +
                          pixel.segment * tensor.of_image + offset_of<kIsX>(slice);
#pragma unroll
        for (int i = 0; i < kVector; ++i) {
            const int channel = kIsUnfolded ? i / S::kLanesOfVector : i;
            const int tap = kIsUnfolded ? i % S::kLanesOfVector : 0;
            const bool exists =
                channel < count && (kIsUnfolded ? meets(row, pixel, taps, tap) : pixel.exists);
            const auto* value = reinterpret_cast<const T*>(from + channel * tensor.of_channel);
            values[i] = ptx::load_if(exists, value + tap * taps.step, Element<T>::narrow(0));
        }
    }

    // The largest of what all loading threads have, of x and of dy.
    __device__ __forceinline__ void find_largest(unsigned& x, unsigned& y) {
        x = ptx::reduce_max(x);
        y = ptx::reduce_max(y);
        auto& each = head_.largest[turn_];
        turn_ ^= 1;
        if (lane_ == 0) {
            each[0][warp_] = x;
            each[1][warp_] = y;
        }
        ptx::bar_sync(kBarrier, kThreads);
#pragma unroll
        for (int i = 0; i < S::kLoadingWarps; ++i) {
            x = max(x, each[0][i]);
            y = max(y, each[1][i]);
        }
    }

    const WeightProblem& problem_;
    const WeightShared<S>& parts_;
    typename WeightShared<S>::Head& head_;
    unsigned char *shared_, *loads_;
    float* biases_;  // of each filter, 32 lanes' sums
    int warp_, lane_, first_row_, first_slice_, turn_ = 0;
    bool sums_bias_;
    LineWalk<S> line_;    // that is brought
    Ring stage_;          // of lines
    int load_stage_ = 0;  // of this warp's loads, which is to be turned around next
    int slice_;           // of the next row, which that is
    Ring done_;           // the oldest line that is not multiplied yet
    int waiting_ = 0;     // such lines
    // What is to be loaded next.
    LineWalk<S> next_line_;
    int next_row_ = 0, next_slice_ = 0;
    std::uintptr_t next_begin_;  // of the row of the block's first channel
    int next_bytes_, next_images_;
    bool next_is_inside_;
};

}  // namespace convsmith::implicit_gemm
