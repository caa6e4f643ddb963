"""How the depthwise family cuts a convolution into blocks, and a block's share into tiles."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from convsmith.kernels.depthwise_tiles import (
    MOST_CHANNELS_AT_ONCE,
    SPREAD_RUN,
    Axis,
    block_of,
    columns_of,
    computed,
    even_part,
    planes_together,
    rows_of,
    spreads_taps,
    stores_directly,
    terms_of_a_chain,
    thread_filters,
    thread_tile,
)
from convsmith.spec import ConvSpec, Direction, Pair

STAGES = (2, 1)  # tiles in shared memory at once
REPEATS = (1, 2, 4)  # tiles that a thread computes of a block's tile
HEAD_BYTES = 256  # kHeadBytes of depthwise_convolve.cuh and depthwise_weight.cuh
SHARED_BYTES = 96 * 1024  # a block may have as much on every GPU of LEAST_CAPABILITY and newer
MULTIPROCESSOR_BYTES = 226 * 1024  # of shared memory, for all blocks of an H100 or H200
MOST_WORKSPACE_BYTES = 64 * 2**20


@dataclass(frozen=True)
class Configuration:
    """How one ConvSpec is cut into blocks. Pairs are (rows, columns).

    Args:
        tile: outputs of a thread; of a weight gradient positions of dy, or taps if ``spreads``.
        thread_filters: filters of a thread (channels, in a weight gradient).
        spreads: a weight gradient whose threads own taps.
        whole_rows: tiles hold whole rows, as they lie in memory.
        direct: threads store their outputs where they belong.
        together: planes of a channels_last tensor that lie interleaved in shared memory, or 1.
        stages: tiles that are in shared memory at once.
        resident: blocks that share a multiprocessor.
        bundles: planes, or groups of planes, of a block.
        bundle_filters: weight gradient: filters that share a bundle's input.
        thread_tiles: threads of a block down and across a plane.
        row_tiles: rows of threads' tiles that a block's tile has.
        part: weight gradient: rows and columns of dy in shared memory at once.
        source_size: of the tile of x (or dy) in shared memory.
        upstream_columns: weight gradient: of the tile of dy.
        threads: of a block.
        blocks: of the grid.
        splits: weight gradient: parts that images and rows are cut into.
        chain: weight gradient: parts (rows, if ``spreads``) of dy in one chain of additions.
        shared_bytes: of a block.
        workspace_bytes: of partial sums.
    """

    tile: Pair
    thread_filters: int
    spreads: bool
    whole_rows: bool
    direct: bool
    together: int
    stages: int
    resident: int
    bundles: int
    bundle_filters: int
    thread_tiles: Pair
    row_tiles: int
    part: Pair
    source_size: Pair
    upstream_columns: int
    threads: int
    blocks: int
    splits: int
    chain: int
    shared_bytes: int
    workspace_bytes: int


def configure(spec: ConvSpec, multiprocessors: int) -> Configuration:
    """The tiling for ``spec`` on a GPU of ``multiprocessors``."""
    if spec.direction is Direction.GRAD_WEIGHT:
        return configure_weight_gradient(spec, multiprocessors)
    source_shape, _, out_shape, _ = computed(spec)
    itemsize = spec.dtype.itemsize
    tile, filters, together = thread_tile(spec), thread_filters(spec), planes_together(spec)
    rows, columns = rows_of(spec, tile[0]), columns_of(spec, tile[1])
    sums, outputs = source_shape[1] // spec.groups, out_shape[1] // spec.groups
    channels = min(sums, MOST_CHANNELS_AT_ONCE)
    bundles_of_image = spec.groups * -(-outputs // filters)
    filter_row = -(-spec.weight_shape[3] * filters // 4) * 4

    def attempt(threads: int, stages: int, most_bundles: int, repeats: int) -> Configuration:
        thread_tiles = cut_plane(out_shape[2:], tile, threads, together)
        whole_rows = takes_whole_rows(spec, columns, thread_tiles[1] * tile[1])
        direct = whole_rows and stores_directly(spec)
        row_tiles = thread_tiles[0]
        if direct:
            all_row_tiles = -(-out_shape[2] // tile[0])
            row_tiles = even_part(all_row_tiles, row_tiles * repeats)
            thread_tiles = -(-row_tiles // repeats), thread_tiles[1]
        bundles = together
        if together == 1 and filters >= outputs and sums <= MOST_CHANNELS_AT_ONCE:
            fitting = min(threads // math.prod(thread_tiles), most_bundles, bundles_of_image)
            bundles = even_part(bundles_of_image, max(1, fitting))
        size = (row_tiles, thread_tiles[1])
        source_size = tile_size_of(spec, rows, columns, size, whole_rows, together)
        vector = 16 // itemsize
        run = thread_tiles[1] * tile[1]
        run = run if together > 1 else (run + 2 * vector - 2) // vector * vector
        out = 0 if direct else filters * thread_tiles[0] * tile[0] * run
        tile_size = up_to_eights(bundles * max(channels * math.prod(source_size), out))
        filter_size = up_to_eights(bundles * channels * spec.weight_shape[2] * filter_row)
        tiles = out_shape[0] * -(-bundles_of_image // bundles)
        for extent, count, one in zip(out_shape[2:], size, tile, strict=True):
            tiles *= -(-extent // (count * one))
        block_threads = -(-bundles * math.prod(thread_tiles) // 32) * 32
        shared_bytes = HEAD_BYTES + stages * (tile_size + filter_size) * itemsize
        resident = resident_blocks(spec, block_threads, shared_bytes)
        return Configuration(
            tile=tile,
            thread_filters=filters,
            spreads=False,
            whole_rows=whole_rows,
            direct=direct,
            together=together,
            stages=stages,
            resident=resident,
            bundles=bundles,
            bundle_filters=1,
            thread_tiles=thread_tiles,
            row_tiles=row_tiles,
            part=(0, 0),
            source_size=source_size,
            upstream_columns=0,
            threads=block_threads,
            blocks=min(tiles, resident * multiprocessors),
            splits=1,
            chain=0,
            shared_bytes=shared_bytes,
            workspace_bytes=0,
        )

    blocks = math.prod(block_of(spec)) // 128 * multiprocessors
    return best_of(spec, attempt, -(-out_shape[0] * bundles_of_image // blocks))


def configure_weight_gradient(spec: ConvSpec, multiprocessors: int) -> Configuration:
    """The tiling of a weight gradient."""
    out_channels, group_channels, *kernel_size = spec.weight_shape
    group_filters = out_channels // spec.groups
    itemsize = spec.dtype.itemsize
    tile, channels, together = thread_tile(spec), thread_filters(spec), planes_together(spec)
    spreads = spreads_taps(spec)
    columns = columns_of(spec, tile[1])
    filters = 1 if spreads else even_part(group_filters, 4)
    one_bundle_each = filters >= group_filters and channels >= group_channels
    all_bundles = spec.groups * -(-group_filters // filters) * -(-group_channels // channels)
    tap_tiles = [-(-taps // one) for taps, one in zip(kernel_size, tile, strict=True)]

    def attempt(threads: int, stages: int, most_bundles: int, repeats: int) -> Configuration:
        if spreads:
            runs = max(
                1, min(-(-spec.output_size[1] // SPREAD_RUN), threads // math.prod(tap_tiles))
            )
            part = (min(spec.output_size[0], 64), min(spec.output_size[1], runs * SPREAD_RUN))
            repeats = row_tiles = 1
            thread_tiles = (runs, math.prod(tap_tiles))
            whole_rows = False
            rows, reach = (
                (size - 1) * stride + (count * one - 1) * dilation + 1
                for size, stride, count, one, dilation in zip(
                    (part[0], runs * SPREAD_RUN),
                    spec.stride,
                    tap_tiles,
                    tile,
                    spec.dilation,
                    strict=True,
                )
            )
            source_size = (rows, aligned_columns(columns, reach, itemsize))
        else:
            thread_tiles = cut_plane(spec.output_size, tile, threads // filters, together)
            repeats = max(1, min(repeats, terms_of_a_chain(spec) // math.prod(tile)))
            row_tiles = even_part(-(-spec.output_size[0] // tile[0]), thread_tiles[0] * repeats)
            thread_tiles = -(-row_tiles // repeats), thread_tiles[1]
            part = (row_tiles * tile[0], thread_tiles[1] * tile[1])
            whole_rows = takes_whole_rows(spec, columns, part[1])
            size = (row_tiles, thread_tiles[1])
            source_size = tile_size_of(
                spec, rows_of(spec, tile[0]), columns, size, whole_rows, together
            )
        vector = 16 // itemsize
        pair_threads = math.prod(thread_tiles)
        bundles = together
        if together == 1:
            fitting = threads // (filters * pair_threads) if one_bundle_each else 1
            bundles = even_part(all_bundles, max(1, min(fitting, most_bundles)))
        upstream_columns = part[1] if together > 1 else -(-part[1] // vector) * vector
        block_threads = -(-bundles * filters * pair_threads // 32) * 32
        sets = -(-all_bundles // bundles)
        items = spec.input_shape[0] * math.prod(
            -(-size // one) for size, one in zip(spec.output_size, part, strict=True)
        )
        terms_at_once = SPREAD_RUN if spreads else repeats * math.prod(tile)
        chain = max(1, terms_of_a_chain(spec) // terms_at_once)
        values = channels * math.prod(kernel_size) + 1
        totals = -(-bundles * filters * values * 8 // 16) * 16
        x = up_to_eights(bundles * channels * math.prod(source_size))
        y_rows = min(part[0], spec.output_size[0]) if whole_rows else part[0]
        y = bundles * filters * y_rows * upstream_columns
        stage = up_to_eights(max(x + y, 8 * block_threads * 8 // itemsize))
        shared_bytes = HEAD_BYTES + totals + stages * stage * itemsize
        resident = resident_blocks(spec, block_threads, shared_bytes)
        outputs = math.prod(spec.weight_shape) + out_channels
        fitting = MOST_WORKSPACE_BYTES // (8 * outputs)
        splits = max(1, min(resident * multiprocessors // sets, items, fitting))
        return Configuration(
            tile=tile,
            thread_filters=channels,
            spreads=spreads,
            whole_rows=whole_rows,
            direct=False,
            together=together,
            stages=stages,
            resident=resident,
            bundles=bundles,
            bundle_filters=filters,
            thread_tiles=thread_tiles,
            row_tiles=row_tiles,
            part=part,
            source_size=source_size,
            upstream_columns=upstream_columns,
            threads=block_threads,
            blocks=sets * splits,
            splits=splits,
            chain=chain,
            shared_bytes=shared_bytes,
            workspace_bytes=8 * splits * outputs if splits > 1 else 0,
        )

    blocks = math.prod(block_of(spec)) // 128 * multiprocessors
    return best_of(spec, attempt, -(-spec.input_shape[0] * all_bundles // blocks))


def resident_blocks(spec: ConvSpec, threads: int, shared_bytes: int) -> int:
    """How many blocks share a multiprocessor: as registers and shared memory allow."""
    by_registers = math.prod(block_of(spec)) // threads
    by_memory = MULTIPROCESSOR_BYTES // (shared_bytes + 1024)
    return max(1, min(by_registers, by_memory))


def best_of(
    spec: ConvSpec, attempt: Callable[[int, int, int, int], Configuration], most_bundles: int
) -> Configuration:
    """The block that keeps a multiprocessor busiest, of all that fit into shared memory.

    What counts is the share of its threads that are at work; of the source rows that a block
    loads, how many are its own; and, as measured on an H200, a tenth more for a second stage, a
    quarter more for whole rows, and less for small blocks. Where none fits into shared memory,
    the block that takes the least is returned.
    """
    most_threads, blocks = block_of(spec)
    steps = spec.stride[0] if spec.direction is not Direction.GRAD_INPUT else 1 / spec.stride[0]

    def score(one: Configuration) -> tuple[float, int]:
        at_work = one.resident * one.bundles * one.bundle_filters * math.prod(one.thread_tiles)
        own_rows = min(one.row_tiles * one.tile[0] * steps / one.source_size[0], 1)
        value = min(at_work / (most_threads * blocks), 1) * (1 if one.spreads else own_rows)
        value *= (1 + 0.1 * (one.stages - 1)) * (1.25 if one.whole_rows else 1)
        return round(value * min(one.threads / 96, 1) ** 0.2, 3), one.threads

    tried = []
    threads = most_threads
    while threads >= 32:
        bundles = most_bundles
        while bundles >= 1:
            tried += [
                attempt(threads, stages, bundles, repeats)
                for stages in STAGES
                for repeats in REPEATS
            ]
            bundles = min(bundles, tried[-1].bundles) // 2
        threads //= 2
    fitting = [one for one in tried if one.shared_bytes <= SHARED_BYTES]
    if not fitting:
        return min(tried, key=lambda one: one.shared_bytes)
    return max(fitting, key=score)


def cut_plane(size: Pair, tile: Pair, threads: int, together: int) -> Pair:
    """(down, across): how many threads work on a plane at once.

    Whole rows where they fit, for then what a block stores is one contiguous run; else a
    multiple of eight across, so that every band begins at a multiple of 16 bytes. Bands of
    equal height. Interleaved planes share the threads, and their rows are short.
    """
    down, across = (-(-extent // one) for extent, one in zip(size, tile, strict=True))
    if together > 1:
        threads //= together
        across = min(across, max(1, threads // 2))
    elif across > threads:
        across = max(threads // 2 // 8 * 8, 8)
    return even_part(down, max(1, threads // across)), across


def takes_whole_rows(spec: ConvSpec, columns: Axis, tile_columns: int) -> bool:
    """Whether a tile can hold whole rows as they are: contiguous, and as wide as the output."""
    read = [computed(spec)[1]]
    if spec.direction is Direction.GRAD_WEIGHT:
        read.append(spec.output_strides)
    width = spec.output_shape[3]
    if spec.direction is Direction.GRAD_INPUT:
        width = spec.input_shape[3]
    first_is_near = columns.first < 16 // spec.dtype.itemsize
    return first_is_near and tile_columns >= width and all(strides[3] == 1 for strides in read)


def tile_size_of(
    spec: ConvSpec,
    rows: Axis,
    columns: Axis,
    thread_tiles: Pair,
    whole_rows: bool,
    together: int,
) -> Pair:
    """Rows and columns of the tile that is read, in shared memory."""
    down, across = (
        (count - 1) * axis.advance + axis.extent
        for count, axis in zip(thread_tiles, (rows, columns), strict=True)
    )
    if together > 1:
        return down, across
    across = aligned_columns(columns, across, spec.dtype.itemsize)
    vector = 16 // spec.dtype.itemsize
    if whole_rows:
        is_gradient = spec.direction is Direction.GRAD_INPUT
        _, _, height, width = spec.output_shape if is_gradient else spec.input_shape
        left = columns.first % vector - columns.first
        after = spec.padding[1]  # kZerosAfter of depthwise_axis.cuh
        if is_gradient:
            reach = spec.dilation[1] * (spec.weight_shape[3] - 1)
            after = max(0, -((spec.padding[1] - reach) // spec.stride[1]))
        across = max(across, -(-(left + width + after) // vector) * vector)
        if spec.weight_shape[2] > 1 if is_gradient else spec.padding[0] > 0:
            down = min(down, height)  # rows outside are skipped
    # An odd number of vectors: neighbouring rows begin in different banks.
    return down, across + vector * (across // vector % 2 == 0)


def aligned_columns(columns: Axis, reach: int, itemsize: int) -> int:
    """Columns of a tile in which ``reach`` are needed, with what aligns them to 16 bytes."""
    vector = 16 // itemsize
    return -(-(columns.first % vector + reach) // vector) * vector


def up_to_eights(elements: int) -> int:
    """``elements`` rounded up so that what follows them in shared memory is aligned."""
    return -(-elements // 8) * 8
