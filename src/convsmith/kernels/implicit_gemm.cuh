// The implicit_gemm family: convolutions on the tensor cores, in all directions.
//
//   y[n,k,p,q] = b[k] + sum_{c,r,s} w[k,c,r,s] * x[n, c, p * stride_h - padding_h + r * dilation_h,
//                                                      q * stride_w - padding_w + s * dilation_w]
//
// The input gradient of stride 1 is the forward convolution of dy with the filters turned around,
// input and output channels swapped, and the rest of the padding. That of another stride is one
// with a filter for each phase of x.
//
// A block goes over many tiles of outputs. One of its warpgroups, or two, bring what they meet:
// patches of the input, which hold every pixel once however many taps meet it, and packed weights.
// Two others multiply: to the tensor cores a tap is the same patch, begun some pixels later.
//
//   implicit_gemm_problem.cuh       what a convolution is to the family; tiles, shared memory
//   implicit_gemm_phases.cuh        the input gradient of a stride
//   implicit_gemm_operands.cuh      scales of values, and their parts
//   implicit_gemm_pack.cuh          weights, as the tensor cores read them
//   implicit_gemm_load.cuh          patches and weights on their way to shared memory
//   implicit_gemm_multiply.cuh      products
//   implicit_gemm_sums.cuh          finished sums, and where they belong
//   implicit_gemm_repair.cuh        those that infinity has made NaN
//   implicit_gemm_store.cuh         on their way to the output
//   implicit_gemm_store_phases.cuh  the same, where filters are phases
//   implicit_gemm_weight.cuh        the kernels of the weight gradient
#pragma once

#include "implicit_gemm_load.cuh"
#include "implicit_gemm_multiply.cuh"
#include "implicit_gemm_pack.cuh"
#include "implicit_gemm_repair.cuh"
#include "implicit_gemm_store.cuh"
#include "implicit_gemm_store_phases.cuh"
#include "implicit_gemm_weight.cuh"

