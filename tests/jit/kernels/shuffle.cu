// The lanes of each warp sum what they hold, by a butterfly of shuffles: the first warp once, the
// next one twice. One lane may do something else.
#include "ptx/shuffle.cuh"

namespace {

enum Deed : std::int64_t { kSum, kReturn, kWaitAtABarrier, kSumOnceMore };

__global__ void shuffle(std::int64_t deed, const double* in, double* out) {
    constexpr int kLanes = 32;
    const int thread = static_cast<int>(threadIdx.x), warp = thread / kLanes;
    const bool chosen = thread == 5;
    if (chosen && deed == kReturn) return;
    if (chosen && deed == kWaitAtABarrier) __syncthreads();
    const int times = warp + 1 + (chosen && deed == kSumOnceMore ? 1 : 0);
    double sum = in[thread];
    for (int time = 0; time < times; ++time) {
        for (int mask = kLanes / 2; mask > 0; mask /= 2) {
            sum += convsmith::ptx::shuffle_xor(sum, mask);
        }
    }
    out[thread] = sum;
}

}  // namespace

const char* convsmith_launch(const void* problem, std::size_t /*problem_bytes*/,
                             const std::uintptr_t* addresses, std::size_t /*address_count*/,
                             std::uintptr_t stream) {
    const auto* numbers = static_cast<const std::int64_t*>(problem);
    return convsmith::launch(shuffle, dim3(1), dim3(static_cast<unsigned>(numbers[1])), 0, stream,
                             numbers[0], reinterpret_cast<const double*>(addresses[0]),
                             reinterpret_cast<double*>(addresses[1]));
}
