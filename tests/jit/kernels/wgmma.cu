// One warpgroup multiplies what another one brings, stage by stage:
//   out (64 x columns, float32) = A (64 x terms) * B (terms x columns).
// Either operand is brought K-major or MN-major; A may go on to registers. `deed` plants a mistake.
#include "ptx/bulk_copy.cuh"
#include "ptx/mbarrier.cuh"
#include "ptx/warpgroup.cuh"
#include "ptx/wgmma.cuh"

namespace {

using namespace convsmith;

enum Deed : std::int64_t {
    kNone,
    kReleaseTooEarly,
    kReadTooEarly,
    kDoNotWait,
    kReachTooFar,
    kOverwriteTooEarly
};

struct Problem {
    std::int64_t columns, terms, is_bfloat16, a_is_mn_major, b_is_mn_major, a_in_registers, deed;
};

constexpr int kStages = 2, kTerms = ptx::kWgmmaTerms;

// Writes `rows` x kTerms elements as core matrices; those of eight rows follow those of all terms.
template <typename T>
__device__ void bring(T* stage, const T* from, int rows, std::int64_t row_stride,
                      std::int64_t term_stride, ptx::Major major) {
    for (int e = static_cast<int>(threadIdx.x) % ptx::kWarpgroup; e < rows * kTerms;
         e += ptx::kWarpgroup) {
        const int i = e / kTerms, k = e % kTerms;
        const int within = major == ptx::Major::kK ? i % 8 * 8 + k % 8 : k % 8 * 8 + i % 8;
        stage[(i / 8 * (kTerms / 8) + k / 8) * 64 + within] =
            from[i * row_stride + k * term_stride];
    }
}

template <typename T, int kColumns, ptx::Major kA, ptx::Major kB, bool kInRegisters = false>
__global__ void __launch_bounds__(256, 1)
    multiply(Problem problem, const T* a, const T* b, float* out) {
    constexpr int kStage = (ptx::kWgmmaRows + kColumns) * kTerms;
    auto* full = shared_memory<ptx::Barrier>();
    auto* empty = full + kStages;
    auto* stages = reinterpret_cast<T*>(shared_memory<unsigned char>() + 64);
    const int thread = static_cast<int>(threadIdx.x);
    const int steps = static_cast<int>(problem.terms) / kTerms;
    if (thread == 0) {
        for (int i = 0; i < kStages; ++i) {
            ptx::mbarrier_init(full + i, ptx::kWarpgroup);
            ptx::mbarrier_init(empty + i, ptx::kWarpgroup);
        }
        ptx::fence_mbarrier_init();
    }
    __syncthreads();
    if (thread >= ptx::kWarpgroup) {
        ptx::setmaxnreg_dec<40>();
        for (int step = 0; step < steps; ++step) {
            const int stage = step % kStages, parity = step / kStages % 2;
            ptx::mbarrier_wait(empty + stage, parity ^ 1);
            T* to = stages + stage * kStage;
            bring(to, a + step * kTerms, ptx::kWgmmaRows, problem.terms, 1, kA);
            bring(to + ptx::kWgmmaRows * kTerms, b + step * kTerms * kColumns, kColumns, 1,
                  kColumns, kB);
            ptx::fence_proxy_async();
            ptx::mbarrier_arrive(full + stage);
        }
        ptx::bar_arrive(1, 256);
        return;
    }
    ptx::setmaxnreg_inc<200>();
    float sums[kColumns / 2] = {};
    for (int step = 0; step < steps; ++step) {
        const int stage = step % kStages, parity = step / kStages % 2;
        ptx::mbarrier_wait(full + stage, parity);
        const T* from = stages + stage * kStage;
        const auto a_there = ptx::matrix_descriptor(from, 128, 256);
        const auto b_there = ptx::matrix_descriptor(from + ptx::kWgmmaRows * kTerms, 128,
                                                    problem.deed == kReachTooFar ? 272 : 256);
        ptx::Fragments fragments;
        if constexpr (kInRegisters) {
            ptx::ldmatrix_x4_trans(fragments, from + thread / 32 * 16 * kTerms, 256);
        }
        ptx::wgmma_fence();
        if constexpr (kInRegisters) {
            ptx::wgmma<T, kColumns, kB>(sums, fragments, b_there, step > 0);
        } else {
            ptx::wgmma<T, kColumns, kA, kB>(sums, a_there, b_there, step > 0);
        }
        ptx::wgmma_commit_group();
        if (problem.deed == kOverwriteTooEarly) fragments[1] ^= 1;
        if (problem.deed == kReleaseTooEarly) ptx::mbarrier_arrive(empty + stage);
        if (problem.deed == kReadTooEarly && step + 1 == steps) sums[0] += 1;
        if (problem.deed != kDoNotWait && problem.deed != kReleaseTooEarly) {
            ptx::wgmma_wait_group<0>();
        }
        if (problem.deed != kReleaseTooEarly) ptx::mbarrier_arrive(empty + stage);
    }
    if (problem.deed == kReleaseTooEarly) ptx::wgmma_wait_group<0>();
    ptx::bar_sync(1, 256);
    for (int i = 0; i < kColumns / 2; ++i) {
        out[ptx::fragment_row(thread, i) * kColumns + ptx::fragment_column(thread, i)] = sums[i];
    }
}

template <typename T, int kColumns>
const char* run(const Problem& problem, const std::uintptr_t* addresses, std::uintptr_t stream) {
    using ptx::Major;
    auto kernel = problem.a_is_mn_major   ? problem.b_is_mn_major
                                                ? multiply<T, kColumns, Major::kMN, Major::kMN>
                                                : multiply<T, kColumns, Major::kMN, Major::kK>
                  : problem.b_is_mn_major ? multiply<T, kColumns, Major::kK, Major::kMN>
                                          : multiply<T, kColumns, Major::kK, Major::kK>;
    if constexpr (kColumns <= 64) {
        if (problem.a_in_registers) {
            kernel = problem.b_is_mn_major ? multiply<T, kColumns, Major::kMN, Major::kMN, true>
                                           : multiply<T, kColumns, Major::kMN, Major::kK, true>;
        }
    }
    const std::size_t bytes = 64 + kStages * (ptx::kWgmmaRows + kColumns) * kTerms * sizeof(T);
    return launch(kernel, dim3(1), dim3(256), bytes, stream, problem,
                  reinterpret_cast<const T*>(addresses[0]),
                  reinterpret_cast<const T*>(addresses[1]), reinterpret_cast<float*>(addresses[2]));
}

}  // namespace

const char* convsmith_launch(const void* packed, std::size_t /*packed_bytes*/,
                             const std::uintptr_t* addresses, std::size_t /*address_count*/,
                             std::uintptr_t stream) {
    const Problem problem = *static_cast<const Problem*>(packed);
    if (problem.is_bfloat16) {
        return problem.columns == 64 ? run<__nv_bfloat16, 64>(problem, addresses, stream)
                                     : run<__nv_bfloat16, 128>(problem, addresses, stream);
    }
    return problem.columns == 64 ? run<__half, 64>(problem, addresses, stream)
                                 : run<__half, 128>(problem, addresses, stream);
}
