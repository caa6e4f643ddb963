"""The depthwise family: few channels a group, at the speed of memory (see depthwise.cuh).

It covers one channel a group, with any number of filters, and narrow groups of up to
MOST_GROUP_CHANNELS channels. Compiled in are the direction, the dtype, kernel size, stride, padding,
dilation and a thread's tile; image sizes, channels and strides in memory are run-time numbers, so a
network needs one kernel for each kind of layer and a new input size none.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass

import torch

from convsmith.kernels.source import KernelSource, render
from convsmith.roofline import Ceilings
from convsmith.spec import ConvSpec, Direction, Pair, Shape

NAME = "depthwise"
LEAST_CAPABILITY = (8, 0)  # cp.async

MOST_GROUP_CHANNELS = 7
MOST_THREADS = 256  # kMostThreads of depthwise_convolve.cuh
SHARED_BYTES = 96 * 1024  # a block's on every GPU of LEAST_CAPABILITY and newer
# What a block uses where it can choose: several blocks then share a multiprocessor, and one computes
# while others wait for memory.
GOOD_SHARED_BYTES = 74 * 1024
MOST_WORKSPACE_BYTES = 64 * 2**20
MOST_WINDOW = 80  # columns of a source row that a thread keeps in registers
MOST_TILE = 64  # outputs of a thread
MOST_KEPT_TAPS = 64  # sums of a weight gradient that a thread keeps
SPREAD_TILE = (4, 8)  # taps of a thread of a weight gradient of more taps than that
SPREAD_RUN = 8  # kRun of depthwise_weight.cuh
BLOCKS_PER_MULTIPROCESSOR = 4

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
        bundles: planes, or groups of planes, of a block.
        bundle_filters: weight gradient: filters that share a bundle's input.
        thread_tiles: threads of a block down and across a plane.
        part: weight gradient: rows and columns of dy in shared memory at once.
        channels: channels of a bundle in shared memory at once.
        source_rows, row_pitch, plane_pitch: of x (or dy) in shared memory, in elements.
        upstream_row_pitch, upstream_plane_pitch: weight gradient: the same of dy.
        threads: of a block.
        blocks: of the grid.
        splits: weight gradient: parts that images and rows are cut into.
        shared_bytes: of a block.
        workspace_bytes: of partial sums.
    """

    tile: Pair
    thread_filters: int
    spreads: bool
    bundles: int
    bundle_filters: int
    thread_tiles: Pair
    part: Pair
    channels: int
    source_rows: int
    row_pitch: int
    plane_pitch: int
    upstream_row_pitch: int
    upstream_plane_pitch: int
    threads: int
    blocks: int
    splits: int
    shared_bytes: int
    workspace_bytes: int


