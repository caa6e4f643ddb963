// Each thread writes who it is; and the sum of its block, by halves, through shared memory.
#include "simulator.h"

namespace {

struct Problem {
    std::int64_t grid[3], block[3], shared_bytes;
};

__global__ void indices(Problem problem, int* out) {
    const int blocks = static_cast<int>((blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x);
    const int rows = static_cast<int>((threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x);
    const int block = blocks + static_cast<int>(blockIdx.x);
    const int thread = rows + static_cast<int>(threadIdx.x);
    const int threads = static_cast<int>(blockDim.x * blockDim.y * blockDim.z);
    auto* sums = convsmith::shared_memory<int>();
    const auto fits = static_cast<std::int64_t>(threads * sizeof(int)) <= problem.shared_bytes;
    if (fits) {
        sums[thread] = thread;
        for (int active = threads; active > 1; active = (active + 1) / 2) {
            __syncthreads();
            const int other = thread + (active + 1) / 2;
            if (other < active) sums[thread] += sums[other];
        }
        __syncthreads();
    }
    int* row = out + (std::int64_t{block} * threads + thread) * 7;
    row[0] = static_cast<int>(threadIdx.x);
    row[1] = static_cast<int>(threadIdx.y);
    row[2] = static_cast<int>(threadIdx.z);
    row[3] = static_cast<int>(blockIdx.x);
    row[4] = static_cast<int>(blockIdx.y);
    row[5] = static_cast<int>(blockIdx.z);
    row[6] = fits ? sums[0] : 0;
}

dim3 extent(const std::int64_t (&sizes)[3]) {
    return {static_cast<unsigned>(sizes[0]), static_cast<unsigned>(sizes[1]),
            static_cast<unsigned>(sizes[2])};
}

}  // namespace

const char* convsmith_launch(const void* packed, std::size_t /*packed_bytes*/,
                             const std::uintptr_t* addresses, std::size_t /*address_count*/,
                             std::uintptr_t stream) {
    const Problem problem = *static_cast<const Problem*>(packed);
    return convsmith::launch(indices, extent(problem.grid), extent(problem.block),
                             static_cast<std::size_t>(problem.shared_bytes), stream, problem,
                             reinterpret_cast<int*>(addresses[0]));
}
