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

// Launches `kernel` on `stream`; nullptr, or what CUDA says went wrong.
template <typename Kernel, typename... Arguments>
const char* launch(Kernel kernel, dim3 grid, dim3 block, std::size_t shared_bytes,
                   std::uintptr_t stream, Arguments... arguments) {
    constexpr std::size_t kDefaultSharedBytes = 48 * 1024;
    cudaError_t error = cudaSuccess;
    if (shared_bytes > kDefaultSharedBytes) {
        error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                     static_cast<int>(shared_bytes));
    }
    if (error == cudaSuccess) {
        void* pointers[] = {&arguments...};
        error = cudaLaunchKernel(reinterpret_cast<const void*>(kernel), grid, block, pointers,
                                 shared_bytes, reinterpret_cast<cudaStream_t>(stream));
    }
    return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

}  // namespace convsmith

#endif
