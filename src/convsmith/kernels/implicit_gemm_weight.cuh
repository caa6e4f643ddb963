// The kernels of the implicit_gemm family's weight gradient. The first one's blocks each add up
// some lines for some units, into float32 partial sums; the second one adds these in a fixed order.
//
//   implicit_gemm_weight_problem.cuh    lines, units, shared memory
//   implicit_gemm_weight_copy.cuh       rows of dy and x, as they are
//   implicit_gemm_weight_convert.cuh    vectors of them, as operands
//   implicit_gemm_weight_load.cuh       both, on their way to shared memory
//   implicit_gemm_weight_multiply.cuh   products
#pragma once

#include "implicit_gemm_weight_load.cuh"
#include "implicit_gemm_weight_multiply.cuh"

namespace convsmith::implicit_gemm {

// Partial sums, [split][job][unit][value][thread], then [split][group][filter] of dy itself.
template <typename S>
struct Partial {
    std::int64_t sums, biases;  // of a split

    __host__ __device__ explicit Partial(const WeightProblem& problem)
        : sums(std::int64_t{Job::count<S>(problem)} * Job::units(problem) * S::kUnitValues),
          biases(problem.groups * problem.filters) {}
};

// A warpgroup has so many registers a thread from here on.
template <typename S, int kRegisters>
__device__ __forceinline__ void take_registers() {
    if constexpr (kRegisters > S::kLaunchRegisters) {
        ptx::setmaxnreg_inc<kRegisters>();
    } else {
        ptx::setmaxnreg_dec<kRegisters>();
    }
}

template <typename S>
__global__ void __launch_bounds__(S::kThreads, 1)
    weight_gradient(const WeightProblem problem, const WeightShared<S> parts, const Tensors tensors,
                    float* __restrict__ partial) {
    auto* shared = shared_memory<unsigned char>();
    auto& head = *shared_memory<typename WeightShared<S>::Head>();
    const int thread = static_cast<int>(threadIdx.x);
    const int warpgroup = thread / ptx::kWarpgroup;
    const Job job = Job::of<S>(problem, static_cast<int>(blockIdx.x));
    const int units = Job::units(problem);
    const Partial<S> part(problem);

    // Make the barriers, and the table of where units' operands are.
    if (thread == 0) {
        const int consumers = (units + S::kSlots - 1) / S::kSlots;
        for (int i = 0; i < kMostLines; ++i) {
            ptx::mbarrier_init(head.full + i, S::kLoadingWarps * 32);
            ptx::mbarrier_init(head.empty + i, 4 * consumers);
        }
        ptx::fence_mbarrier_init();
    }
    if (thread < units) {
        const auto columns = static_cast<int>(problem.kernel_size[1]);
        const auto stride = static_cast<int>(problem.stride[1]);
        const auto dilation = static_cast<int>(problem.dilation[1]);
        const Unit unit = Unit::of<S>(problem, thread);
        int tap = job.first_tap + unit.tap;
        if (tap >= Job::taps(problem)) tap = job.first_tap;
        const int phase = tap % columns % S::kPhases;
        const int column = tap % columns * static_cast<int>(problem.unfolded);
        const int shift = (column * dilation - phase * dilation % stride) / stride;
        auto& place = head.places[thread];
        place.row = tap / columns - job.first_tap / columns;
        place.y = unit.filter / kVector * S::kPixels;
        place.x =
            unit.channel / kVector * S::template kRowPixels<true> + phase * S::kPhasePixels + shift;
    }
    __syncthreads();

    if (warpgroup >= S::kConsumers) {
        take_registers<S, S::kLoaderRegisters>();
        RowLoader<S> loader(problem, job, tensors, shared, parts, head,
                            thread - S::kConsumers * ptx::kWarpgroup);
        loader.load(partial + problem.splits * part.sums + job.split * part.biases +
                    job.group * problem.filters + job.first_filter);
    } else {
        take_registers<S, S::kConsumerRegisters>();
        if (warpgroup * S::kSlots >= units) return;
        WeightMultiplier<S> multiplier(problem, parts, shared, head, warpgroup);
        multiplier.multiply(
            LineWalk<S>(problem, job.split).left(),
            partial + job.split * part.sums + std::int64_t{job.number} * units * S::kUnitValues);
    }
}

inline constexpr int kAddPartsThreads = 128;

template <typename S>
__global__ void __launch_bounds__(kAddPartsThreads)
    add_parts(const WeightProblem problem, const float* __restrict__ partial,
              typename S::Value* __restrict__ gradient,
              typename S::Value* __restrict__ bias_gradient) {
    const Partial<S> part(problem);
    const std::int64_t index = std::int64_t{blockIdx.x} * kAddPartsThreads + threadIdx.x;
    const bool is_bias = index >= part.sums;
    typename S::Value* to = nullptr;
    const float* from = partial + index;
    if (is_bias) {
        const std::int64_t filter = index - part.sums;
        if (!S::kSumsBias || filter >= part.biases) return;
        to = bias_gradient + filter;
        from = partial + problem.splits * part.sums + filter;
    } else {
        const auto rest = static_cast<int>(index / S::kUnitValues);
        const auto value = static_cast<int>(index % S::kUnitValues);
        const int thread = value % ptx::kWarpgroup, i = value / ptx::kWarpgroup;
        const Unit unit = Unit::of<S>(problem, rest % Job::units(problem));
        const Job job = Job::of<S>(problem, rest / Job::units(problem));
        const int filter = job.first_filter + unit.filter + ptx::fragment_row(thread, i);
        int channel = job.first_channel + unit.channel + ptx::fragment_column(thread, i);
        const int tap = job.first_tap + unit.tap;
        const auto columns = static_cast<int>(problem.kernel_size[1]);
        if (filter >= problem.filters || channel >= problem.channels || tap >= Job::taps(problem)) {
            return;
        }
        int row = tap / columns, column = tap % columns;
        if constexpr (S::kUnfolds) {
            const int lane = channel % S::kLanes;
            column = column * static_cast<int>(problem.unfolded) + lane;
            channel /= S::kLanes;
            if (lane >= problem.unfolded || column >= problem.row_taps) return;
        }
        to = gradient + (job.group * problem.filters + filter) * problem.w_strides[0] +
             channel * problem.w_strides[1] + row * problem.w_strides[2] +
             column * problem.w_strides[3];
    }
    const std::int64_t step = is_bias ? part.biases : part.sums;
    double sum = 0;
#pragma unroll 8
    for (int split = 0; split < static_cast<int>(problem.splits); ++split) {
        sum += from[split * step];
    }
    *to = Element<typename S::Value>::narrow(static_cast<float>(sum));
}

// The addresses are dy, x, dw, db or 0, workspace.
template <typename S>
const char* run_weight_gradient(const void* packed_problem, std::size_t packed_bytes,
                                const std::uintptr_t* addresses, std::size_t address_count,
                                std::uintptr_t stream) {
    using T = typename S::Value;
    if (packed_bytes != sizeof(WeightProblem)) return "implicit_gemm: the problem has another size";
    if (address_count != 5) return "implicit_gemm: another number of addresses was expected";
    const auto& problem = *static_cast<const WeightProblem*>(packed_problem);
    auto* gradient = reinterpret_cast<T*>(addresses[2]);
    auto* bias_gradient = reinterpret_cast<T*>(addresses[3]);
    auto* partial = reinterpret_cast<float*>(addresses[4]);
    if ((bias_gradient != nullptr) != S::kSumsBias) {
        return "implicit_gemm: the kernel was not made for this bias";
    }
    const auto bytes_of = [&](const std::int64_t (&strides)[4], std::int64_t channels,
                              const std::int64_t (&size)[2]) {
        const std::int64_t last = (problem.images - 1) * strides[0] +
                                  (problem.groups * channels - 1) * strides[1] +
                                  (size[0] - 1) * strides[2] + (size[1] - 1) * strides[3];
        return static_cast<std::uintptr_t>(last + 1) * sizeof(T);
    };
    const std::int64_t channels = problem.channels / (S::kUnfolds ? S::kLanes : 1);
    const Tensors tensors{
        {addresses[0], addresses[1]},
        {addresses[0] + bytes_of(problem.y_strides, problem.filters, problem.y_size),
         addresses[1] + bytes_of(problem.x_strides, channels, problem.x_size)}};
    const WeightShared<S> parts(problem);
    const std::int64_t blocks = Job::count<S>(problem) * problem.splits;
    const char* error =
        launch(weight_gradient<S>, dim3(static_cast<unsigned>(blocks)), dim3(S::kThreads),
               static_cast<std::size_t>(parts.bytes), stream, problem, parts, tensors, partial);
    if (error != nullptr) return error;
    const Partial<S> part(problem);
    const std::int64_t values = part.sums + (S::kSumsBias ? part.biases : 0);
    return launch(add_parts<S>,
                  dim3(static_cast<unsigned>((values + kAddPartsThreads - 1) / kAddPartsThreads)),
                  dim3(kAddPartsThreads), 0, stream, problem, static_cast<const float*>(partial),
                  gradient, bias_gradient);
}

}  // namespace convsmith::implicit_gemm
