// Numbers of 8 bits: float32 rounded to them, and the product of two matrices of them,
//   out (64 x 128, float32) = A (64 x 32) * B (32 x 128),
// which come as rows of A and columns of B.
#include "ptx/e5m2.cuh"

#include "ptx/bulk_copy.cuh"
#include "ptx/wgmma.cuh"

namespace {

using namespace convsmith;

constexpr int kThreads = ptx::kWarpgroup, kColumns = 128, kTerms = 32;

__global__ void convert(std::int64_t count, const float* from, unsigned* to) {
    for (std::int64_t i = threadIdx.x; i < count; i += kThreads) {
        to[i] = ptx::to_e5m2(from[4 * i], from[4 * i + 1], from[4 * i + 2], from[4 * i + 3]);
    }
}

// Writes rows of kTerms as core matrices; those of eight rows follow those of all terms.
__device__ void bring(unsigned char* to, const unsigned char* from, int rows) {
    for (int e = static_cast<int>(threadIdx.x); e < rows * kTerms; e += kThreads) {
        const int i = e / kTerms, k = e % kTerms;
        to[(i / 8 * 2 + k / 16) * 128 + i % 8 * 16 + k % 16] = from[e];
    }
}

__global__ void __launch_bounds__(kThreads, 1)
    multiply(const unsigned char* a, const unsigned char* b, float* out) {
    auto* rows = shared_memory<unsigned char>();
    auto* columns = rows + ptx::kWgmmaRows * kTerms;
    bring(rows, a, ptx::kWgmmaRows);
    bring(columns, b, kColumns);
    ptx::fence_proxy_async();
    __syncthreads();
    float sums[kColumns / 2];
    ptx::wgmma_fence();
    ptx::wgmma_e5m2<kColumns>(sums, ptx::matrix_descriptor(rows, 128, 256),
                              ptx::matrix_descriptor(columns, 128, 256), false);
    ptx::wgmma_commit_group();
    ptx::wgmma_wait_group<0>();
    const int thread = static_cast<int>(threadIdx.x);
    for (int i = 0; i < kColumns / 2; ++i) {
        out[ptx::fragment_row(thread, i) * kColumns + ptx::fragment_column(thread, i)] = sums[i];
    }
}

}  // namespace

const char* convsmith_launch(const void* problem, std::size_t /*problem_bytes*/,
                             const std::uintptr_t* at, std::size_t address_count,
                             std::uintptr_t stream) {
    if (address_count == 2) {
        return launch(convert, dim3(1), dim3(kThreads), 0, stream,
                      *static_cast<const std::int64_t*>(problem),
                      reinterpret_cast<const float*>(at[0]), reinterpret_cast<unsigned*>(at[1]));
    }
    return launch(multiply, dim3(1), dim3(kThreads), (ptx::kWgmmaRows + kColumns) * kTerms, stream,
                  reinterpret_cast<const unsigned char*>(at[0]),
                  reinterpret_cast<const unsigned char*>(at[1]), reinterpret_cast<float*>(at[2]));
}