@dataclass(frozen=True)
class Axis:
    """``Axis`` of depthwise_axis.cuh: the sources that ``tile`` outputs meet along one axis."""

    scale: int
    first: int
    extent: int
    advance: int

    @classmethod
    def of(
        cls, is_gradient: bool, taps: int, stride: int, padding: int, dilation: int, tile: int
    ) -> Axis:
        """The axis of a forward convolution, or of an input gradient."""
        scale, step = (stride, 1) if is_gradient else (1, stride)
        offset = -padding if is_gradient else padding
        span = (taps - 1) * (-dilation if is_gradient else dilation)
        first = -((offset - min(span, 0)) // scale)
        last = (step * (tile - 1) + max(span, 0) - offset) // scale
        return cls(scale, first, max(last - first + 1, 1), step * tile // scale)


def obstacle(spec: ConvSpec) -> str | None:
    """Why the family cannot compute ``spec``, or None."""
    group_channels = spec.weight_shape[1]
    if spec.dtype not in _ELEMENT:
        return "it sums in float32, which is too little for float64"
    if group_channels > MOST_GROUP_CHANNELS:
        return f"its groups have {group_channels} channels, more than {MOST_GROUP_CHANNELS}"
    if spec.groups == 1 and group_channels > 1:
        return "it has a single group"
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
    if spreads_taps(spec):
        return Axis.of(False, SPREAD_RUN if axis else 1, dilation, padding, stride, tile)
    is_gradient = spec.direction is Direction.GRAD_INPUT
    return Axis.of(is_gradient, taps, stride, padding, dilation, tile)


def thread_filters(spec: ConvSpec) -> int:
    """Filters of a thread that share its window; in a weight gradient, channels that share dy."""
    out_channels, group_channels, *kernel_size = spec.weight_shape
    if spec.direction is Direction.GRAD_WEIGHT:
        fitting = 1 if spreads_taps(spec) else MOST_KEPT_TAPS // math.prod(kernel_size)
        return even_part(group_channels, min(fitting, 4))
    forward = spec.direction is Direction.FORWARD
    return even_part(out_channels // spec.groups if forward else group_channels, 4)


def even_part(whole: int, most: int) -> int:
    """The size of the parts, ``most`` at most, when ``whole`` is cut into as few as possible."""
    return -(-whole // -(-whole // most))


def thread_tile(spec: ConvSpec) -> Pair:
    """(rows, columns) of a thread's tile.

    Few taps: memory is the limit, and four neighbouring columns make loads of 16 bytes without bank
    conflicts. Many taps: more columns share each tap that is loaded. An input gradient's tile holds
    whole strides.
    """
    kernel_rows, kernel_columns = spec.weight_shape[2:]
    if spreads_taps(spec):
        return SPREAD_TILE
    if spec.direction is Direction.GRAD_WEIGHT:
        return (8 if kernel_rows * kernel_columns <= 9 else 4), 4
    rows, columns = (8, 4) if kernel_rows * kernel_columns <= 25 else (7, 8)
    while rows > 2 and rows * columns * thread_filters(spec) > MOST_TILE:
        rows = -(-rows // 2)
    if spec.direction is Direction.GRAD_INPUT:
        rows, columns = (
            stride * max(1, size // stride)
            for stride, size in zip(spec.stride, (rows, columns), strict=True)
        )
    return rows, columns


def computed(spec: ConvSpec) -> tuple[Shape, Shape, Shape, Shape]:
    """Shapes and strides of the tensor that is read and of the one that is computed."""
    x = (spec.input_shape, spec.input_strides)
    y = (spec.output_shape, spec.output_strides)
    return (*y, *x) if spec.direction is Direction.GRAD_INPUT else (*x, *y)


def configure(spec: ConvSpec, multiprocessors: int) -> Configuration:
    """The tiling for ``spec`` on a GPU of ``multiprocessors``."""
    if spec.direction is Direction.GRAD_WEIGHT:
        return configure_weight_gradient(spec, multiprocessors)
    source_shape, source_strides, out_shape, _ = computed(spec)
    tile, filters = thread_tile(spec), thread_filters(spec)
    rows, columns = rows_of(spec, tile[0]), columns_of(spec, tile[1])
    sums, outputs = source_shape[1] // spec.groups, out_shape[1] // spec.groups
    all_bundles = out_shape[0] * spec.groups * -(-outputs // filters)
    # A channels_last tensor is read in sectors of 32 bytes: so many neighbouring channels.
    together = 32 // spec.dtype.itemsize if source_strides[1] == 1 != source_strides[3] else 1

    def attempt(threads: int, channels: int, most_bundles: int) -> Configuration:
        thread_tiles = cut_plane(out_shape[2:], tile, max(1, threads // together))
        bundles = max(1, min(threads // math.prod(thread_tiles), most_bundles, all_bundles))
        row_pitch = pitch_of(columns, thread_tiles[1], spec.dtype.itemsize)
        source_rows = (thread_tiles[0] - 1) * rows.advance + rows.extent
        plane_pitch = apart(source_rows * row_pitch, together, spec.dtype.itemsize)
        taps = spec.weight_shape[2] * -(-spec.weight_shape[3] * filters // 4) * 4
        vector = 16 // spec.dtype.itemsize
        run = -(-(thread_tiles[1] * tile[1] + vector) // vector) * vector
        shared_bytes = (
            -(-bundles * 32 // 16) * 16
            + bundles * channels * taps * 4
            + bundles
            * spec.dtype.itemsize
            * max(channels * plane_pitch, filters * thread_tiles[0] * tile[0] * run)
        )
        bands = math.prod(
            -(-size // (count * one))
            for size, count, one in zip(out_shape[2:], thread_tiles, tile, strict=True)
        )
        return Configuration(
            tile=tile,
            thread_filters=filters,
            spreads=False,
            bundles=bundles,
            bundle_filters=1,
            thread_tiles=thread_tiles,
            part=(0, 0),
            channels=channels,
            source_rows=source_rows,
            row_pitch=row_pitch,
            plane_pitch=plane_pitch,
            upstream_row_pitch=0,
            upstream_plane_pitch=0,
            threads=-(-bundles * math.prod(thread_tiles) // 32) * 32,
            blocks=-(-all_bundles // bundles) * bands,
            splits=1,
            shared_bytes=shared_bytes,
            workspace_bytes=0,
        )

    return first_that_fits(attempt, sums, -(-all_bundles // (2 * multiprocessors)), together)


def configure_weight_gradient(spec: ConvSpec, multiprocessors: int) -> Configuration:
    """The tiling of a weight gradient."""
    out_channels, group_channels, *kernel_size = spec.weight_shape
    group_filters = out_channels // spec.groups
    tile, channels = thread_tile(spec), thread_filters(spec)
    spreads = spreads_taps(spec)
    columns = columns_of(spec, tile[1])
    filters = 1 if spreads else even_part(group_filters, 4)
    all_bundles = spec.groups * -(-group_filters // filters) * -(-group_channels // channels)
    together = (
        32 // spec.dtype.itemsize if spec.input_strides[1] == 1 != spec.input_strides[3] else 1
    )
    tap_tiles = math.prod(-(-taps // one) for taps, one in zip(kernel_size, tile, strict=True))

    def attempt(threads: int, _: int, most_bundles: int) -> Configuration:
        most = max(1, threads // (filters * together))
        if spreads:
            part = (
                min(spec.output_size[0], 64),
                min(spec.output_size[1], max(1, most // tap_tiles) * SPREAD_RUN, 64),
            )
            thread_tiles = (-(-part[1] // SPREAD_RUN), tap_tiles)
            if math.prod(thread_tiles) > MOST_THREADS:
                thread_tiles = (1, tap_tiles)
            source_rows = (part[0] - 1) * spec.stride[0] + 1
            source_rows += (-(-kernel_size[0] // tile[0]) * tile[0] - 1) * spec.dilation[0]
            runs = -(-part[1] // SPREAD_RUN) * SPREAD_RUN
            reach = (runs - 1) * spec.stride[1] + 1
            reach += (-(-kernel_size[1] // tile[1]) * tile[1] - 1) * spec.dilation[1]
            row_pitch = pitch_over(columns, reach, spec.dtype.itemsize)
        else:
            thread_tiles = cut_plane(spec.output_size, tile, most)
            part = (thread_tiles[0] * tile[0], thread_tiles[1] * tile[1])
            rows = rows_of(spec, tile[0])
            source_rows = (thread_tiles[0] - 1) * rows.advance + rows.extent
            row_pitch = pitch_of(columns, thread_tiles[1], spec.dtype.itemsize)
        vector = 16 // spec.dtype.itemsize
        pairs = filters * math.prod(thread_tiles)
        bundles = max(1, min(threads // pairs, most_bundles, all_bundles))
        plane_pitch = apart(source_rows * row_pitch, together, spec.dtype.itemsize)
        upstream_row_pitch = -(-part[1] // vector) * vector
        upstream_plane_pitch = apart(part[0] * upstream_row_pitch, together, spec.dtype.itemsize)
        block_threads = -(-bundles * pairs // 32) * 32
        values = channels * math.prod(kernel_size) + 1
        totals = -(-bundles * filters * values * 8 // 16) * 16
        tiles = bundles * (channels * plane_pitch + filters * upstream_plane_pitch)
        bundle_blocks = -(-all_bundles // bundles)
        items = spec.input_shape[0] * math.prod(
            -(-size // one) for size, one in zip(spec.output_size, part, strict=True)
        )
        outputs = math.prod(spec.weight_shape) + out_channels
        splits = max(
            1,
            min(
                BLOCKS_PER_MULTIPROCESSOR * multiprocessors // bundle_blocks,
                items,
                MOST_WORKSPACE_BYTES // (8 * outputs),
            ),
        )
        return Configuration(
            tile=tile,
            thread_filters=channels,
            spreads=spreads,
            bundles=bundles,
            bundle_filters=filters,
            thread_tiles=thread_tiles,
            part=part,
            channels=channels,
            source_rows=source_rows,
            row_pitch=row_pitch,
            plane_pitch=plane_pitch,
            upstream_row_pitch=upstream_row_pitch,
            upstream_plane_pitch=upstream_plane_pitch,
            threads=block_threads,
            blocks=bundle_blocks * splits,
            splits=splits,
            shared_bytes=totals + max(tiles * spec.dtype.itemsize, 8 * 4 * block_threads),
            workspace_bytes=8 * splits * outputs if splits > 1 else 0,
        )

    return first_that_fits(attempt, 1, all_bundles, together)


def first_that_fits(attempt, channels: int, most_bundles: int, together: int) -> Configuration:  # type: ignore[no-untyped-def]
    """The largest block whose shared memory lets several share a multiprocessor.

    Where none does, the one that takes the least.
    """
    attempts = []
    threads = MOST_THREADS
    while threads >= 32:
        bundles = max(most_bundles, together)
        while True:
            attempts.append(attempt(threads, channels, bundles))
            if attempts[-1].shared_bytes <= GOOD_SHARED_BYTES:
                return attempts[-1]
            if attempts[-1].bundles <= together:
                break
            bundles = max(together, attempts[-1].bundles // 2)
        threads //= 2
    attempts.append(attempt(32, 1, 1))
    return min(attempts, key=lambda configuration: configuration.shared_bytes)


def cut_plane(size: Pair, tile: Pair, threads: int) -> Pair:
    """(down, across): how many threads work on a plane at once.

    Whole rows where they fit, for then what a block stores is one contiguous run; else a multiple
    of eight across, so that every band begins at a multiple of 16 bytes. Bands of equal height.
    """
    down, across = (-(-extent // one) for extent, one in zip(size, tile, strict=True))
    if across > threads:
        across = max(threads // 2 // 8 * 8, 8)
    return even_part(down, max(1, threads // across)), across


def pitch_of(columns: Axis, across: int, itemsize: int) -> int:
    """Elements from one row of a source tile to the next, where ``across`` threads share it."""
    return pitch_over(columns, (across - 1) * columns.advance + columns.extent, itemsize)


def pitch_over(columns: Axis, reach: int, itemsize: int) -> int:
    """The same, where ``reach`` columns are needed: they and what aligns them to 16 bytes."""
    vector = 16 // itemsize
    return -(-(columns.first % vector + reach + vector - 1) // vector) * vector


def apart(plane: int, together: int, itemsize: int) -> int:
    """Elements from one plane of a tile to the next: where several are ``together``, such that
    neighbouring ones begin 16 bytes apart in the banks of shared memory.
    """
    if together == 1:
        return plane
    all_banks, step = 128 // itemsize, 16 // itemsize
    return -(-(plane - step) // all_banks) * all_banks + step


def reason(configuration: Configuration) -> str:
    """How the time comes about, in a few words."""
    rows, columns = configuration.tile
    what = "taps" if configuration.spreads else "outputs"
    return (
        f"{configuration.blocks} blocks of {configuration.threads} threads, {rows} x {columns} "
        f"{what} a thread, {configuration.shared_bytes / 1024:.0f} KiB shared"
    )


def predicted_ms(
    spec: ConvSpec, configuration: Configuration, ceilings: Ceilings, multiprocessors: int
) -> float:
    """Time of ``spec``: memory at nine tenths of a copy's rate, or float32 units at seven tenths.

    The smaller of the two overlaps but for a third, and beginning and ending take 4 us.
    """
    memory = spec.bytes_moved / (0.9 * ceilings.copy_TBps * 1e9)
    arithmetic = spec.operations / (0.7 * ceilings.fp32_TFLOPs * 1e9)
    return max(memory, arithmetic) + min(memory, arithmetic) / 3 + 0.004


def problem(spec: ConvSpec, configuration: Configuration) -> bytes:
    """What the kernel is told of ``spec`` at run time."""
    out_channels, group_channels, *_ = spec.weight_shape
    group_filters = out_channels // spec.groups
    batch, _, *input_size = spec.input_shape
    strides = spec.weight_strides
    if spec.direction is Direction.GRAD_WEIGHT:  # WeightProblem of depthwise_weight.cuh
        numbers = (
            *(batch, spec.groups, group_channels, group_filters, *input_size, *spec.output_size),
            *(*spec.input_strides, *spec.output_strides, *strides),
            *(configuration.bundles, configuration.bundle_filters, *configuration.part),
            *(*configuration.thread_tiles, configuration.splits, configuration.source_rows),
            *(configuration.row_pitch, configuration.plane_pitch),
            *(configuration.upstream_row_pitch, configuration.upstream_plane_pitch),
            configuration.threads,
        )
        return struct.pack(f"{len(numbers)}q", *numbers)
    source_shape, source_strides, out_shape, out_strides = computed(spec)
    sums, outputs = source_shape[1] // spec.groups, out_shape[1] // spec.groups
    planes = strides[:2] if spec.direction is Direction.FORWARD else strides[1::-1]
    numbers = (  # ConvolveProblem of depthwise_convolve.cuh
        *(batch, spec.groups, sums, outputs, *source_shape[2:], *out_shape[2:]),
        *(*source_strides, *out_strides, group_filters * strides[0], *planes, *strides[2:]),
        *(configuration.bundles, *configuration.thread_tiles, configuration.channels),
        *(configuration.row_pitch, configuration.plane_pitch, configuration.threads),
    )
    return struct.pack(f"{len(numbers)}q", *numbers)


def template_arguments(spec: ConvSpec, configuration: Configuration) -> tuple[str, ...]:
    """What ``Specialisation`` of depthwise.cuh is instantiated with: one type."""
    numbers = (
        *(*spec.weight_shape[2:], *spec.stride, *spec.padding, *spec.dilation),
        *(*configuration.tile, configuration.thread_filters),
    )
    text = ", ".join(map(str, numbers))
    element = _ELEMENT[spec.dtype]
    space = "convsmith::depthwise::"
    if spec.direction is Direction.GRAD_WEIGHT:
        spreads = str(configuration.spreads).lower()
        return (f"{space}WeightGradient<{element}, {text}, {spreads}>",)
    is_gradient = spec.direction is Direction.GRAD_INPUT
    adds_channels = (spec.output_shape if is_gradient else spec.input_shape)[1] > spec.groups
    return (
        f"{space}Convolution<{str(is_gradient).lower()}, {element}, {text}, "
        f"{str(adds_channels).lower()}>",
    )


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
