"""What one thread of the depthwise family owns: a tile of outputs, or of taps, and its sums."""

from __future__ import annotations

import math
from dataclasses import dataclass

from convsmith.spec import ConvSpec, Direction, Pair, Shape, strides_like_channels_last

MOST_CHANNELS_AT_ONCE = 8  # kChannels of Convolution
MOST_TILE = 64  # outputs of a thread
MOST_TERMS_OF_ONE_CHAIN = 48
MOST_KEPT_TAPS = 64  # sums of a weight gradient that a thread keeps
SPREAD_TILE = (4, 8)  # taps of a thread of a weight gradient of more taps than that
SPREAD_RUN = 8  # kRun of depthwise_weight.cuh


@dataclass(frozen=True)
class Axis:
    """The sources that a thread's tile meets along one axis, as in depthwise_axis.cuh."""

    first: int
    extent: int
    advance: int


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


def computed(spec: ConvSpec) -> tuple[Shape, Shape, Shape, Shape]:
    """Shapes and strides of the tensor that is read and of the one that is computed."""
    x = (spec.input_shape, spec.input_strides)
    y = (spec.output_shape, spec.output_strides)
    return (*y, *x) if spec.direction is Direction.GRAD_INPUT else (*x, *y)


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
    Seven rows divide the planes of most networks with large filters, and two columns those
    whose rows are not multiples of four. An input gradient's tile holds whole strides.
    """
    taps = math.prod(spec.weight_shape[2:])
    if spreads_taps(spec):
        return SPREAD_TILE
    if spec.direction is Direction.GRAD_WEIGHT:
        rows = 4 if taps <= 25 else 7
        columns = 2 if taps > 25 and spec.output_shape[3] <= 16 else 4
        while rows > 1 and rows * columns > terms_of_a_chain(spec):
            rows = -(-rows // 2)
        return rows, columns
    rows, columns = (8, 4) if taps <= 25 else (7, 4) if taps <= MOST_KEPT_TAPS else (7, 8)
    height, width = computed(spec)[2][2:]
    itemsize = spec.dtype.itemsize
    if spec.direction is Direction.FORWARD and max(spec.stride) > 1:
        rows, columns = (7, 2) if taps <= 25 else (4, 4)
    elif (rows, columns) == (7, 4) and width % 4 == 2 and width < 32 and itemsize == 4:
        rows, columns = 14 if -(-height // 7) % 2 == 0 else 7, 2
    while rows > 2 and rows * columns * thread_filters(spec) > MOST_TILE:
        rows = -(-rows // 2)
    if spec.direction is Direction.GRAD_INPUT:
        rows, columns = (
            stride * max(1, size // stride)
            for stride, size in zip(spec.stride, (rows, columns), strict=True)
        )
    return rows, columns


def block_of(spec: ConvSpec, has_totals: bool = True) -> tuple[int, int]:
    """(most threads of a block, blocks that share a multiprocessor), as measured on an H200.

    Together they say how many registers a thread has: 65536 over their product. Threads of a
    weight gradient do with fewer where they have no totals beside their sums.
    """
    taps = math.prod(spec.weight_shape[2:])
    has_narrow_groups = spec.weight_shape[1] > 1 or thread_filters(spec) > 1
    if spec.direction is Direction.GRAD_WEIGHT:
        if spreads_taps(spec):
            return 256, 2
        if has_narrow_groups:
            return 128, 4
        return (256, 3) if taps <= 9 else (128, 4) if taps <= 25 or not has_totals else (128, 3)
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


def stores_directly(spec: ConvSpec) -> bool:
    """Whether threads store their outputs themselves: where that takes whole 16 bytes a row."""
    _, _, _, out_strides = computed(spec)
    columns = thread_tile(spec)[1]
    width = computed(spec)[2][3]
    run = math.gcd(columns, 16 // spec.dtype.itemsize)
    aligned = all(step % run == 0 for step in out_strides[:3]) and out_strides[3] == 1
    one_turn = computed(spec)[0][1] // spec.groups <= MOST_CHANNELS_AT_ONCE
    return aligned and width % columns == 0 and run * spec.dtype.itemsize >= 8 and one_turn


def terms_of_a_chain(spec: ConvSpec) -> int:
    """How many terms of a weight gradient are added in float32 before the sum is put by.

    A chain of n additions errs like the square root of n / 2 roundings. PyTorch adds the terms
    of a tap in 256 chains and then pairwise, about log2(256) + terms / 512 in place of n / 2,
    or log2(terms) where there are fewer. Half of that is allowed here, so that the largest
    error stays below PyTorch's as well.
    """
    terms = spec.input_shape[0] * math.prod(spec.output_size)
    return min(8, round(math.log2(terms))) + terms // 512
