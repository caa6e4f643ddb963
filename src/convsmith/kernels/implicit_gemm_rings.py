"""How a block of the implicit_gemm family uses shared memory: rings of patches and weights."""

from __future__ import annotations

from dataclasses import dataclass

from convsmith.kernels.implicit_gemm_cut import HALF, ROWS_OF_BLOCK, WGMMA_TERMS, Rings
from convsmith.kernels.implicit_gemm_phases import MOST_APART

# kVector, kMostStages and kMostTaps of implicit_gemm_problem.cuh.
VECTOR = 8  # channels
MOST_STAGES = 32
MOST_TAPS = 512
MOST_BYTES_AHEAD = 42 * 1024  # of loads on their way
FEWEST_BYTES_AHEAD = 9 * 1024
MANY_CHANNELS = 128  # of a group: four patches of 32
SHARED_BYTES = 227 * 1024  # of a block, at most
STAGING_BYTES = 8 * 8 * (HALF + 8) * 4  # of eight warps, eight filters each


@dataclass(frozen=True)
class BlockUse:
    """What a block needs shared memory for.

    Args:
        parts: vectors of an operand, whose channels come together.
        loading_threads: that bring patches.
        itemsize: bytes of an element.
        channels: of a group, unfolded where they are.
        unfolds: each channel and column of the filter is a channel of its own.
        interleaves: filters are phases of an input gradient's stride.
        pixels: of a patch.
        rings: of weights.
        filter_blocks: of all groups.
        stage_taps: of a stage of weights.
        most_taps: of a tile, with those that fill the last stage.
        has_few_taps: several instructions' channels make a patch, to be worth a barrier.
    """

    parts: int
    loading_threads: int
    itemsize: int
    channels: int
    unfolds: bool
    interleaves: bool
    pixels: int
    rings: int
    filter_blocks: int
    stage_taps: int
    most_taps: int
    has_few_taps: bool

    @property
    def group_bytes(self) -> int:
        """Of the vectors that all loading threads copy at once."""
        at_once = vectors_at_once(self.loading_threads, self.itemsize, self.unfolds)
        return at_once * VECTOR * self.itemsize

    @property
    def fixed_bytes(self) -> int:
        """Beside the rings."""
        tables = (5 if self.unfolds else 3) * -(-self.pixels // 4) * 4 * 4
        return head_bytes(self.unfolds, self.interleaves) + STAGING_BYTES + tables


def vectors_at_once(loading_threads: int, itemsize: int, unfolds: bool) -> int:
    """What all loading threads copy as a group: S::kAtOnce vectors each."""
    of_thread = 1 if itemsize == 4 and not unfolds else 2
    return of_thread * loading_threads


def share_out(use: BlockUse) -> Rings | None:
    """The best rings that fit, or None."""
    choices = rings_to_try(use.channels, use.has_few_taps)
    for block_channels, patch_stages, weight_stages in choices:
        channel_blocks = -(-use.channels // block_channels)
        stage_bytes = use.stage_taps * use.parts * block_channels * ROWS_OF_BLOCK * 2
        all_stages = channel_blocks * use.most_taps // use.stage_taps
        stay = weight_stages == 0
        if stay and (all_stages > MOST_STAGES or use.filter_blocks > 1):
            continue
        weight_stages = all_stages if stay else weight_stages
        shared = use.fixed_bytes + use.rings * weight_stages * stage_bytes
        shared += patch_stages * use.parts * block_channels * 2 * use.pixels
        left = min(SHARED_BYTES - shared, MOST_BYTES_AHEAD + use.group_bytes)
        ahead = left // use.group_bytes - 1
        if ahead * use.group_bytes < FEWEST_BYTES_AHEAD:
            continue
        return Rings(
            channel_blocks=channel_blocks,
            block_channels=block_channels,
            ahead=ahead,
            patch_stages=patch_stages,
            weight_stages=weight_stages,
            weights_stay=stay,
            shared_bytes=shared + (ahead + 1) * use.group_bytes,
            weight_bytes=all_stages * stage_bytes,
        )
    return None


def rings_to_try(channels: int, has_few_taps: bool) -> list[tuple[int, int, int]]:
    """(channels of a patch, patches, stages of weights; 0 for all), the best first.

    Of few taps, several instructions' channels make a patch, so that it is worth a barrier. Of
    more taps, those of two do, where there are many patches and they leave room for all stages.
    """
    whole = -(-channels // WGMMA_TERMS) * WGMMA_TERMS
    blocks = {min(whole, 64), min(whole, 32), 16} if has_few_taps else {16}
    large = [] if has_few_taps or whole < MANY_CHANNELS else [(32, 4, 4), (32, 4, 3)]
    return large + [
        (block, patches, weights)
        for choice in ((4, 3), (2,), (1,))
        for block in sorted(blocks, reverse=True)
        for weights in (0, 4, 3, 2)
        for patches in choice
    ]


def head_bytes(unfolds: bool, interleaves: bool) -> int:
    """kHeadBytes of Shared in implicit_gemm_problem.cuh."""
    head = 6 * MOST_STAGES * 8 + 4 * MOST_STAGES + 2 * 8 * 4
    head += 4 * MOST_TAPS + 3 * 4 * (MOST_TAPS if unfolds else 1)
    head += 4 * (MOST_APART if interleaves else 1)
    return -(-head // 128) * 128
