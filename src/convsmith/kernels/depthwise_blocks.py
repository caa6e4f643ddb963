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
MOST_TAPS_AT_THE_SPEED_OF_MEMORY = 25  # of filters whose products take less time than memory
MOST_WORKSPACE_BYTES = 64 * 2**20
MOST_SUMS_AT_ONCE = 32  # kAtOnce of depthwise_weight.cuh
NOT_HIDDEN = 0.08  # of what a weight gradient multiplies: loads that its block waits for
HANDING_ON = 200  # instructions for each total of a block: to add it up and to place it


@dataclass(frozen=True)
class SourceTile:
    """A block's tile of x (or dy) in shared memory, in elements; pixels, of interleaved planes.

    Args:
        rows: of a plane.
        row_pitch: from one row to the next.
        plane_pitch: from one plane to the next.
        elements: of all planes.
    """

    rows: int
    row_pitch: int
    plane_pitch: int
    elements: int


@dataclass(frozen=True)
class Configuration:
    """How one ConvSpec is cut into blocks. Pairs are (rows, columns).

    Args:
        tile: outputs of a thread; of a weight gradient positions of dy, or taps if ``spreads``.
        thread_filters: filters of a thread (channels, in a weight gradient).
        spreads: a weight gradient whose threads own taps.
        has_totals: a weight gradient whose threads add in more than one chain.
        whole_rows: tiles hold whole rows, as they lie in memory.
        plane_rows: of a source plane, where a thread's tile is as high as the output; or 0.
        direct: threads store their outputs where they belong.
        together: planes of a channels_last tensor that lie interleaved in shared memory, or 1.
        stages: tiles that are in shared memory at once.
        resident: blocks that share a multiprocessor.
        bundles: planes, or groups of planes, of a block.
        bundle_filters: weight gradient: filters that share a bundle's input.
        thread_tiles: threads of a block down and across a plane.
        row_tiles: rows of threads' tiles that a block's tile has.
        part: weight gradient: rows and columns of dy in shared memory at once.
        loaded: the tile of x (or dy) in shared memory.
        upstream_columns: weight gradient: of the tile of dy.
        threads: of a block.
        tiles: that all blocks go over; of a weight gradient parts of dy.
        blocks: of the grid.
        splits: weight gradient: parts that images and rows are cut into.
        chain: weight gradient: parts (rows, if ``spreads``) of dy in one chain of additions.
        shared_bytes: of a block.
        workspace_bytes: of partial sums.
    """

    tile: Pair
    thread_filters: int
    spreads: bool
    has_totals: bool
    whole_rows: bool
    plane_rows: int
    direct: bool
    together: int
    stages: int
    resident: int
    bundles: int
    bundle_filters: int
    thread_tiles: Pair
    row_tiles: int
    part: Pair
    loaded: SourceTile
    upstream_columns: int
    threads: int
    tiles: int
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
    spans_planes = tile[0] == out_shape[2] and filter_row <= 8  # of filters that are unrolled

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
        loaded = source_tile(spec, (rows, columns), size, bundles, channels, whole_rows)
        vector = 16 // itemsize
        run = thread_tiles[1] * tile[1]
        run = run if together > 1 else (run + 2 * vector - 2) // vector * vector
        out = 0 if direct else filters * thread_tiles[0] * tile[0] * run
        tile_size = up_to_eights(max(loaded.elements, bundles * out))
        filter_size = up_to_eights(bundles * channels * spec.weight_shape[2] * filter_row)
        tiles = out_shape[0] * -(-bundles_of_image // bundles)
        for extent, count, one in zip(out_shape[2:], size, tile, strict=True):
            tiles *= -(-extent // (count * one))
        block_threads = -(-bundles * math.prod(thread_tiles) // 32) * 32
        shared_bytes = HEAD_BYTES + stages * (tile_size + filter_size) * itemsize
        resident = resident_blocks(block_of(spec), block_threads, shared_bytes)
        return Configuration(
            tile=tile,
            thread_filters=filters,
            spreads=False,
            has_totals=False,
            whole_rows=whole_rows,
            plane_rows=source_shape[2] if spans_planes and whole_rows else 0,
            direct=direct,
            together=together,
            stages=stages,
            resident=resident,
            bundles=bundles,
            bundle_filters=1,
            thread_tiles=thread_tiles,
            row_tiles=row_tiles,
            part=(0, 0),
            loaded=loaded,
            upstream_columns=0,
            threads=block_threads,
            tiles=tiles,
            blocks=min(tiles, resident * multiprocessors),
            splits=1,
            chain=0,
            shared_bytes=shared_bytes,
            workspace_bytes=0,
        )

    blocks = math.prod(block_of(spec)) // 128 * multiprocessors
    most_bundles = -(-out_shape[0] * bundles_of_image // blocks)
    return best_of(spec, attempt, most_bundles, multiprocessors)


def configure_weight_gradient(spec: ConvSpec, multiprocessors: int) -> Configuration:
    """The tiling of a weight gradient."""
    out_channels, group_channels, *kernel_size = spec.weight_shape
    group_filters = out_channels // spec.groups
    itemsize = spec.dtype.itemsize
    tile, channels, together = thread_tile(spec), thread_filters(spec), planes_together(spec)
    spreads = spreads_taps(spec)
    rows, columns = rows_of(spec, tile[0]), columns_of(spec, tile[1])
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
            down, reach = (
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
            pitch = aligned_columns(columns, reach, itemsize)
        else:
            thread_tiles = cut_plane(spec.output_size, tile, threads // filters, together)
            repeats = max(1, min(repeats, terms_of_a_chain(spec) // math.prod(tile)))
            row_tiles = even_part(-(-spec.output_size[0] // tile[0]), thread_tiles[0] * repeats)
            thread_tiles = -(-row_tiles // repeats), thread_tiles[1]
            part = (row_tiles * tile[0], thread_tiles[1] * tile[1])
            whole_rows = takes_whole_rows(spec, columns, part[1])
        vector = 16 // itemsize
        pair_threads = math.prod(thread_tiles)
        bundles = together
        if together == 1:
            fitting = threads // (filters * pair_threads) if one_bundle_each else 1
            bundles = even_part(all_bundles, max(1, min(fitting, most_bundles)))
        if spreads:
            loaded = SourceTile(down, pitch, down * pitch, bundles * down * pitch)
        else:
            size = (row_tiles, thread_tiles[1])
            loaded = source_tile(spec, (rows, columns), size, bundles, channels, whole_rows)
        run = SPREAD_RUN if spreads else vector
        upstream_columns = part[1] if together > 1 else -(-part[1] // run) * run
        width = spec.output_size[1]
        if whole_rows and width % math.gcd(tile[1], vector) == 0:
            upstream_columns = width  # and each plane is one run
        block_threads = -(-bundles * filters * pair_threads // 32) * 32
        sets = -(-all_bundles // bundles)
        items = spec.input_shape[0] * math.prod(
            -(-size // one) for size, one in zip(spec.output_size, part, strict=True)
        )
        terms_at_once = SPREAD_RUN if spreads else repeats * math.prod(tile)
        chain = max(1, terms_of_a_chain(spec) // terms_at_once)
        values = channels * math.prod(kernel_size) + spec.has_bias
        totals = -(-bundles * filters * values * 8 // 16) * 16
        x = up_to_eights(loaded.elements)
        y_rows = min(part[0], spec.output_size[0]) if whole_rows else part[0]
        y = bundles * filters * y_rows * upstream_columns
        at_once = tile[1] if spreads else even_part(values, MOST_SUMS_AT_ONCE)
        scratch = at_once * (block_threads + 1) * 8 // (stages * itemsize)
        stage = up_to_eights(max(x + y, scratch))
        shared_bytes = HEAD_BYTES + totals + stages * stage * itemsize
        outputs = math.prod(spec.weight_shape) + out_channels
        fitting = MOST_WORKSPACE_BYTES // (8 * outputs)
        # Totals beside few sums cost little, and one kernel then does for all.
        few_sums = spreads or math.prod(kernel_size) <= MOST_TAPS_AT_THE_SPEED_OF_MEMORY
        for has_totals in (few_sums, True):
            resident = resident_blocks(block_of(spec, has_totals), block_threads, shared_bytes)
            splits = max(1, min(resident * multiprocessors // sets, items, fitting))
            if -(-items // splits) <= chain:
                break
        return Configuration(
            tile=tile,
            thread_filters=channels,
            spreads=spreads,
            has_totals=has_totals,
            whole_rows=whole_rows,
            plane_rows=0,
            direct=False,
            together=together,
            stages=stages,
            resident=resident,
            bundles=bundles,
            bundle_filters=filters,
            thread_tiles=thread_tiles,
            row_tiles=row_tiles,
            part=part,
            loaded=loaded,
            upstream_columns=upstream_columns,
            threads=block_threads,
            tiles=sets * items,
            blocks=sets * splits,
            splits=splits,
            chain=chain,
            shared_bytes=shared_bytes,
            workspace_bytes=8 * splits * outputs if splits > 1 else 0,
        )

    blocks = math.prod(block_of(spec)) // 128 * multiprocessors
    most_bundles = -(-spec.input_shape[0] * all_bundles // blocks)
    return best_of(spec, attempt, most_bundles, multiprocessors)


def resident_blocks(most: Pair, threads: int, shared_bytes: int) -> int:
    """How many blocks share a multiprocessor: as registers and shared memory allow."""
    by_registers = math.prod(most) // threads
    by_memory = MULTIPROCESSOR_BYTES // (shared_bytes + 1024)
    return max(1, min(by_registers, by_memory))


def best_of(
    spec: ConvSpec,
    attempt: Callable[[int, int, int, int], Configuration],
    most_bundles: int,
    multiprocessors: int,
) -> Configuration:
    """The block that takes the least time, of all that fit into shared memory.

    What counts, as measured on an H100: the share of a multiprocessor's threads that is at
    work, until the last one has ended; what a thread multiplies between two barriers, at which
    it waits as long as ``waits`` products take, or less with a second stage; and of a weight
    gradient how few positions a split sums before its totals are handed on. These count the
    more, the more terms a sum has, for else memory takes the time. Then, of the source rows
    that a block loads, how many are its own; a tenth more time for parts of rows, and a little
    for small blocks.
    Where none fits into shared memory, the block that takes the least of it is returned.
    """
    is_weight_gradient = spec.direction is Direction.GRAD_WEIGHT
    taps = math.prod(spec.weight_shape[2:])
    steps, terms = float(spec.stride[0]), float(taps * spec.weight_shape[1])
    if spec.direction is Direction.GRAD_INPUT:
        steps = 1 / steps
        terms = taps * (spec.weight_shape[0] // spec.groups) / math.prod(spec.stride)
    positions = spec.input_shape[0] * math.prod(spec.output_size)
    share = terms / (terms + 32)  # of the time that is the multiplier's rather than memory's

    def cost(one: Configuration) -> tuple[float, int, int]:
        most = math.prod(block_of(spec, one.has_totals))
        at_once = one.resident
        if is_weight_gradient:  # whose blocks may be fewer
            at_once = min(at_once, -(-one.blocks // multiprocessors))
        at_work = at_once * one.bundles * one.bundle_filters * math.prod(one.thread_tiles)
        turns = -(-one.blocks // multiprocessors) * -(-one.tiles // one.blocks)
        busy = min(at_work / most, 1) * one.tiles / (turns * multiprocessors)
        products = taps * one.thread_filters * math.prod(one.tile) * one.row_tiles
        own_rows = min(one.row_tiles * one.tile[0] * steps / one.loaded.rows, 1)
        if one.spreads:
            products, own_rows = products * math.prod(one.part), 1.0
        waits = 32 if one.stages == 1 else 16 if is_weight_gradient else 0
        if one.direct and one.resident > 2 and terms <= MOST_TAPS_AT_THE_SPEED_OF_MEMORY:
            waits = 0  # hidden behind other blocks' loads and stores
        slowed = 1 + waits * one.thread_tiles[0] / products
        if is_weight_gradient:
            slowed += HANDING_ON * one.splits / positions
            if one.stages == 1 and one.tiles > one.blocks and not one.spreads:
                slowed += NOT_HIDDEN
        time = (slowed / math.sqrt(busy)) ** share / own_rows**0.25
        time *= (1 if one.whole_rows else 1.1) * max(128 / one.threads, 1) ** 0.05
        return round(time, 3), one.stages, one.threads

    tried = []
    threads = block_of(spec)[0]
    while threads >= 32:
        bundles = most_bundles
        while bundles >= 1:
            at_once = [
                attempt(threads, stages, bundles, repeats)
                for stages in STAGES
                for repeats in REPEATS
            ]
            bundles = min(bundles, max(one.bundles for one in at_once)) // 2
            tried += at_once
        threads //= 2
    fitting = [one for one in tried if one.shared_bytes <= SHARED_BYTES]
    if not fitting:
        return min(tried, key=lambda one: one.shared_bytes)
    return min(fitting, key=cost)


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


def source_tile(
    spec: ConvSpec,
    axes: tuple[Axis, Axis],
    thread_tiles: Pair,
    bundles: int,
    channels: int,
    whole_rows: bool,
) -> SourceTile:
    """The tile that a block's threads read, of ``bundles`` with ``channels`` planes each."""
    rows, columns = axes
    planes, vector = bundles * channels, 16 // spec.dtype.itemsize
    down, across = (
        (count - 1) * axis.advance + axis.extent
        for count, axis in zip(thread_tiles, axes, strict=True)
    )
    if planes_together(spec) > 1:
        return SourceTile(down, across, down * across, planes * down * across)
    if not whole_rows:
        pitch = in_other_banks(aligned_columns(columns, across, spec.dtype.itemsize), vector)
        return SourceTile(down, pitch, down * pitch, planes * down * pitch)

    # Rows as they are in memory, and between them the zeros of which both have to do with some.
    is_gradient = spec.direction is Direction.GRAD_INPUT
    height, width = computed(spec)[0][2:]
    after = spec.padding[1]  # kZerosAfter of depthwise_axis.cuh
    if is_gradient:
        reach = spec.dilation[1] * (spec.weight_shape[3] - 1)
        after = max(0, -((spec.padding[1] - reach) // spec.stride[1]))
    if spec.weight_shape[2] > 1 if is_gradient else spec.padding[0] > 0:
        down = min(down, height)  # rows outside are skipped
    step = max(math.gcd(columns.advance, vector), math.gcd(width, vector))
    least = -(-(width + max(after, -columns.first)) // step) * step
    pitch, plane = in_other_banks(least, step), None
    if math.prod(spec.weight_shape[2:]) > MOST_TAPS_AT_THE_SPEED_OF_MEMORY:
        # Loads have no conflicts where each line of threads goes on in the bank after the last
        # one of the line before: a plane, or a row of threads' tiles, further on.
        banks = 128 // spec.dtype.itemsize
        line = thread_tiles[1] * columns.advance % banks
        if bundles > 1:
            pitch = least
            plane = in_bank(line, banks, down * pitch, step, channels)
        elif spec.direction is not Direction.GRAD_WEIGHT:  # which has no shared memory to spare
            pitch = in_bank(line, banks, least, step, rows.advance) or pitch
    plane = plane or down * pitch
    if spec.direction is Direction.GRAD_WEIGHT and columns.advance % (2 * vector) == 0:
        plane = in_other_banks(plane, vector)  # kAlternates of depthwise_weight.cuh
    before = columns.first % vector - columns.first
    end = (thread_tiles[1] - 1) * columns.advance + columns.first + columns.extent + vector
    elements = before + (planes - 1) * plane + (down - 1) * pitch + max(end, pitch)
    return SourceTile(down, pitch, plane, elements)


def in_other_banks(pitch: int, step: int) -> int:
    """``pitch`` rounded up to an odd number of steps: next rows begin in other banks."""
    return pitch + step * (pitch // step % 2 == 0)


def in_bank(bank: int, banks: int, least: int, step: int, times: int) -> int | None:
    """The first pitch from ``least`` on, in steps, whose ``times``-fold ends in ``bank``."""
    pitches = range(least, least + banks, step)
    return next((one for one in pitches if times * one % banks == bank), None)


def aligned_columns(columns: Axis, reach: int, itemsize: int) -> int:
    """Columns of a tile in which ``reach`` are needed, with what aligns them to 16 bytes."""
    vector = 16 // itemsize
    return -(-(columns.first % vector + reach) // vector) * vector


def up_to_eights(elements: int) -> int:
    """``elements`` rounded up so that what follows them in shared memory is aligned."""
    return -(-elements // 8) * 8
