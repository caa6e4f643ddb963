"""How long the implicit_gemm family takes, as fitted to an H100: what the planner weighs."""

from __future__ import annotations

import math

from convsmith.kernels.implicit_gemm_cut import PARTS, Configuration, Halves
from convsmith.kernels.implicit_gemm_forward import Forward, forwards_of
from convsmith.kernels.implicit_gemm_rings import VECTOR, vectors_at_once
from convsmith.roofline import Ceilings
from convsmith.spec import ConvSpec

BEGIN_AND_END_MS = 0.016
PACK_MS_PER_WEIGHT = 2.0e-9

# Of a matrix product that is long enough for the clock to sink: tiles are shorter.
SHARE_OF_RATE = 1.3
H100_FP16_TFLOPS_PER_MULTIPROCESSOR = 760 / 132

# Microseconds of a multiprocessor. A tile of two halves has 128 filters of 256 pixels, or 64 of
# 512.
TILE_OUTPUTS = 128 * 256
# Of several products: each, adding up the tensor cores' sums, and keeping what is lost; in
# products.
SPLIT_PRODUCT = 1.15
ADDED_SUM = 0.86
KEPT_LOSS = 0.88
# Vectors that are loaded in one, by an operand's parts and the threads that load: of long rows,
# of short ones, and of flat tiles' short rows.
LONG_ROWS = {(1, 224): 592.0, (2, 224): 444.0, (2, 96): 302.0, (3, 96): 265.0}
SHORT_ROWS = {(1, 224): 435.0, (2, 224): 387.0, (2, 96): 229.0, (3, 96): 226.0}
FLAT_ROWS = {(1, 224): 465.0, (2, 224): 388.0, (2, 96): 242.0, (3, 96): 178.0}
# Of all of these, of 16 bits: elements are read before others are begun; and runs of 16 bytes.
ELEMENTS_SHARE_16_BITS = 0.85
RUNS_SHARE_16_BITS = 1.2
STRIDED_VECTORS_SHARE = 1 / 6  # where neighbouring pixels are no neighbours in memory
STORE_LONG = 6.5
STORE_SECTORS = 7.7  # of short rows, of a stride's phases, and long rows but for their ends
STORE_UNALIGNED = 10.2
STORE_FLAT = 14.9
STORE_16_BITS = 0.7  # of the time of 32
# What all multiprocessors write, more than caches hold: sectors in part, by eight neighbours of
# a row; and runs of 128 whose ends are sectors that are written in part.
CACHED_BYTES = 32e6
PARTIAL_BYTES_PER_US = 0.5e6
RUNS_BYTES_PER_US = 1.45e6

OVERLAP = 0.72  # of the second longest of a tile's three parts


def predicted_tiles_ms(
    spec: ConvSpec, configuration: Configuration, ceilings: Ceilings, multiprocessors: int
) -> float:
    """Time of ``spec``: memory, or the tiles that a multiprocessor goes over one by one."""
    forward = forwards_of(spec)[configuration.way]
    rate = ceilings.fp16_TFLOPs / multiprocessors / H100_FP16_TFLOPS_PER_MULTIPROCESSOR
    memory_ms = spec.bytes_moved / (ceilings.copy_TBps * 1e9)
    filters = forward.groups * configuration.filter_blocks * configuration.block_filters
    weights = filters * forward.channels * math.prod(forward.kernel)
    kernel_ms = max(tiles_us(forward, configuration, rate) / 1e3, memory_ms)
    return kernel_ms + BEGIN_AND_END_MS + PACK_MS_PER_WEIGHT * weights


def tiles_us(forward: Forward, configuration: Configuration, rate: float = 1) -> float:
    """Time of the block with the most tiles.

    A tile takes the longest of multiplying, loading and storing, and part of the second
    longest. Of the first one, nothing is stored before it has been multiplied.
    """
    parts = (
        products_us(configuration, rate),
        patches_us(forward, configuration),
        store_us(forward, configuration),
    )
    *before, store = parts
    first = max(before) + OVERLAP * min(before) + store
    *_, second, longest = sorted(parts)
    in_turn = first + (configuration.rounds - 1) * (longest + OVERLAP * second)
    return max(in_turn, partial_sectors_us(forward, configuration))


