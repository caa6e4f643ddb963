// Packed weights on their way to shared memory.
#pragma once

#include "implicit_gemm_problem.cuh"

namespace convsmith::implicit_gemm {

// Brings the weights of all channels of a block's tiles, in stages of some taps; one thread.
template <typename S>
class WeightLoader {
  public:
    __device__ WeightLoader(const Problem& problem, const typename S::Operand* packed,
                            unsigned char* shared, typename Shared<S>::Head& head)
        : problem_(problem),
          packed_(reinterpret_cast<const unsigned char*>(packed)),
          head_(head),
          weights_(shared + Shared<S>(problem).weights) {}

    __device__ __forceinline__ void load() {
        for (TileWalk<S> tiles(problem_); tiles.exists(); tiles.advance()) {
            load(tiles.tile());
            if (problem_.weights_stay) return;  // they have come
        }
    }

  private:
    __device__ __forceinline__ void load(const Tile& tile) {
        constexpr int kRings = S::kSplitsFilters ? 2 : 1;
        const int stages = static_cast<int>(problem_.weight_stages);
        const int count = S::channel_blocks(problem_) * (S::padded_taps(problem_) / S::kStageTaps);
        const std::int64_t first =
            (tile.group * filter_blocks<S>(problem_) + tile.first_filter / S::kFilters) *
            std::int64_t{kRings};
#pragma unroll 1
        for (int i = 0; i < count; ++i) {
#pragma unroll
            for (int ring = 0; ring < kRings; ++ring) {
                ptx::mbarrier_wait(head_.weights_empty[ring] + ring_.stage, ring_.parity ^ 1);
                ptx::Barrier* full = head_.weights_full[ring] + ring_.stage;
                ptx::mbarrier_arrive_expect_tx(full, S::kStageBytes);
                ptx::cp_async_bulk(weights_ + (ring * stages + ring_.stage) * S::kStageBytes,
                                   packed_ + ((first + ring) * count + i) * S::kStageBytes,
                                   S::kStageBytes, full);
            }
            ring_.advance(stages);
        }
    }

    const Problem& problem_;
    const unsigned char* packed_;
    typename Shared<S>::Head& head_;
    unsigned char* weights_;
    Ring ring_;
};

}  // namespace convsmith::implicit_gemm