namespace convsmith::implicit_gemm {

template <typename S>
__global__ void __launch_bounds__(S::kThreads, 1)
    convolve(const Problem problem, const typename S::Value* __restrict__ input,
             const typename S::Operand* __restrict__ packed, const float* __restrict__ unscale,
             const typename S::Value* __restrict__ bias,
             const typename S::Value* __restrict__ weight, typename S::Value* __restrict__ out) {
    auto* shared = shared_memory<unsigned char>();
    auto& head = *shared_memory<typename Shared<S>::Head>();
    const int thread = static_cast<int>(threadIdx.x);
    const int warpgroup = shared_by_lanes<S>(thread / ptx::kWarpgroup);

    // Make the barriers, and the table of the taps' shifts.
    if (thread == 0) {
        for (int i = 0; i < kMostStages; ++i) {
            ptx::mbarrier_init(head.patch_full + i, S::kLoadingThreads);
            ptx::mbarrier_init(head.patch_empty + i, 4 * S::kConsumers);
            for (int ring = 0; ring < 2; ++ring) {
                ptx::mbarrier_init(head.weights_full[ring] + i, 1);
                ptx::mbarrier_init(head.weights_empty[ring] + i,
                                   S::kSplitsFilters ? 4 : 4 * S::kConsumers);
            }
        }
        ptx::fence_mbarrier_init();
    }
    const int padded_taps = S::padded_taps(problem);
    const int kinds = S::kInterleaves ? static_cast<int>(problem.out_phases.apart) : 1;
    for (int i = thread; i < kinds * padded_taps; i += S::kThreads) {
        const int columns = S::tap_columns(problem);
        TapRows rows{0, static_cast<int>(problem.kernel_size[0])};
        int tap = i;
        if constexpr (S::kInterleaves) {
            const int kind = i / padded_taps;
            tap = i % padded_taps;
            rows = tap_rows(problem, kind);
            if (tap == 0) head.tap_counts[kind] = S::padded_taps(problem, rows.count);
        }
        if (tap >= S::taps(problem, rows.count)) tap = 0;  // those that fill the last stage
        int place[2], phase[2];
#pragma unroll
        for (int axis = 0; axis < 2; ++axis) {
            const int index = axis == 0 ? tap / columns : tap % columns;
            const int stride = static_cast<int>(problem.stride[axis]);
            const int dilation = static_cast<int>(problem.dilation[axis]);
            phase[axis] = index % static_cast<int>(problem.phases[axis]);
            place[axis] = (index * dilation - phase[axis] * dilation % stride) / stride;
        }
        const int of_phase = static_cast<int>(problem.patch_rows * problem.pitch);
        head.tap_shifts[i] =
            (phase[0] * static_cast<int>(problem.phases[1]) + phase[1]) * of_phase +
            (rows.first + place[0]) * static_cast<int>(problem.row_pixels) + place[1] +
            static_cast<int>(problem.run_lead);
    }
    if constexpr (S::kUnfolds) {
        const int runs = S::runs(problem);
        for (int i = thread; i < S::channels(problem) / kVector; i += S::kThreads) {
            const int first = i % runs * kVector;
            const auto lead = static_cast<int>(problem.lead);
            const int columns = lead + static_cast<int>(problem.kernel_size[1]);
            head.steps[i] = (first - lead) * static_cast<int>(problem.dilation[1]);
            head.counts[i] = min(columns - first, kVector);
            head.offsets[i] = i / runs * static_cast<int>(problem.in_strides[1]) +
                              head.steps[i] * static_cast<int>(problem.in_strides[3]);
        }
    }
    __syncthreads();

    if (warpgroup >= S::kConsumers) {
        ptx::setmaxnreg_dec<S::kLoaderRegisters>();
        const int loader = thread - S::kConsumers * ptx::kWarpgroup;
        if (loader >= 32) {
            PatchLoader<S>(problem, input, shared, head, loader - 32).load();
        } else if (loader == 0) {
            ptx::griddepcontrol_wait();  // for the weights to be packed
            WeightLoader<S>(problem, packed, shared, head).load();
        }
    } else {
        ptx::setmaxnreg_inc<S::kConsumerRegisters>();
        Multiplier<S> multiplier(problem, shared, head, warpgroup);
        using Storing = std::conditional_t<S::kInterleaves, PhaseStore<S>, Store<S>>;
        Storing store(problem, {input, weight, bias, unscale, out}, shared, warpgroup);
        StoringTurn<S> turn(problem.stores_in_turn != 0, warpgroup);
        constexpr bool kRepairs = S::kProducts > 3 && !S::kInterleaves;
        bool has_nan = false;
        ptx::griddepcontrol_wait();  // for the filters' scales
        for (int tile = static_cast<int>(blockIdx.x); tile < static_cast<int>(problem.all_tiles);
             tile += static_cast<int>(gridDim.x)) {
            const Tile at = TileWalk<S>(problem, tile).tile();
            store.prepare(at);
            multiplier.multiply(taps_of<S>(problem, head, at));
            if constexpr (kRepairs) has_nan = has_nan || Repair<S>::is_nan(multiplier.sums);
            turn.begin();
            // Phases leave no registers to keep it in.
            store.store(S::kInterleaves ? TileWalk<S>(problem, tile).tile() : at, multiplier.sums);
            turn.end();
        }
        if constexpr (!S::kInterleaves) Storing::wait_until_read();  // of shared memory
        if constexpr (kRepairs) {
            if (ptx::reduce_max(has_nan ? 1u : 0u) != 0) {
                Repair<S>(problem, {input, weight, bias, unscale, out}, shared, warpgroup).repair();
            }
        }
    }
}

// The addresses are
//   forward          x, w, b or 0, y, workspace for the packed weights
//   input gradient   dy, w, dx, the same
template <typename S>
const char* run_convolve(const void* packed_problem, std::size_t packed_bytes,
                         const std::uintptr_t* addresses, std::size_t address_count,
                         std::uintptr_t stream) {
    using T = typename S::Value;
    using Operand = typename S::Operand;
    if (packed_bytes != sizeof(Problem)) return "implicit_gemm: the problem has another size";
    if (address_count != 4 && address_count != 5) {
        return "implicit_gemm: another number of addresses was expected";
    }
    Problem problem = *static_cast<const Problem*>(packed_problem);
    const bool is_forward = address_count == 5;
    const auto* input = reinterpret_cast<const T*>(addresses[0]);
    const auto* weight = reinterpret_cast<const T*>(addresses[1]);
    const auto* bias = is_forward ? reinterpret_cast<const T*>(addresses[2]) : nullptr;
    auto* out = reinterpret_cast<T*>(addresses[address_count - 2]);
    const std::uintptr_t workspace = addresses[address_count - 1];
    auto* packed = reinterpret_cast<Operand*>(workspace);
    if (addresses[address_count - 2] % 32 != 0) {
        problem.stores_pairs = problem.stores_in_bulk = problem.out_phases.stores_vectors = 0;
    }
    const std::int64_t padded =
        (problem.filters + S::kFilters - 1) / S::kFilters * S::kFilters * problem.groups;
    auto* unscale = reinterpret_cast<float*>(
        workspace + padded / kRowsOfBlock * S::channel_blocks(problem) * S::padded_taps(problem) *
                        std::int64_t{S::kTapBytes});
    const char* error = launch(pack<S>, dim3(static_cast<unsigned>(padded)),
                               dim3(static_cast<unsigned>(pack_threads<S>(problem))),
                               sizeof(PackShared), stream, problem, weight, packed, unscale);
    if (error != nullptr) return error;
    return launch_early(convolve<S>, dim3(static_cast<unsigned>(problem.blocks)), dim3(S::kThreads),
                        static_cast<std::size_t>(Shared<S>(problem).bytes), stream, problem, input,
                        static_cast<const Operand*>(packed), static_cast<const float*>(unscale),
                        bias, weight, out);
}

// What the stub instantiates: a Convolution or a WeightGradient.
template <typename Kind>
using Specialisation = Kind;

// Launches the kernels of one direction.
template <typename S>
const char* run(const void* packed_problem, std::size_t packed_bytes,
                const std::uintptr_t* addresses, std::size_t address_count, std::uintptr_t stream) {
    if constexpr (S::kIsWeightGradient) {
        return run_weight_gradient<S>(packed_problem, packed_bytes, addresses, address_count,
                                      stream);
    } else {
        return run_convolve<S>(packed_problem, packed_bytes, addresses, address_count, stream);
    }
}

}  // namespace convsmith::implicit_gemm
