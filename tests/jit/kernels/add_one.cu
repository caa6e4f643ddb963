// x[i] += 1, the least that can be launched.
#include "simulator.h"

namespace {

__global__ void add_one(std::int64_t count, float* x) {
    const std::int64_t i = std::int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
    if (i < count) x[i] += 1;
}

}  // namespace

const char* convsmith_launch(const void* problem, std::size_t /*problem_bytes*/,
                             const std::uintptr_t* addresses, std::size_t /*address_count*/,
                             std::uintptr_t stream) {
    const std::int64_t count = *static_cast<const std::int64_t*>(problem);
    return convsmith::launch(add_one, dim3(static_cast<unsigned>(count / 32 + 1)), dim3(32), 0,
                             stream, count, reinterpret_cast<float*>(addresses[0]));
}
