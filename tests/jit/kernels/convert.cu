// The 16-bit types, to float32 and back; and the least and the greatest of each value and 0.5.
#include "simulator.h"

namespace {

constexpr int kThreads = 256;

__global__ void convert(std::int64_t count, const __half* halves, const __nv_bfloat16* bfloats,
                        const float* floats, float* of_halves, float* of_bfloats, __half* to_halves,
                        __nv_bfloat16* to_bfloats, float* least, float* greatest) {
    const std::int64_t i = std::int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
    if (i >= count) return;
    of_halves[i] = __half2float(__ldg(halves + i));
    of_bfloats[i] = __bfloat162float(__ldg(bfloats + i));
    to_halves[i] = __float2half_rn(floats[i]);
    to_bfloats[i] = __float2bfloat16_rn(floats[i]);
    least[i] = min(floats[i], 0.5f);
    greatest[i] = max(floats[i], 0.5f);
}

template <typename T>
T* pointer(std::uintptr_t address) {
    return reinterpret_cast<T*>(address);
}

}  // namespace

const char* convsmith_launch(const void* problem, std::size_t /*problem_bytes*/,
                             const std::uintptr_t* at, std::size_t /*address_count*/,
                             std::uintptr_t stream) {
    const std::int64_t count = *static_cast<const std::int64_t*>(problem);
    const auto blocks = static_cast<unsigned>((count + kThreads - 1) / kThreads);
    return convsmith::launch(
        convert, dim3(blocks), dim3(kThreads), 0, stream, count, pointer<const __half>(at[0]),
        pointer<const __nv_bfloat16>(at[1]), pointer<const float>(at[2]), pointer<float>(at[3]),
        pointer<float>(at[4]), pointer<__half>(at[5]), pointer<__nv_bfloat16>(at[6]),
        pointer<float>(at[7]), pointer<float>(at[8]));
}
