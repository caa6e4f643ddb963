// What a kernel needs of its surroundings, on a GPU and in the simulator: the one place where the
// two differ. Kernels use dynamic shared memory only, and see the CUDA runtime only through here.
#pragma once

#include <cstddef>
#include <cstdint>

#ifdef CONVSMITH_SIMULATOR
#include "simulator.h"
#else

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

namespace convsmith {

// The block's dynamic shared memory.
template <typename T>
__device__ __forceinline__ T* shared_memory() {
    extern __shared__ __align__(128) unsigned char convsmith_shared_memory[];
    return reinterpret_cast<T*>(convsmith_shared_memory);
}

// Launches `kernel` with the first `attributes` of what it takes to begin early.
template <typename Kernel, typename... Arguments>
const char* launch_with(unsigned attributes, Kernel kernel, dim3 grid, dim3 block,
                        std::size_t shared_bytes, std::uintptr_t stream, Arguments... arguments) {
    constexpr std::size_t kDefaultSharedBytes = 48 * 1024;
    cudaError_t error = cudaSuccess;
    if (shared_bytes > kDefaultSharedBytes) {
        error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                     static_cast<int>(shared_bytes));
    }
    if (error == cudaSuccess) {
        cudaLaunchAttribute early = {};
        early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
        early.val.programmaticStreamSerializationAllowed = 1;
        cudaLaunchConfig_t configuration = {};
        configuration.gridDim = grid;
        configuration.blockDim = block;
        configuration.dynamicSmemBytes = shared_bytes;
        configuration.stream = reinterpret_cast<cudaStream_t>(stream);
        configuration.attrs = &early;
        configuration.numAttrs = attributes;
        void* pointers[] = {&arguments...};
        error =
            cudaLaunchKernelExC(&configuration, reinterpret_cast<const void*>(kernel), pointers);
    }
    return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

// Launches `kernel` on `stream`; nullptr, or what CUDA says went wrong.
template <typename Kernel, typename... Arguments>
const char* launch(Kernel kernel, dim3 grid, dim3 block, std::size_t shared_bytes,
                   std::uintptr_t stream, Arguments... arguments) {
    return launch_with(0, kernel, grid, block, shared_bytes, stream, arguments...);
}

// The same, and the kernel may begin beside the end of the one before it: it waits itself before it
// reads what that one has written (ptx/grid_dependency.cuh). GPUs before 9.0 do not know of this.
template <typename Kernel, typename... Arguments>
const char* launch_early(Kernel kernel, dim3 grid, dim3 block, std::size_t shared_bytes,
                         std::uintptr_t stream, Arguments... arguments) {
    int device = 0, capability = 0;
    if (CUDART_VERSION >= 12030 && cudaGetDevice(&device) == cudaSuccess) {  // graphs capture it
        cudaDeviceGetAttribute(&capability, cudaDevAttrComputeCapabilityMajor, device);
    }
    return launch_with(capability >= 9 ? 1 : 0, kernel, grid, block, shared_bytes, stream,
                       arguments...);
}

}  // namespace convsmith

#endif
