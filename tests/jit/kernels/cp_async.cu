// Each thread copies a run to shared memory, or zeros in its place; then others store it.
#include "ptx/cp_async.cuh"

namespace {

struct Problem {
    std::int64_t run_bytes, threads;
    std::int64_t readable;  // elements of `in` that may be read; zeros take the place of others
    std::int64_t offset;    // elements before the first run in shared memory
};

template <int kBytes>
__device__ void begin(const Problem& problem, float* shared, const float* in, int element) {
    convsmith::ptx::cp_async<kBytes>(shared + element, in + element, element < problem.readable);
}

__global__ void copy(Problem problem, const float* in, float* out) {
    auto* shared = convsmith::shared_memory<float>() + problem.offset;
    const int thread = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
    const int run = static_cast<int>(problem.run_bytes / sizeof(float));
    if (problem.run_bytes == 4) begin<4>(problem, shared, in, thread * run);
    if (problem.run_bytes == 8) begin<8>(problem, shared, in, thread * run);
    if (problem.run_bytes == 16) begin<16>(problem, shared, in, thread * run);
    convsmith::ptx::cp_async_wait_all();
    __syncthreads();
    for (int i = thread; i < threads * run; i += threads) out[i] = shared[i];
}

}  // namespace

const char* convsmith_launch(const void* packed, std::size_t /*packed_bytes*/,
                             const std::uintptr_t* addresses, std::size_t /*address_count*/,
                             std::uintptr_t stream) {
    const Problem problem = *static_cast<const Problem*>(packed);
    const auto bytes = problem.offset * sizeof(float) + problem.threads * problem.run_bytes;
    return convsmith::launch(copy, dim3(1), dim3(static_cast<unsigned>(problem.threads)), bytes,
                             stream, problem, reinterpret_cast<const float*>(addresses[0]),
                             reinterpret_cast<float*>(addresses[1]));
}
