"""The depthwise family: few channels a group, at the speed of memory (see depthwise.cuh).

It covers one channel a group, with any number of filters, and narrow groups of up to
MOST_GROUP_CHANNELS channels. Compiled in are the direction, the dtype, kernel size, stride,
padding, dilation and a thread's tile; image sizes, channels and strides in memory are run-time
numbers, so a network needs one kernel for each kind of layer and a new input size none.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from dataclasses import dataclass

import torch

from convsmith.kernels.depthwise_times import predicted_ms as predicted_ms
from convsmith.kernels.source import KernelSource, render
from convsmith.spec import ConvSpec, Direction, Pair, Shape, strides_like_channels_last

NAME = "depthwise"
LEAST_CAPABILITY = (8, 0)  # cp.async

MOST_GROUP_CHANNELS = 7
STAGES = (2, 1)  # tiles in shared memory at once
MOST_CHANNELS_AT_ONCE = 8  # kChannels of Convolution
SHARED_BYTES = 96 * 1024  # a block may have as much on every GPU of LEAST_CAPABILITY and newer
MULTIPROCESSOR_BYTES = 226 * 1024  # of shared memory, for all blocks of an H100 or H200
MOST_WORKSPACE_BYTES = 64 * 2**20
MOST_WINDOW = 80  # columns of a source row that a thread keeps in registers
MOST_TILE = 64  # outputs of a thread
MOST_TERMS_OF_ONE_CHAIN = 48
MOST_KEPT_TAPS = 64  # sums of a weight gradient that a thread keeps
SPREAD_TILE = (4, 8)  # taps of a thread of a weight gradient of more taps than that
SPREAD_RUN = 8  # kRun of depthwise_weight.cuh

_ELEMENT = {
    torch.float32: "float",
    torch.float16: "__half",
    torch.bfloat16: "__nv_bfloat16",
}


@dataclass(frozen=True)
class Configuration:
    """How one ConvSpec is cut into blocks. Pairs are (rows, columns).

    Args:
        tile: outputs of a thread; of a weight gradient positions of dy, or taps if ``spreads``.
        thread_filters: filters of a thread (channels, in a weight gradient).
        spreads: a weight gradient whose threads own taps.
        whole_rows: tiles hold whole rows, as they lie in memory.
        together: planes of a channels_last tensor that lie interleaved in shared memory, or 1.
        stages: tiles that are in shared memory at once.
        resident: blocks that share a multiprocessor.
        bundles: planes, or groups of planes, of a block.
        bundle_filters: weight gradient: filters that share a bundle's input.
        thread_tiles: threads of a block down and across a plane.
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
    together: int
    stages: int
    resident: int
    bundles: int
    bundle_filters: int
    thread_tiles: Pair
    part: Pair
    source_size: Pair
    upstream_columns: int
    threads: int
    blocks: int
    splits: int
    chain: int
    shared_bytes: int
    workspace_bytes: int


@dataclass(frozen=True)
class Axis:
    """The sources that a thread's tile meets along one axis, as in depthwise_axis.cuh."""

    first: int
    extent: int
    advance: int


def obstacle(spec: ConvSpec) -> str | None:
    """Why the family cannot compute ``spec``, or None."""
    group_channels = spec.weight_shape[1]
    if spec.dtype not in _ELEMENT:
        return "it sums in float32, which is too little for float64"
    if group_channels > MOST_GROUP_CHANNELS:
        return f"its groups have {group_channels} channels, more than {MOST_GROUP_CHANNELS}"
    if spec.groups == 1 and group_channels > 1:
        return "it has a single group"
    steps = zip(spec.weight_shape, spec.weight_strides, strict=True)
    if sum((size - 1) * step for size, step in steps) >= 2**31:
        return "its filters lie too far apart for offsets of 32 bits"
    if spec.direction is not Direction.GRAD_WEIGHT and math.prod(thread_tile(spec)) > MOST_TILE:
        return f"a stride of {spec.stride} spreads its gradient too thin"
    window = columns_of(spec, thread_tile(spec)[1])
    if window.extent > MOST_WINDOW:
        return f"its filter rows reach over {window.extent} columns, more than {MOST_WINDOW}"
    if configure(spec, 1).shared_bytes > SHARED_BYTES:
        return "its filter reaches too far for a tile in shared memory"
    return None


