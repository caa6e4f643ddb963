"""How the implicit_gemm family cuts a convolution into tiles, and shares shared memory out."""

from __future__ import annotations

import math
from dataclasses import dataclass

from convsmith.kernels.implicit_gemm_cut import (
    FLAT_SHAPES,
    FLAT_SINGLE_SHAPES,
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
MOST_STAGE_TAPS = 4
MOST_PATCH_ROWS = 2**15  # of the input, that a patch reaches over
MOST_PATCH_COLUMNS = 2**16
SHARED_BYTES = 227 * 1024
STAGING_BYTES = 8 * 8 * (HALF + 8) * 4
LEAST_GROUP_CHANNELS = 8
LONG_SUM = {Direction.FORWARD: 1536, Direction.GRAD_INPUT: 288}  # terms
SMALL_PLANE = 32  # rows and columns


def configure_tiles(spec: ConvSpec, multiprocessors: int) -> Configuration | None:
    """The tiling for ``spec`` on a GPU of ``multiprocessors``; None where none fits."""
    attempts = [
        (rounds(forward, one) * tile_us(forward, one), one)
        for forward in forwards_of(spec)
        for one in fitting_tilings(spec, forward, multiprocessors)
    ]
    return min(attempts, key=lambda timed: timed[0])[1] if attempts else None


def fitting_tilings(
    spec: ConvSpec,
    forward: Forward,
    multiprocessors: int,
) -> list[Configuration]:
    """Tilings for ``forward``, which computes ``spec``, that fit into shared memory."""
    sums = sums_of(forward, spec)
    flat = forward.channels < LEAST_GROUP_CHANNELS and forward.phases is None
    if sums.short:
        shapes: tuple[Halves, ...] = FLAT_SINGLE_SHAPES if flat else SINGLE_SHAPES
    else:
        shapes = FLAT_SHAPES if flat else SHAPES
    # Few filters leave a warpgroup none of its own: it takes more pixels, if their patch fits.
    for splits in (False, True) if forward.filters <= ROWS_OF_BLOCK else (True,):
        fitting = [
            one
            for shape in shapes
            if (one := attempt(forward, sums, multiprocessors, splits, shape)) is not None
        ]
        if fitting:
            return fitting
    return []


@dataclass(frozen=True)
class Sums:
    """How products are summed.

    Args:
        products: of 16-bit operands that make one.
        short: the tensor cores' are of 16 terms, and some of them are added up apart.
        stage_taps: the most taps that the tensor cores sum up: they truncate.
    """

    products: int
    short: bool
    stage_taps: int


def sums_of(forward: Forward, spec: ConvSpec) -> Sums:
    """How ``forward``, which computes ``spec``, is summed."""
    if spec.precision is not Precision.FLOAT32:
        return Sums(1, False, MOST_STAGE_TAPS)
    if needs_short_sums(forward, spec):
        return Sums(3, True, MOST_STAGE_TAPS)
    return Sums(3, False, 3)


def needs_short_sums(forward: Forward, spec: ConvSpec) -> bool:
    """Whether sums of the float32 class err more than cuDNN's unless they are of few terms.

    They do where cuDNN takes an algorithm with short sums, Winograd or FFT, as measured: in
    forwards of small planes, and in input gradients.
    """
    is_long = forward.terms >= LONG_SUM[spec.direction]
    return is_long and (
        spec.direction is Direction.GRAD_INPUT or max(forward.out_size) <= SMALL_PLANE
    )


def attempt(
    spec: Forward,
    sums: Sums,
    multiprocessors: int,
    splits_filters: bool,
    shape: Halves,
) -> Configuration | None:
    """One tiling, or None where it does not fit into shared memory."""
    if shape.owns_sectors and not can_own_sectors(spec):
        return None
    products = sums.products
    parts = 2 if products == 3 else 1
    if splits_filters:
        group_shift, tile = (0, 0), (shape.rows, shape.width)
    elif shape.is_flat:
        group_shift, tile = (0, shape.width), (1, 2 * shape.width)
    else:
        group_shift, tile = (shape.rows, 0), (2 * shape.rows, shape.width)
    unfolds = spec.channels < LEAST_GROUP_CHANNELS
    channels = unfolded_channels(spec) if unfolds else spec.channels
    piece, lead = choose_piece(spec) if unfolds else (1, 0)
    kernel = (spec.kernel[0], 1) if unfolds else spec.kernel
    tap_counts = spec.tap_counts
    stride = spec.stride[0]
    phases, reach = [1, 1], [0, 0]
    if spec.phases is not None:
        reach = list(spec.reach)
    else:
        for axis, (one, step, dilation) in enumerate(
            zip(kernel, spec.stride, spec.dilation, strict=True)
        ):
            phases[axis] = met = min(one, step // math.gcd(step, dilation))
            reach[axis] = max(
                (r * dilation - (r % met) * dilation % step) // step for r in range(one)
            )
    if unfolds:
        tap_counts = tuple(count // spec.kernel[1] for count in tap_counts)
        reach[1] = 0
    if shape.is_flat:
        row_pixels = spec.out_size[1]
        patch_rows, pitch = 1, tile[1] + reach[0] * row_pixels
    else:
        patch_rows, pitch = tile[0] + reach[0], tile[1] + reach[1]
        row_pixels = pitch
    if shape.owns_sectors:
        tile = (tile[0], tile[1] - SECTOR_BYTES // spec.itemsize)
    if patch_rows * stride >= MOST_PATCH_ROWS or pitch * spec.stride[1] >= MOST_PATCH_COLUMNS:
        return None
    pixels = math.prod(phases) * patch_rows * pitch
    needed = (spec.out_size[0] - 1) * stride + spec.reach[0] + 1
    tall_height = -(-needed // stride) * stride
    rings = 2 if splits_filters else 1
    block_filters = ROWS_OF_BLOCK * rings
    filter_blocks = len(tap_counts) * -(-spec.filters // block_filters)
    stage_taps = choose_stage_taps(tap_counts, sums.stage_taps)
    all_taps = [-(-count // stage_taps) * stage_taps for count in tap_counts]
    padded_taps = max(all_taps)
    if len(all_taps) * padded_taps > MOST_TAPS:
        return None
    itemsize = spec.itemsize
    at_once = 1 if itemsize == 4 and not unfolds else 2
    group_bytes = at_once * VECTOR * LOADING_THREADS[products] * itemsize
    tables = (5 if unfolds else 3) * -(-pixels // 4) * 4 * 4
    few_taps = unfolds or max(tap_counts) == 1
    for block_channels, patch_stages, weight_stages in rings_to_try(channels, few_taps):
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
        rows, columns = spec.batch * (tall_height // stride), spec.out_size[1]
        if shape.is_flat:
            rows, columns = 1, rows * columns
        tiles = (-(-rows // tile[0]), -(-columns // tile[1]))
        padded = spec.groups * filter_blocks * block_filters
        all_tiles = math.prod(tiles) * spec.groups * filter_blocks
        packed = padded // ROWS_OF_BLOCK * all_stages * stage_bytes
        return Configuration(
            products=products,
            short_sums=sums.short,
            apart=spec.phases is not None and spec.phases.apart > 1,
            filter_blocks=filter_blocks,
            splits_filters=splits_filters,
            unfolds=unfolds,
            piece=piece,
            lead=lead,
            shape=shape,
            tall_height=tall_height,
            phases=(phases[0], phases[1]),
            tile=tile,
            group_shift=group_shift,
            patch_rows=patch_rows,
            pitch=pitch,
            row_pixels=row_pixels,
            vectors=-(-channels // VECTOR),
            channel_blocks=channel_blocks,
            block_channels=block_channels,
            ahead=ahead,
            patch_stages=patch_stages,
            weight_stages=weight_stages,
            weights_stay=stay,
            stores_in_turn=shape.is_narrow and splits_filters and itemsize == 4,
            stores_pairs=stores_pairs(spec, shape),
            stores_runs=stores_runs(spec, shape),
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
    """Where there are few: each with each of the filter's columns, which fill whole vectors."""
    return spec.channels * -(-spec.kernel[1] // VECTOR) * VECTOR


def choose_piece(spec: Forward) -> tuple[int, int]:
    """Elements of an unfolded vector that are copied as one; zeros before its filter's columns.

    Pieces lie in memory as such copies must, and are within the image or beyond it.
    """
    if spec.itemsize != 4 or spec.dilation[1] != 1 or spec.in_strides[3] != 1:
        return 1, 0
    columns = spec.kernel[1]
    for piece in (4, 2):
        lead = -spec.padding[1] % piece
        steps = (spec.stride[1], spec.in_size[1], *spec.in_strides[:3])
        fits = -(-(columns + lead) // VECTOR) == -(-columns // VECTOR)
        if fits and all(step % piece == 0 for step in steps):
            return piece, lead
    return 1, 0


def rings_to_try(channels: int, of_few_taps: bool) -> list[tuple[int, int, int]]:
    """(channels of a patch, patches, stages of weights; 0 for all), the best first.

    Of few taps, several instructions' channels make a patch, so that it is worth a barrier.
    """
    whole = -(-channels // WGMMA_TERMS) * WGMMA_TERMS
    blocks = sorted({min(whole, 64), min(whole, 32), 16}, reverse=True) if of_few_taps else [16]
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
    if shape.is_flat:
        return False
    *others, columns = forward.out_strides
    whole = 2 if shape.is_narrow else SECTOR_BYTES // forward.itemsize
    aligned = all(step % whole == 0 for step in others)
    return columns == 1 and forward.out_size[1] % 2 == 0 and aligned


def stores_runs(forward: Forward, shape: Halves) -> bool:
    """Whether the pixels of a half are neighbours in memory, those of an image at least."""
    *_, of_row, of_column = forward.out_strides
    goes_on = of_row == forward.out_size[1] or not shape.is_flat
    return not shape.is_narrow and of_column == 1 and goes_on


def can_own_sectors(forward: Forward) -> bool:
    """Whether tiles of long rows would store sectors in part that their neighbours could."""
    *others, columns = forward.out_strides
    aligned = all(step * forward.itemsize % SECTOR_BYTES == 0 for step in others)
    return columns == 1 and not aligned and forward.phases is None and forward.out_size[1] > HALF


def choose_blocks(tiles: int, multiprocessors: int, kinds: int) -> int:
    """Blocks of the grid. Each comes across filter blocks of all kinds, which take turns."""
    if tiles <= multiprocessors:
        return tiles
    return next(one for one in range(multiprocessors, 0, -1) if math.gcd(one, kinds) == 1)


def choose_stage_taps(counts: tuple[int, ...], most: int) -> int:
    """Taps of a stage of weights: few enough for a ring, and fitting well into all of them."""
    return min(
        range(most, 0, -1),
        key=lambda one: sum(-(-count // one) for count in counts) * one * (1 + 0.5 / one),
    )
