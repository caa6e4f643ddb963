"""How the implicit_gemm family cuts a convolution into tiles, and shares shared memory out."""

from __future__ import annotations

import math

from convsmith.kernels.implicit_gemm_cut import (
    HALF,
    ROWS_OF_BLOCK,
    SHAPES,
    SINGLE_SHAPES,
    Configuration,
    Halves,
)
from convsmith.kernels.implicit_gemm_forward import Forward, forwards_of
from convsmith.kernels.implicit_gemm_phases import MOST_APART
from convsmith.kernels.implicit_gemm_times import rounds, tile_us
from convsmith.spec import ConvSpec, Direction, Precision

VECTOR = 8
SECTOR_BYTES = 32
WGMMA_TERMS = 16
MOST_STAGES = 32
LOADING_THREADS = {1: 224, 3: 96}  # by the number of products
MOST_BYTES_AHEAD = 42 * 1024  # of loads on their way
FEWEST_BYTES_AHEAD = 9 * 1024
MOST_TAPS = 512
SHARED_BYTES = 227 * 1024
STAGING_BYTES = 8 * 8 * (HALF + 8) * 4
LEAST_GROUP_CHANNELS = 8
LONG_SUM = {Direction.FORWARD: 1536, Direction.GRAD_INPUT: 1024}  # terms
SMALL_PLANE = 32  # rows and columns
MANY_CHANNELS = 128


def configure_tiles(spec: ConvSpec, multiprocessors: int) -> Configuration | None:
    """The tiling for ``spec`` on a GPU of ``multiprocessors``; None where none fits."""
    attempts = [
        (rounds(forward, one) * tile_us(forward, one), one)
        for forward in forwards_of(spec)
        for one in fitting_tilings(spec, forward, multiprocessors)
    ]
    return min(attempts, key=lambda timed: timed[0])[1] if attempts else None


def fitting_tilings(spec: ConvSpec, forward: Forward, multiprocessors: int) -> list[Configuration]:
    """Tilings for ``forward``, which computes ``spec``, that fit into shared memory."""
    products = 3 if spec.precision is Precision.FLOAT32 else 1
    compensates = products == 3 and needs_compensation(forward, spec)
    shapes = SINGLE_SHAPES if compensates else SHAPES
    # Few filters leave a warpgroup none of its own: it takes more pixels, if their patch fits.
    for splits_filters in (False, True) if forward.filters <= ROWS_OF_BLOCK else (True,):
        attempts = [
            attempt(forward, products, compensates, multiprocessors, splits_filters, one)
            for one in shapes
        ]
        fitting = [one for one in attempts if one is not None]
        if fitting:
            return fitting
    return []


def needs_compensation(forward: Forward, spec: ConvSpec) -> bool:
    """Whether sums of the float32 class err more than cuDNN's unless they are compensated.

    They do where cuDNN takes an algorithm with short sums, Winograd or FFT, as measured: in
    forwards of small planes, and in input gradients of many filters or with dilation.
    """
    if forward.terms < LONG_SUM[spec.direction]:
        return False
    if spec.direction is Direction.FORWARD:
        return max(forward.out_size) <= SMALL_PLANE
    return forward.channels >= MANY_CHANNELS or spec.dilation != (1, 1)


