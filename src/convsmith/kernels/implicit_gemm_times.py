"""How long the implicit_gemm family takes, as fitted to an H100: what the planner weighs."""

from __future__ import annotations

import math

from convsmith.kernels.implicit_gemm_cut import Configuration
from convsmith.kernels.implicit_gemm_forward import Forward, forward_of
from convsmith.roofline import Ceilings
from convsmith.spec import ConvSpec

BEGIN_AND_END_MS = 0.009
PACK_MS_PER_TERM = 1.2e-6  # of a filter
SHARE_OF_MEMORY = 0.85

# Microseconds of a multiprocessor. A tile of two halves has 128 filters of 256 pixels, or 64 of
# 512.
TILE_OUTPUTS = 128 * 256
SHORT_SUMS = 1.1  # times as long
SHORT_SUMS_OF_PHASES = 1.3
# Of phases, where warpgroups have filters of their own: row phases apart, and tall tiles.
APART = 0.94
TALL_PHASES = 0.95
LONG_ROW = 128
H100_FP16_TFLOPS_PER_MULTIPROCESSOR = 760 / 132
SHARE_OF_RATE = 0.9
# Vectors that are loaded, by the number of products: of long rows, and of short ones.
LONG_ROWS = {1: 480.0, 3: 210.0}
SHORT_ROWS = {1: 420.0, 3: 185.0}
STRIDED_VECTORS_SHARE = 1 / 6  # where neighbouring pixels are no neighbours in memory
STORE_LONG = 8.5
STORE_LONG_UNALIGNED = 11.0
STORE_SHORT = 11.0
STORE_SHORT_UNALIGNED = 18.0
STORE_SINGLE = 25.0
STORE_PHASES_LONG = 10.0
STORE_PHASES_SHORT = 11.0
STORE_PHASES_UNALIGNED = 16.0
STORE_16_BITS = 0.7  # of the time of 32
# What tiles of short rows take more in images of long ones.
SHORT_ROWS_OF_LONG = 1.04
SHORT_ROWS_OF_LONG_UNALIGNED = 1.15
OVERLAP = 0.5  # of the second longest of a tile's three parts


def predicted_tiles_ms(
    spec: ConvSpec, configuration: Configuration, ceilings: Ceilings, multiprocessors: int
) -> float:
    """Time of ``spec``: memory, or the tiles that a multiprocessor goes over one by one."""
    forward = forward_of(spec, configuration.apart)
    rate = ceilings.fp16_TFLOPs / multiprocessors / H100_FP16_TFLOPS_PER_MULTIPROCESSOR
    last = store_us(forward, configuration)
    tiles_us = rounds(forward, configuration) * tile_us(forward, configuration, rate) + last
    memory_ms = spec.bytes_moved / (SHARE_OF_MEMORY * ceilings.copy_TBps * 1e9)
    terms = forward.channels * math.prod(forward.kernel)
    return max(tiles_us / 1e3, memory_ms) + BEGIN_AND_END_MS + PACK_MS_PER_TERM * terms


def rounds(forward: Forward, configuration: Configuration) -> int:
    """Tiles that a block goes over, the one with the most."""
    tiles = math.prod(configuration.tiles) * forward.groups * configuration.filter_blocks
    return -(-tiles // configuration.blocks)


def tile_us(forward: Forward, configuration: Configuration, rate: float = 1) -> float:
    """Time of a tile: the longest of multiplying, loading, storing, and part of the second."""
    channels = configuration.rings.channel_blocks * configuration.rings.block_channels
    terms = channels * configuration.met_taps
    outputs = TILE_OUTPUTS * configuration.shape.count // 2
    operations = 2 * outputs * terms * configuration.products
    tera = SHARE_OF_RATE * rate * H100_FP16_TFLOPS_PER_MULTIPROCESSOR
    vectors = configuration.vectors * configuration.patch.pixels * share_that_meets(forward)
    rates = SHORT_ROWS if configuration.shape.is_narrow else LONG_ROWS
    per_us = rates[configuration.products]
    if forward.in_strides[3] != 1:
        per_us *= STRIDED_VECTORS_SHARE
    *_, second, longest = sorted(
        (operations / (tera * 1e6), vectors / per_us, store_us(forward, configuration))
    )
    of_long = configuration.shape.is_narrow and forward.out_size[1] >= LONG_ROW
    slower = 1.0
    if of_long:
        fill_sectors = eights_share_sectors(forward) and forward.sector == 8
        slower = SHORT_ROWS_OF_LONG if fill_sectors else SHORT_ROWS_OF_LONG_UNALIGNED
    if forward.phases is not None and configuration.splits_filters:
        slower *= APART if configuration.apart else 1
        slower *= TALL_PHASES if configuration.shape.down > 1 else 1
    if configuration.short_sums:
        slower *= SHORT_SUMS if forward.phases is None else SHORT_SUMS_OF_PHASES
    return (longest + OVERLAP * second) * slower


def share_that_meets(forward: Forward) -> float:
    """Of the filter blocks: an input gradient's phase without a tap loads nothing."""
    return sum(count > 0 for count in forward.tap_counts) / len(forward.tap_counts)


def store_us(forward: Forward, configuration: Configuration) -> float:
    """Time of storing a tile, in the mean: that of its filters that exist, and some waiting."""
    aligned = eights_share_sectors(forward)
    phases = forward.phases
    if phases is not None and phases.fill_rows:
        time = STORE_PHASES_SHORT if configuration.shape.is_narrow else STORE_PHASES_LONG
        time = time if phases.stores_vectors else STORE_PHASES_UNALIGNED
    elif configuration.stores_pairs and configuration.shape.is_narrow:
        time = STORE_SHORT if aligned else STORE_SHORT_UNALIGNED
    elif configuration.stores_pairs or configuration.stores_runs:
        in_sectors = aligned or configuration.shape.owns_sectors
        time = STORE_LONG if in_sectors else STORE_LONG_UNALIGNED
    else:
        time = STORE_SINGLE
    share = configuration.shape.count / 2
    share *= 0.25 + 0.75 * filters_that_exist(forward, configuration)
    return time * share * (STORE_16_BITS if forward.itemsize == 2 else 1)


def eights_share_sectors(forward: Forward) -> bool:
    """Whether eight neighbours, as a short row has, lie in one sector of the output.

    Of long rows it is asked, too. There, of 16 bits, it is half of what ``stores_pairs`` and
    ``can_own_sectors`` ask for, which is whole sectors.
    """
    return forward.out_rows_begin_at_multiples_of(8)


def filters_that_exist(forward: Forward, configuration: Configuration) -> float:
    """The share of them: others fill blocks up."""
    filters = len(forward.tap_counts) * forward.filters
    return filters / (configuration.filter_blocks * configuration.block_filters)
