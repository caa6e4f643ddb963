// What a kernel sees of CUDA when it runs on the CPU: the names it uses, with the same meaning.
// scheduler.cpp runs the threads. Included by kernels/launch.cuh, in place of the CUDA runtime.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <type_traits>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)

struct uint3 {
    unsigned x, y, z;
};

struct dim3 {
    unsigned x, y, z;
    constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

struct alignas(16) float4 {
    float x, y, z, w;
};

struct alignas(16) int4 {
    int x, y, z, w;
};

struct alignas(16) uint4 {
    unsigned x, y, z, w;
};

struct alignas(16) double2 {
    double x, y;
};

// Those of the thread that runs: the scheduler sets them at every change of threads.
extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;

namespace convsmith::simulator {

// Lets the other threads of the block run until each has waited, then returns. `where` is what the
// thread waits at and `line` the kernel's line, for the report if it waits for ever.
void give_way(const char* where, int line);

// Tells the scheduler that the thread that gave way goes on, so the block is not stuck.
void go_on();

// Returns when `condition` holds; other threads run meanwhile, and at least once. Everything a
// thread can wait for is built on this.
template <typename Condition>
void wait_until(Condition condition, const char* where, int line) {
    do {
        give_way(where, line);
    } while (!condition());
    go_on();
}

// Runs `thread(context)` once for each thread of the grid; nullptr, or CUDA's text for a launch
// that it would refuse.
const char* run_grid(void (*thread)(const void* context), const void* context, dim3 grid,
                     dim3 block, std::size_t shared_bytes);

// The running block's dynamic shared memory: exactly as many bytes as the launch asked for.
void* shared_memory();

// What the lane whose number differs by `lane_mask` gives at its own call; returns when all lanes
// of the warp have called it.
std::uint64_t exchange(std::uint64_t bits, int lane_mask, int line);

// Returns when `threads` threads have come to barrier `id` of the block, or at once unless this one
// `waits`.
void named_barrier(int id, int threads, bool waits, int line);

// Work of an instruction that a thread does not wait for: it is done when the thread does, group by
// group, in order.
void put_off(std::function<void()> work);
void close_group();
void finish_groups(int remaining);

template <typename To, typename From>
To bits_of(From value) {
    static_assert(sizeof(To) == sizeof(From));
    To bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits;
}

}  // namespace convsmith::simulator

// The line is the caller's: threads that wait at different barriers are an error.
void __syncthreads(int line = __builtin_LINE());

template <typename T>
T __ldg(const T* address) {
    return *address;
}

template <typename T>
constexpr T min(T a, T b) {
    if constexpr (std::is_floating_point_v<T>) return std::fmin(a, b);
    return b < a ? b : a;
}

template <typename T>
constexpr T max(T a, T b) {
    if constexpr (std::is_floating_point_v<T>) return std::fmax(a, b);
    return a < b ? b : a;
}

using std::fma;
using std::fmaf;

// The 16-bit types hold bits only: arithmetic has to go through float, as it must on a GPU for
// float32 accumulation.
class __half {
    std::uint16_t bits;
    friend float __half2float(__half value);
    friend __half __float2half_rn(float value);
};

class __nv_bfloat16 {
    std::uint16_t bits;
    friend float __bfloat162float(__nv_bfloat16 value);
    friend __nv_bfloat16 __float2bfloat16_rn(float value);
};

inline float __half2float(__half value) {
    using convsmith::simulator::bits_of;
    const std::uint32_t sign = (value.bits & 0x8000u) << 16;
    const std::uint32_t magnitude = value.bits & 0x7fffu;
    if (magnitude >= 0x7c00u) {  // infinity or NaN
        return bits_of<float>(sign | 0x7f800000u | (magnitude & 0x3ffu) << 13);
    }
    // With the exponent field moved into float's place, the value is 2**112 times too small;
    // subnormals come out right as well.
    const float scaled = bits_of<float>(magnitude << 13) * 0x1p112f;
    return bits_of<float>(sign | bits_of<std::uint32_t>(scaled));
}

inline __half __float2half_rn(float value) {
    using convsmith::simulator::bits_of;
    const auto bits = bits_of<std::uint32_t>(value);
    const std::uint32_t magnitude = bits & 0x7fffffffu;
    std::uint32_t rounded;
    if (magnitude > 0x7f800000u) {
        rounded = 0x7fff;  // CUDA's NaN
    } else if (magnitude >= 0x477ff000u) {
        rounded = 0x7c00;  // half of the last place beyond the largest half, or more
    } else if (magnitude < 0x38800000u) {
        // Subnormal in half: adding 0.5 leaves it, rounded by the addition, in the last bits.
        rounded = bits_of<std::uint32_t>(bits_of<float>(magnitude) + 0.5f) - 0x3f000000u;
    } else {
        // 0xfff is just below half a place; the last kept bit makes ties go to even.
        rounded = (magnitude - 0x38000000u + 0xfffu + (magnitude >> 13 & 1u)) >> 13;
    }
    __half half;
    half.bits = static_cast<std::uint16_t>((bits >> 16 & 0x8000u) | rounded);
    return half;
}

inline float __bfloat162float(__nv_bfloat16 value) {
    return convsmith::simulator::bits_of<float>(std::uint32_t{value.bits} << 16);
}

inline __nv_bfloat16 __float2bfloat16_rn(float value) {
    const auto bits = convsmith::simulator::bits_of<std::uint32_t>(value);
    const bool is_nan = (bits & 0x7fffffffu) > 0x7f800000u;
    __nv_bfloat16 rounded;  // up by just below half a place; the last kept bit breaks ties to even
    rounded.bits =
        static_cast<std::uint16_t>(is_nan ? 0x7fff : (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
    return rounded;
}

namespace convsmith::simulator {

// What tensor cores read of a 16-bit type: 8 rows or columns by 8 terms, or the other way round.
template <typename T>
struct alignas(16) CoreMatrix {
    T values[64];
};

// A row or a column of 16 terms, taken apart: significands in units of 2**-10, and the exponents
// that tensor cores see. A subnormal has the least one.
inline constexpr int kTerms = 16;
template <typename T>
struct Terms {
    T values[kTerms];
    std::int16_t significands[kTerms], exponents[kTerms];
};

// The row or column whose terms begin at `first` in each core matrix, `stride` apart.
template <typename T>
Terms<T> terms_of(const CoreMatrix<T> (&cores)[kTerms / 8], int first, int stride);

// sum + a * b, as tensor cores add: exact products and the sum are aligned to the largest exponent
// and cut off after some fractional bits, and so is the result, to float32.
inline constexpr int kKeptBitsOf16 = 25, kKeptBitsOf8 = 13;  // of operands of so many bits
template <typename T>
float truncated_sum(float sum, const Terms<T>& a, const Terms<T>& b, int kept_bits = kKeptBitsOf16);

}  // namespace convsmith::simulator

namespace convsmith {

template <typename T>
T* shared_memory() {
    return static_cast<T*>(simulator::shared_memory());
}

// Runs `kernel` to its end; nullptr, or what CUDA would say of the launch.
template <typename... Parameters, typename... Arguments>
const char* launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, std::size_t shared_bytes,
                   std::uintptr_t /*stream*/, Arguments... arguments) {
    static_assert((std::is_same_v<Parameters, Arguments> && ...),
                  "a launch on a GPU takes the arguments' bytes as they are and converts nothing");
    const auto thread = [&] { kernel(arguments...); };
    using Thread = decltype(thread);
    return simulator::run_grid([](const void* context) { (*static_cast<Thread*>(context))(); },
                               &thread, grid, block, shared_bytes);
}

// The same: here kernels run one after another.
template <typename Kernel, typename... Arguments>
const char* launch_early(Kernel kernel, dim3 grid, dim3 block, std::size_t shared_bytes,
                         std::uintptr_t stream, Arguments... arguments) {
    return launch(kernel, grid, block, shared_bytes, stream, arguments...);
}

}  // namespace convsmith