def attempt(
    spec: Forward,
    products: int,
    compensates: bool,
    multiprocessors: int,
    splits_filters: bool,
    shape: Halves,
) -> Configuration | None:
    """One tiling, or None where it does not fit into shared memory."""
    kernel = spec.kernel
    parts = 2 if products == 3 else 1
    tile = (shape.rows * (1 if splits_filters else 2), shape.width)
    unfolds = spec.channels < LEAST_GROUP_CHANNELS
    channels = unfolded_channels(spec) if unfolds else spec.channels
    tap_counts = (1,) if unfolds else spec.tap_counts
    if unfolds and len(spec.tap_counts) > 1:
        return None
    stride = spec.stride[0]
    phases, reach = [1, 1], [0, 0]
    if spec.phases is not None and not unfolds:
        reach = list(spec.reach)
    elif not unfolds:
        for axis, (one, step, dilation) in enumerate(
            zip(kernel, spec.stride, spec.dilation, strict=True)
        ):
            phases[axis] = met = min(one, step // math.gcd(step, dilation))
            reach[axis] = max(
                (r * dilation - (r % met) * dilation % step) // step for r in range(one)
            )
    patch_rows, pitch = tile[0] + reach[0], tile[1] + reach[1]
    pixels = math.prod(phases) * patch_rows * pitch
    needed = (spec.out_size[0] - 1) * stride + spec.reach[0] + 1
    tall_height = -(-needed // stride) * stride
    if unfolds:
        tall_height = spec.out_size[0] * stride
    rings = 2 if splits_filters else 1
    block_filters = ROWS_OF_BLOCK * rings
    filter_blocks = len(tap_counts) * -(-spec.filters // block_filters)
    stage_taps = choose_stage_taps(tap_counts)
    all_taps = [-(-count // stage_taps) * stage_taps for count in tap_counts]
    padded_taps = max(all_taps)
    if len(all_taps) * padded_taps > MOST_TAPS:
        return None
    itemsize = spec.itemsize
    at_once = 1 if itemsize == 4 and not unfolds else 2
    group_bytes = at_once * VECTOR * LOADING_THREADS[products] * itemsize
    tables = (5 if unfolds else 3) * -(-pixels // 4) * 4 * 4
    for block_channels, patch_stages, weight_stages in rings_to_try(channels, max(tap_counts)):
        channel_blocks = -(-channels // block_channels)
        stage_bytes = stage_taps * parts * block_channels * ROWS_OF_BLOCK * 2
        all_stages = channel_blocks * padded_taps // stage_taps
        stay = weight_stages == 0
        if stay and (all_stages > MOST_STAGES or spec.groups * filter_blocks > 1):
            continue
        weight_stages = all_stages if stay else weight_stages
        shared = head_bytes(unfolds, spec.phases is not None) + STAGING_BYTES + tables
        shared += patch_stages * parts * block_channels * 2 * pixels
        shared += rings * weight_stages * stage_bytes
        left = min(SHARED_BYTES - shared, MOST_BYTES_AHEAD + group_bytes)
        ahead = left // group_bytes - 1
        if ahead * group_bytes < FEWEST_BYTES_AHEAD:
            continue
        shared += (ahead + 1) * group_bytes
        tiles = (
            -(-spec.batch * (tall_height // stride) // tile[0]),
            -(-spec.out_size[1] // tile[1]),
        )
        padded = spec.groups * filter_blocks * block_filters
        all_tiles = math.prod(tiles) * spec.groups * filter_blocks
        packed = padded // ROWS_OF_BLOCK * all_stages * stage_bytes
        return Configuration(
            products=products,
            compensates=compensates,
            apart=spec.phases is not None and spec.phases.apart > 1,
            filter_blocks=filter_blocks,
            splits_filters=splits_filters,
            unfolds=unfolds,
            shape=shape,
            tall_height=tall_height,
            phases=(phases[0], phases[1]),
            patch_rows=patch_rows,
            pitch=pitch,
            channel_blocks=channel_blocks,
            block_channels=block_channels,
            ahead=ahead,
            patch_stages=patch_stages,
            weight_stages=weight_stages,
            weights_stay=stay,
            stores_in_turn=channel_blocks == 1 and itemsize == 4,
            stores_pairs=stores_pairs(spec, shape),
            stores_runs=not shape.is_narrow and spec.out_strides[3] == 1,
            stage_taps=stage_taps,
            padded_taps=padded_taps,
            met_taps=sum(all_taps) / len(all_taps),
            tiles=tiles,
            blocks=choose_blocks(all_tiles, multiprocessors, len(tap_counts)),
            shared_bytes=shared,
            workspace_bytes=packed + 4 * padded,
        )
    return None


def unfolded_channels(spec: Forward) -> int:
    """Channels of each tap, where there are few: a filter row's taps fill whole vectors."""
    rows, columns = spec.kernel
    return spec.channels * rows * -(-columns // VECTOR) * VECTOR


def rings_to_try(channels: int, taps: int) -> list[tuple[int, int, int]]:
    """(channels of a patch, patches, stages of weights; 0 for all), the best first.

    Of a single tap, several instructions' channels make a patch, so that it is worth a barrier.
    """
    whole = -(-channels // WGMMA_TERMS) * WGMMA_TERMS
    blocks = sorted({min(whole, 64), min(whole, 32), 16}, reverse=True) if taps == 1 else [16]
    return [
        (block, patches, weights)
        for choice in ((4, 3), (2,), (1,))
        for block in blocks
        for weights in (0, 4, 3, 2)
        for patches in choice
    ]


def head_bytes(unfolds: bool, interleaves: bool) -> int:
    """kHeadBytes of Shared in implicit_gemm_problem.cuh."""
    head = 6 * MOST_STAGES * 8 + 4 * MOST_STAGES + 2 * 8 * 4
    head += 4 * MOST_TAPS + 3 * 4 * (MOST_TAPS if unfolds else 1)
    head += 4 * (MOST_APART if interleaves else 1)
    return -(-head // 128) * 128


def stores_pairs(forward: Forward, shape: Halves) -> bool:
    """Whether threads store pairs of neighbours: of rows of whole sectors, or in short rows."""
    *others, columns = forward.out_strides
    whole = 2 if shape.is_narrow else SECTOR_BYTES // forward.itemsize
    aligned = all(step % whole == 0 for step in others)
    return columns == 1 and forward.out_size[1] % 2 == 0 and aligned


def choose_blocks(tiles: int, multiprocessors: int, kinds: int) -> int:
    """Blocks of the grid. Each comes across filter blocks of all kinds, which take turns."""
    if tiles <= multiprocessors:
        return tiles
    return next(one for one in range(multiprocessors, 0, -1) if math.gcd(one, kinds) == 1)


def choose_stage_taps(counts: tuple[int, ...]) -> int:
    """Taps of a stage of weights: few enough for a ring, and fitting well into all of them."""
    return min(
        (4, 3, 2, 1),
        key=lambda one: sum(-(-count // one) for count in counts) * one * (1 + 0.1 / one),
    )