def products_us(configuration: Configuration, rate: float) -> float:
    """Time of a tile's products."""
    channels = configuration.rings.channel_blocks * configuration.rings.block_channels
    terms = channels * configuration.met_taps
    outputs = TILE_OUTPUTS * configuration.shape.count / 2
    products = float(configuration.products)
    if configuration.products > 1:
        products = SPLIT_PRODUCT * products + ADDED_SUM / configuration.sum_terms
    if configuration.sums.compensates:
        products += KEPT_LOSS
    operations = 2 * outputs * terms * products
    tera = SHARE_OF_RATE * rate * H100_FP16_TFLOPS_PER_MULTIPROCESSOR
    return operations / (tera * 1e6)


def patches_us(forward: Forward, configuration: Configuration) -> float:
    """Time of a tile's patches."""
    rates = SHORT_ROWS if configuration.shape.is_narrow else LONG_ROWS
    if configuration.has_padded_runs:
        rates = FLAT_ROWS
    per_us = rates[PARTS[configuration.products], configuration.loading_threads]
    if forward.in_strides[3] != 1:
        per_us *= STRIDED_VECTORS_SHARE
    if forward.itemsize == 2:
        copies_runs = configuration.patch.run_lead is not None
        per_us *= RUNS_SHARE_16_BITS if copies_runs else ELEMENTS_SHARE_16_BITS
    share = share_that_meets(forward) if configuration.rounds > 1 else 1
    return loaded_vectors(forward, configuration) * share / per_us


def loaded_vectors(forward: Forward, configuration: Configuration) -> int:
    """Those of a tile's patches, each in whole groups of what all threads copy at once."""
    at_once = vectors_at_once(
        configuration.loading_threads, forward.itemsize, configuration.unfolds
    )
    of_patch = configuration.rings.block_channels // VECTOR
    patches, rest = divmod(configuration.vectors, of_patch)
    groups = patches * -(-of_patch * configuration.patch.pixels // at_once)
    return (groups + -(-rest * configuration.patch.pixels // at_once)) * at_once


def share_that_meets(forward: Forward) -> float:
    """Of the filter blocks: an input gradient's phase without a tap loads nothing."""
    return sum(count > 0 for count in forward.tap_counts) / len(forward.tap_counts)


def store_us(forward: Forward, configuration: Configuration) -> float:
    """Time of storing a tile, in the mean: that of its filters that exist, and some waiting."""
    shape = configuration.shape
    if forward.phases is not None and forward.phases.fill_rows:
        in_sectors = forward.phases.stores_vectors and eights_share_sectors(forward, shape)
        time = STORE_SECTORS if in_sectors else STORE_UNALIGNED
    elif configuration.has_padded_runs:
        time = STORE_FLAT
    elif configuration.stores_runs:
        aligned = shape.owns_sectors or eights_share_sectors(forward, shape)
        time = STORE_LONG if aligned else STORE_SECTORS
    else:
        aligned = configuration.stores_pairs and eights_share_sectors(forward, shape)
        time = STORE_SECTORS if aligned else STORE_UNALIGNED
    share = shape.count / 2 * filters_that_exist(forward, configuration)
    return time * share * (STORE_16_BITS if forward.itemsize == 2 else 1)


def partial_sectors_us(forward: Forward, configuration: Configuration) -> float:
    """Time that memory takes to write, where sectors are written in part."""
    shape, phases = configuration.shape, forward.phases
    neighbours = phases.are_neighbours if phases else forward.out_strides[3] == 1
    aligned = eights_share_sectors(forward, shape)
    if shape.is_narrow:
        has_parts, per_us = not aligned or forward.sector > 8, PARTIAL_BYTES_PER_US
    else:
        whole = aligned or shape.owns_sectors or shape.is_flat
        has_parts, per_us = not whole, RUNS_BYTES_PER_US
    filters = forward.groups * len(forward.tap_counts) * forward.filters
    stored = forward.batch * filters * math.prod(forward.out_size) * forward.itemsize
    return stored / per_us if neighbours and has_parts and stored > CACHED_BYTES else 0.0


def eights_share_sectors(forward: Forward, shape: Halves) -> bool:
    """Whether eight neighbours, as a short row has, lie in one sector of the output.

    Of long rows it is asked, too. There, of 16 bits, it is half of what ``stores_pairs`` and
    ``can_own_sectors`` ask for, which is whole sectors.
    """
    if forward.phases is not None:
        return forward.phases.rows_are_sectors or not shape.is_narrow
    return forward.out_rows_begin_at_multiples_of(8)


def filters_that_exist(forward: Forward, configuration: Configuration) -> float:
    """The share of them: others fill blocks up."""
    filters = len(forward.tap_counts) * forward.filters
    return filters / (configuration.filter_blocks * configuration.block_filters)