def spreads_taps(spec: ConvSpec) -> bool:
    """Whether a weight gradient has too many taps for a thread to keep a sum of each."""
    return (
        spec.direction is Direction.GRAD_WEIGHT
        and math.prod(spec.weight_shape[2:]) > MOST_KEPT_TAPS
    )


def rows_of(spec: ConvSpec, tile_rows: int) -> Axis:
    """The vertical axis of ``spec`` for a thread's tile."""
    return _axis_of(spec, 0, tile_rows)


def columns_of(spec: ConvSpec, tile_columns: int) -> Axis:
    """The horizontal axis of ``spec`` for a thread's tile."""
    return _axis_of(spec, 1, tile_columns)


def _axis_of(spec: ConvSpec, axis: int, tile: int) -> Axis:
    taps, stride = spec.weight_shape[2 + axis], spec.stride[axis]
    padding, dilation = spec.padding[axis], spec.dilation[axis]
    if spreads_taps(spec):  # the tile is of taps, and a run of dy takes the taps' place
        taps, stride, dilation = SPREAD_RUN if axis else 1, dilation, stride
    is_gradient = spec.direction is Direction.GRAD_INPUT
    scale, step = (stride, 1) if is_gradient else (1, stride)
    offset = -padding if is_gradient else padding
    span = (taps - 1) * (-dilation if is_gradient else dilation)
    first = -((offset - min(span, 0)) // scale)
    last = (step * (tile - 1) + max(span, 0) - offset) // scale
    return Axis(first, max(last - first + 1, 1), step * tile // scale)


def thread_filters(spec: ConvSpec) -> int:
    """Filters of a thread, on one window; in a weight gradient, channels that share dy."""
    out_channels, group_channels, *kernel_size = spec.weight_shape
    if spec.direction is Direction.GRAD_WEIGHT:
        fitting = 1 if spreads_taps(spec) else MOST_KEPT_TAPS // math.prod(kernel_size)
        return even_part(group_channels, min(fitting, 4))
    forward = spec.direction is Direction.FORWARD
    return even_part(out_channels // spec.groups if forward else group_channels, 4)


def even_part(whole: int, most: int) -> int:
    """The size of the parts, ``most`` at most, if ``whole`` is cut into as few as possible."""
    return -(-whole // -(-whole // most))


def thread_tile(spec: ConvSpec) -> Pair:
    """(rows, columns) of a thread's tile.

    Four neighbouring columns make loads of 16 bytes without bank conflicts. Where there are
    more taps than a thread keeps in registers, eight columns share each tap that is loaded.
    Seven rows divide the planes of most networks with large filters. An input gradient's tile
    holds whole strides.
    """
    taps = math.prod(spec.weight_shape[2:])
    if spreads_taps(spec):
        return SPREAD_TILE
    if spec.direction is Direction.GRAD_WEIGHT:
        rows = 4 if taps <= 25 else 7
        columns = 2 if taps > 25 and spec.output_shape[3] <= 16 else 4
        return min(rows, max(1, terms_of_a_chain(spec) // 4)), columns
    rows, columns = (8, 4) if taps <= 25 else (7, 4) if taps <= MOST_KEPT_TAPS else (7, 8)
    if spec.direction is Direction.FORWARD and max(spec.stride) > 1:
        rows, columns = (7, 2) if taps <= 25 else (4, 4)
    while rows > 2 and rows * columns * thread_filters(spec) > MOST_TILE:
        rows = -(-rows // 2)
    if spec.direction is Direction.GRAD_INPUT:
        rows, columns = (
            stride * max(1, size // stride)
            for stride, size in zip(spec.stride, (rows, columns), strict=True)
        )
    return rows, columns


def block_of(spec: ConvSpec) -> tuple[int, int]:
    """(most threads of a block, blocks that share a multiprocessor), as measured on an H200.

    Together they say how many registers a thread has: 65536 over their product.
    """
    taps = math.prod(spec.weight_shape[2:])
    has_narrow_groups = spec.weight_shape[1] > 1 or thread_filters(spec) > 1
    if spec.direction is Direction.GRAD_WEIGHT:
        if spreads_taps(spec):
            return 256, 2
        if has_narrow_groups:
            return 128, 4
        return (256, 3) if taps <= 9 else (128, 4) if taps <= 25 else (128, 3)
    if has_narrow_groups:
        return 256, 2
    if taps <= 9 and max(spec.stride) > 1:
        return (224, 4) if spec.direction is Direction.GRAD_INPUT else (128, 5)
    if taps <= 9 and spec.dtype.itemsize == 2:
        return 256, 4
    if taps <= 9 and spec.direction is Direction.FORWARD:
        return 256, 2
    return (128, 4) if taps <= MOST_KEPT_TAPS else (128, 3)


def sums_by_row(spec: ConvSpec) -> bool:
    """Whether each filter row is summed by itself.

    It is where so many terms would err more than cuDNN. With one channel a group there is a
    single chain of additions, as in PyTorch's own kernels.
    """
    _, group_channels, *kernel_size = spec.weight_shape
    terms = computed(spec)[0][1] // spec.groups * math.prod(kernel_size)
    return group_channels > 1 and terms > MOST_TERMS_OF_ONE_CHAIN


def planes_together(spec: ConvSpec) -> int:
    """How many planes of channels_last tensors lie interleaved in a tile; 1 if they are apart.

    Interleaved, a warp reads neighbouring channels; this needs one filter for each channel.
    """
    tensors = (
        (spec.input_shape, spec.input_strides),
        (spec.output_shape, spec.output_strides),
    )
    one_each = spec.weight_shape[1] == 1 and spec.weight_shape[0] == spec.groups
    if spreads_taps(spec) or not one_each or spec.groups < 8:
        return 1
    if not all(strides_like_channels_last(*tensor) for tensor in tensors):
        return 1
    return 32 if spec.groups > 16 else 16 if spec.groups > 8 else 8


def computed(spec: ConvSpec) -> tuple[Shape, Shape, Shape, Shape]:
    """Shapes and strides of the tensor that is read and of the one that is computed."""
    x = (spec.input_shape, spec.input_strides)
    y = (spec.output_shape, spec.output_strides)
    return (*y, *x) if spec.direction is Direction.GRAD_INPUT else (*x, *y)


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

    def attempt(threads: int, stages: int, most_bundles: int) -> Configuration:
        thread_tiles = cut_plane(out_shape[2:], tile, threads, together)
        bundles = together
        if together == 1 and filters >= outputs and sums <= MOST_CHANNELS_AT_ONCE:
            fitting = min(threads // math.prod(thread_tiles), most_bundles, bundles_of_image)
            bundles = even_part(bundles_of_image, max(1, fitting))
        whole_rows = takes_whole_rows(spec, columns, thread_tiles[1] * tile[1])
        source_size = tile_size_of(spec, rows, columns, thread_tiles, whole_rows, together)
        vector = 16 // itemsize
        run = thread_tiles[1] * tile[1]
        run = run if together > 1 else (run + 2 * vector - 2) // vector * vector
        out = filters * thread_tiles[0] * tile[0] * run
        tile_size = up_to_eights(bundles * max(channels * math.prod(source_size), out))
        filter_size = up_to_eights(bundles * channels * spec.weight_shape[2] * filter_row)
        tiles = out_shape[0] * -(-bundles_of_image // bundles)
        for size, count, one in zip(out_shape[2:], thread_tiles, tile, strict=True):
            tiles *= -(-size // (count * one))
        block_threads = -(-bundles * math.prod(thread_tiles) // 32) * 32
        shared_bytes = stages * (tile_size + filter_size) * itemsize
        resident = resident_blocks(spec, block_threads, shared_bytes)
        return Configuration(
            tile=tile,
            thread_filters=filters,
            spreads=False,
            whole_rows=whole_rows,
            together=together,
            stages=stages,
            resident=resident,
            bundles=bundles,
            bundle_filters=1,
            thread_tiles=thread_tiles,
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

    def attempt(threads: int, stages: int, most_bundles: int) -> Configuration:
        if spreads:
            runs = max(
                1, min(-(-spec.output_size[1] // SPREAD_RUN), threads // math.prod(tap_tiles))
            )
            part = (min(spec.output_size[0], 64), min(spec.output_size[1], runs * SPREAD_RUN))
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
            part = (thread_tiles[0] * tile[0], thread_tiles[1] * tile[1])
            whole_rows = takes_whole_rows(spec, columns, part[1])
            source_size = tile_size_of(
                spec, rows_of(spec, tile[0]), columns, thread_tiles, whole_rows, together
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
        terms_at_once = SPREAD_RUN if spreads else math.prod(tile)
        chain = max(1, terms_of_a_chain(spec) // terms_at_once)
        values = channels * math.prod(kernel_size) + 1
        totals = -(-bundles * filters * values * 8 // 16) * 16
        x = up_to_eights(bundles * channels * math.prod(source_size))
        y_rows = min(part[0], spec.output_size[0]) if whole_rows else part[0]
        y = bundles * filters * y_rows * upstream_columns
        stage = up_to_eights(max(x + y, 8 * block_threads * 8 // itemsize))
        shared_bytes = totals + stages * stage * itemsize
        resident = resident_blocks(spec, block_threads, shared_bytes)
        outputs = math.prod(spec.weight_shape) + out_channels
        fitting = MOST_WORKSPACE_BYTES // (8 * outputs)
        splits = max(1, min(resident * multiprocessors // sets, items, fitting))
        return Configuration(
            tile=tile,
            thread_filters=channels,
            spreads=spreads,
            whole_rows=whole_rows,
            together=together,
            stages=stages,
            resident=resident,
            bundles=bundles,
            bundle_filters=filters,
            thread_tiles=thread_tiles,
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


def terms_of_a_chain(spec: ConvSpec) -> int:
    """How many terms of a weight gradient are added in float32 before the sum is put by.

    A chain of n additions errs like the square root of n / 2 roundings. PyTorch adds the terms
    of a tap in 256 chains and then pairwise, about 9 + terms / 512 in place of n / 2; half of
    that is allowed here, so that the largest error stays below PyTorch's as well.
    """
    terms = spec.input_shape[0] * math.prod(spec.output_size)
    return 8 + terms // 512


def resident_blocks(spec: ConvSpec, threads: int, shared_bytes: int) -> int:
    """How many blocks share a multiprocessor: as registers and shared memory allow."""
    by_registers = math.prod(block_of(spec)) // threads
    by_memory = MULTIPROCESSOR_BYTES // (shared_bytes + 1024)
    return max(1, min(by_registers, by_memory))


def best_of(
    spec: ConvSpec, attempt: Callable[[int, int, int], Configuration], most_bundles: int
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
        own_rows = min(one.thread_tiles[0] * one.tile[0] * steps / one.source_size[0], 1)
        value = min(at_work / (most_threads * blocks), 1) * (1 if one.spreads else own_rows)
        value *= (1 + 0.1 * (one.stages - 1)) * (1.25 if one.whole_rows else 1)
        return round(value * min(one.threads / 96, 1) ** 0.2, 3), one.threads

    tried = []
    threads = most_threads
    while threads >= 32:
        bundles = most_bundles
        while bundles >= 1:
            tried += [attempt(threads, stages, bundles) for stages in STAGES]
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


def reason(configuration: Configuration) -> str:
    """How the time comes about, in a few words."""
    rows, columns = configuration.tile
    what = "taps" if configuration.spreads else "outputs"
    return (
        f"{configuration.blocks} blocks of {configuration.threads} threads, {rows} x {columns} "
        f"{what} a thread, {configuration.shared_bytes / 1024:.0f} KiB shared in "
        f"{configuration.stages} stage(s)"
    )


def problem(spec: ConvSpec, configuration: Configuration) -> bytes:
    """What the kernel is told of ``spec`` at run time."""
    out_channels, group_channels, *_ = spec.weight_shape
    group_filters = out_channels // spec.groups
    batch, _, *input_size = spec.input_shape
    strides = spec.weight_strides
    if spec.direction is Direction.GRAD_WEIGHT:  # WeightProblem of depthwise_weight.cuh
        numbers = (
            *(batch, spec.groups, group_channels, group_filters),
            *(*input_size, *spec.output_size),
            *(*spec.input_strides, *spec.output_strides, *strides),
            *(configuration.bundles, configuration.bundle_filters, *configuration.part),
            *(*configuration.thread_tiles, configuration.splits, configuration.chain),
            *configuration.source_size,
            *(configuration.upstream_columns, configuration.threads),
        )
        return struct.pack(f"{len(numbers)}q", *numbers)
    source_shape, source_strides, out_shape, out_strides = computed(spec)
    planes = strides[:2] if spec.direction is Direction.FORWARD else strides[1::-1]
    numbers = (  # ConvolveProblem of depthwise_convolve.cuh
        *(batch, spec.groups, *source_shape[2:], *out_shape[2:]),
        *(*source_strides, *out_strides, group_filters * strides[0], *planes, *strides[2:]),
        *(configuration.bundles, *configuration.thread_tiles, *configuration.source_size),
        *(configuration.threads, configuration.blocks),
    )
    return struct.pack(f"{len(numbers)}q", *numbers)


def template_arguments(spec: ConvSpec, configuration: Configuration) -> tuple[str, ...]:
    """What ``Specialisation`` of depthwise.cuh is instantiated with: one type."""
    geometry = (*spec.weight_shape[2:], *spec.stride, *spec.padding, *spec.dilation)
    tile = (*configuration.tile, configuration.thread_filters)
    numbers = ", ".join(map(str, (*geometry, *tile)))
    threads, blocks = block_of(spec)
    last = f"{str(configuration.whole_rows).lower()}, {configuration.together}, "
    last += f"{configuration.stages}, {threads}, {blocks}"
    element, space = _ELEMENT[spec.dtype], "convsmith::depthwise::"
    if spec.direction is Direction.GRAD_WEIGHT:
        spreads = str(configuration.spreads).lower()
        return (f"{space}WeightGradient<{element}, {numbers}, {spreads}, {last}>",)
    is_gradient = str(spec.direction is Direction.GRAD_INPUT).lower()
    sums, outputs = (shape[1] // spec.groups for shape in computed(spec)[::2])
    by_row = f"{outputs}, {sums}, {str(sums_by_row(spec)).lower()}"
    return (f"{space}Convolution<{is_gradient}, {element}, {numbers}, {by_row}, {last}>",)


def source(spec: ConvSpec, configuration: Configuration) -> KernelSource:
    """The kernel that runs ``spec``."""
    kernel, stride, padding, dilation = (
        "x".join(map(str, pair))
        for pair in (spec.weight_shape[2:], spec.stride, spec.padding, spec.dilation)
    )
    dtype = str(spec.dtype).removeprefix("torch.")
    name = f"{NAME}_{spec.direction.value}_{dtype}_{kernel}_s{stride}_p{padding}_d{dilation}"
    return render(NAME, name, template_arguments(spec, configuration))


def writable(direction: Direction) -> frozenset[int]:
    """Places of the tensors that the kernel writes, in the order of ``run`` in depthwise.cuh."""
    return frozenset({Direction.FORWARD: {3}, Direction.GRAD_INPUT: {2}}.get(direction, {2, 3, 4}))
