// The depthwise family: convolutions of few channels a group, at the speed of memory.
//
//   forward          y[n,k,p,q]  = b[k] + sum_{c,r,s} w[k,c,r,s] * x[n, c, h(p,r), w(q,s)]
//   input gradient   dx[n,c,h,w] =        sum_{k,r,s} w[k,c,r,s] * dy[n, k, p(h,r), q(w,s)]
//   weight gradient  dw[k,c,r,s] =        sum_{n,p,q} dy[n,k,p,q] * x[n, c, h(p,r), w(q,s)]
//   with h(p,r) = p * stride_h - padding_h + r * dilation_h, and likewise for w.
//
// A block brings a tile of whole rows with its halo into shared memory, so that each element
// crosses the memory bus once. Each thread slides down the rows: it keeps a window of one source
// row in registers and adds its products to a small tile of outputs, all in float32.
//
//   depthwise_axis.cuh      which source and which tap make which output
//   depthwise_tile.cuh      tensors on their way to shared memory
//   depthwise_thread.cuh    what a thread does with a tile: the sums of some outputs
//   depthwise_store.cuh     outputs on their way to a tensor
//   depthwise_convolve.cuh  the kernel of the forward and of the input gradient
//   depthwise_kept.cuh      a thread's sums of a weight gradient of few taps
//   depthwise_spread.cuh    and of many taps
//   depthwise_weight.cuh    the kernels of the weight gradient
#pragma once

#include "depthwise_convolve.cuh"
#include "depthwise_weight.cuh"

namespace convsmith::depthwise {

// What the stub instantiates: a Convolution or a WeightGradient.
template <typename Kind>
using Specialisation = Kind;

// Launches the kernels of one direction. The addresses are
//   forward          x, w, b or 0, y, 0
//   input gradient   dy, w, dx, 0
//   weight gradient  dy, x, dw, db or 0, workspace or 0 (splits partial sums of dw and db)
template <typename S>
const char* run(const void* packed, std::size_t packed_bytes, const std::uintptr_t* addresses,
                std::size_t address_count, std::uintptr_t stream) {
    constexpr std::size_t kAddresses = S::kIsGradient ? 4 : 5;
    if (address_count != kAddresses) return "depthwise: another number of addresses was expected";
    if constexpr (S::kIsWeightGradient) {
        return run_weight_gradient<S>(packed, packed_bytes, addresses, stream);
    } else {
        return run_convolve<S>(packed, packed_bytes, addresses, stream);
    }
}

}  // namespace convsmith::depthwise
