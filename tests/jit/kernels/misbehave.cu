// A kernel that does one thing that the simulator must stop, or let pass, chosen at run time.
#include <cstdio>

#include "simulator.h"

namespace {

enum Deed : std::int64_t {
    kCopy,
    kReadPastTheEnd,
    kReadInAFunction,
    kReadBeforeTheBeginning,
    kWritePastTheEnd,
    kWriteBeforeTheBeginning,
    kWriteFarPastTheEnd,
    kWriteToTheInput,
    kReadPastShared,
    kWritePastShared,
    kWriteBeforeShared,
    kReadUnwrittenShared,
    kReadNull,
    kLoadAVector,
    kOverflow,
    kShiftTooFar,
    kIndexOutOfBounds,
    kConvertTooLarge,
    kReadPastALocal,
    kRecurseForEver,
    kReturnBeforeABarrier,
    kMeetAtTwoBarriers,
    kRunForEver,
    kPrint,
    kCountUp,
    kMissABarrier,
    kMissABarrierTheOtherWay,
    kWriteOneElementFromTwoBlocks,
};

struct Problem {
    std::int64_t deed, elements, blocks, threads, shared_bytes;
};

// The compiler must not see where it points.
__device__ volatile float* opaque(volatile float* pointer) {
    volatile float* volatile hidden = pointer;
    return hidden;
}

__device__ __forceinline__ float read(const float* pointer) {
    // On a line of its own, for the report.
    return *pointer;
}

__device__ int recurse(volatile int* depth) {
    volatile int frame[64];
    frame[0] = ++*depth;
    return recurse(depth) + frame[0];
}

__global__ void misbehave(Problem problem, const float* in, float* out) {
    auto* shared = convsmith::shared_memory<float>();
    const int thread = static_cast<int>(threadIdx.x), last = static_cast<int>(blockDim.x) - 1;
    const std::int64_t n = problem.elements;
    const std::int64_t place = std::int64_t{blockIdx.x} * blockDim.x + thread;
    const bool chosen = thread == 5 && blockIdx.x == 0;
    // The compiler must not see what the value is.
    volatile int number = 0x7fffffff;
    volatile float local[4] = {};
    switch (chosen ? problem.deed : kCopy) {
        case kReadPastTheEnd:
            out[0] = in[n];
            break;
        case kReadInAFunction:
            out[0] = read(in + n);
            break;
        case kReadBeforeTheBeginning:
            out[0] = in[-1];
            break;
        case kWritePastTheEnd:
            out[n] = 1;
            break;
        case kWriteBeforeTheBeginning:
            out[-1] = 1;
            break;
        case kWriteFarPastTheEnd:
            out[2 * n - 1] = 1;
            break;
        case kWriteToTheInput:
            const_cast<float*>(in)[3] = 1;
            break;
        case kReadPastShared:
            out[0] = shared[problem.shared_bytes / 4];
            break;
        case kWritePastShared:
            shared[problem.shared_bytes / 4] = 1;
            break;
        case kWriteBeforeShared:
            shared[-1] = 1;
            break;
        case kReadUnwrittenShared:
            out[place] = shared[0];
            break;
        case kReadNull:
            out[0] = *in;
            break;
        case kLoadAVector:
            out[place] = reinterpret_cast<const float4*>(in)->y;
            break;
        case kOverflow:
            out[0] = static_cast<float>(number + 1);
            break;
        case kShiftTooFar:
            out[0] = static_cast<float>(1 << number);
            break;
        case kIndexOutOfBounds:
            out[0] = local[problem.threads];
            break;
        case kConvertTooLarge:
            out[0] = static_cast<float>(static_cast<int>(1e10f * static_cast<float>(number)));
            break;
        case kRecurseForEver:
            number = 0;
            out[0] = static_cast<float>(recurse(&number));
            break;
        case kReturnBeforeABarrier:
            return;
        case kMeetAtTwoBarriers:
            __syncthreads();
            return;
        case kRunForEver:
            while (number != 0) {
            }
            break;
        case kPrint:
            std::printf("thread %d of block %u\n", thread, blockIdx.x);
            break;
        default:
            break;
    }
    __syncthreads();
    switch (problem.deed) {
        case kCountUp:
            if (place < n) out[place] += 1;
            break;
        case kMissABarrier:  // the neighbour before has written when threads ascend
            if (place >= n) break;
            shared[thread] = in[place];
            out[place] = shared[thread == 0 ? 0 : thread - 1];
            break;
        case kMissABarrierTheOtherWay:
            if (place >= n) break;
            shared[thread] = in[place];
            out[place] = shared[thread == last ? last : thread + 1];
            break;
        case kReadPastALocal:  // a local of a thread that others have run in between
            if (chosen) out[0] = *opaque(local + 4);
            break;
        case kWriteOneElementFromTwoBlocks:
            if (thread == 0) out[0] = static_cast<float>(blockIdx.x);
            break;
        default:
            if (in != nullptr && place < n && !chosen) out[place] = in[place];
    }
}

}  // namespace

const char* convsmith_launch(const void* packed, std::size_t packed_bytes,
                             const std::uintptr_t* addresses, std::size_t address_count,
                             std::uintptr_t stream) {
    if (packed_bytes != sizeof(Problem) || address_count != 2) return "called in another way";
    const Problem problem = *static_cast<const Problem*>(packed);
    return convsmith::launch(misbehave, dim3(static_cast<unsigned>(problem.blocks)),
                             dim3(static_cast<unsigned>(problem.threads)),
                             static_cast<std::size_t>(problem.shared_bytes), stream, problem,
                             reinterpret_cast<const float*>(addresses[0]),
                             reinterpret_cast<float*>(addresses[1]));
}
