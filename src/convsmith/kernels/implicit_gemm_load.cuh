// Patches on their way to shared memory: what a tile of outputs meets of S::kBlockChannels
// channels, as 16-bit operands [high, low][channels / kVector][pixel][kVector].
#pragma once

#include "implicit_gemm_patch.cuh"
#include "implicit_gemm_quads.cuh"
#include "implicit_gemm_singles.cuh"

namespace convsmith::implicit_gemm {

// Brings the patches of all channels of a block's tiles.
template <typename S>
__device__ __forceinline__ void load_patches(const Problem& problem, const typename S::Value* input,
                                             unsigned char* shared, typename Shared<S>::Head& head,
                                             int thread) {
    using Reader = std::conditional_t<S::kReadsQuads, QuadReader<S>, SingleReader<S>>;
    auto* tables = reinterpret_cast<int*>(shared + Shared<S>(problem).tables);
    Reader reader(problem, input, tables, head, thread);
    PatchWriter<S> writer(problem, shared, head, thread);
#pragma unroll 1
    for (TileWalk<S> tiles(problem); tiles.exists(); tiles.advance()) {
        reader.begin(tiles.tile());
#pragma unroll 1
        for (int channel = 0; channel < S::channels(problem); channel += S::kBlockChannels) {
            auto* to = writer.begin();
            reader.visit(channel, [&](int vector, const auto& values) {
                writer.write(to + vector, values);
            });
            writer.end([&](const auto& visitor) {
                reader.visit(channel,
                             [&](int vector, const auto& values) { visitor(to + vector, values); });
            });
        }
    }
}

}  // namespace convsmith::implicit_gemm
