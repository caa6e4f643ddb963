"""The implicit_gemm family: many channels, on the tensor cores (see implicit_gemm.cuh)."""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass

import torch

from convsmith.kernels.source import KernelSource, render
from convsmith.roofline import Ceilings
from convsmith.spec import ConvSpec, Direction, Pair, Precision, Shape

NAME = "implicit_gemm"
LEAST_CAPABILITY = (9, 0)  # and no other: wgmma
MOST_CAPABILITY = (9, 0)
SIMULATION = 2

ROWS_OF_BLOCK = 64
HALF = 128
VECTOR = 8
WGMMA_TERMS = 16
MOST_STAGES = 32
LOADING_THREADS = {1: 224, 3: 96}  # by the number of products
MOST_BYTES_AHEAD, FEWEST_BYTES_AHEAD = 42 * 1024, 9 * 1024  # of loads on their way
MOST_TAPS = 512
SHARED_BYTES = 227 * 1024
STAGING_BYTES = 8 * 8 * (128 + 8) * 4
LEAST_GROUP_CHANNELS = 8
# Not yet fitted to measurements.
SHARE_OF_MEMORY, SHARE_OF_RATE, BEGIN_AND_END_MS = 0.7, 0.6, 0.012

_ELEMENT = {
    torch.float32: "float",
    torch.float16: "__half",
    torch.bfloat16: "__nv_bfloat16",
}


@dataclass(frozen=True)
class Halves:
    """The two halves of a tile, of 128 pixels each.

    Args:
        columns: of a half: 8, and 16 rows; or 128, and one row.
        down, right: from the first half to the second.
    """

    columns: int
    down: int
    right: int

    @property
    def rows(self) -> int:
        """Of both halves together."""
        return HALF // self.columns + self.down

    @property
    def width(self) -> int:
        """Columns of both halves together."""
        return self.columns + self.right


SHAPES = (Halves(128, 1, 0), Halves(8, 0, 8), Halves(8, 16, 0))


@dataclass(frozen=True)
class Configuration:
    """How one ConvSpec is cut into blocks. Pairs are (rows, columns).

    Args:
        products: of 16-bit operands that make one.
        unfolds: each channel and tap is a channel of its own, and the only tap.
        splits_filters: the warpgroups of a tile have filters of their own, and share pixels.
        shape: of the two halves of a tile.
        tall_height: padded input rows of an image.
        phases: of the stride, that taps meet.
        patch_rows, pitch: of each phase of a patch, in pixels.
        block_channels: of a patch.
        at_once, ahead: vectors that a loading thread copies at once, and such groups on their way.
        patch_stages, weight_stages, stage_taps: of the rings in shared memory.
        weights_stay: the ring of weights holds all of them.
        stores_in_turn: the warpgroups do.
        tiles: of outputs, down all images and across.
        blocks: of the grid.
        shared_bytes: of a block.
        workspace_bytes: packed weights.
    """

    products: int
    splits_filters: bool
    unfolds: bool
    shape: Halves
    tall_height: int
    phases: Pair
    patch_rows: int
    pitch: int
    block_channels: int
    at_once: int
    ahead: int
    patch_stages: int
    weight_stages: int
    weights_stay: bool
    stores_in_turn: bool
    stage_taps: int
    tiles: Pair
    blocks: int
    shared_bytes: int
    workspace_bytes: int


@dataclass(frozen=True)
class Forward:
    """The forward convolution that computes a ConvSpec. Pairs are (rows, columns).

    Args:
        batch, groups: images; channels and filters are of a group.
        in_size, out_size, kernel, stride, padding, dilation: its geometry.
        in_strides, out_strides: in elements.
        weight_strides: of groups, filters, channels, rows and columns of taps.
        first_weight: where the first tap lies.
    """

    batch: int
    groups: int
    channels: int
    filters: int
    in_size: Pair
    out_size: Pair
    kernel: Pair
    stride: Pair
    padding: Pair
    dilation: Pair
    in_strides: Shape
    out_strides: Shape
    weight_strides: tuple[int, int, int, int, int]
    first_weight: int


def forward_of(spec: ConvSpec) -> Forward:
    """The forward convolution that computes ``spec``.

    Of an input gradient, of stride 1, that of dy with the filters turned around.
    """
    batch, _, *in_size = spec.input_shape
    out_channels, channels, *kernel = spec.weight_shape
    filters = out_channels // spec.groups
    of_filter, of_channel, of_row, of_column = spec.weight_strides
    if spec.direction is Direction.FORWARD:
        return Forward(
            *(batch, spec.groups, channels, filters),
            *((in_size[0], in_size[1]), spec.output_size, (kernel[0], kernel[1])),
            *(spec.stride, spec.padding, spec.dilation),
            *(spec.input_strides, spec.output_strides),
            (filters * of_filter, of_filter, of_channel, of_row, of_column),
            0,
        )
    rows, columns = (
        step * (taps - 1) - before
        for step, taps, before in zip(spec.dilation, kernel, spec.padding, strict=True)
    )
    return Forward(
        *(batch, spec.groups, filters, channels),
        *(spec.output_size, (in_size[0], in_size[1]), (kernel[0], kernel[1])),
        *(spec.stride, (rows, columns), spec.dilation),
        *(spec.output_strides, spec.input_strides),
        (filters * of_filter, of_channel, of_filter, -of_row, -of_column),
        (kernel[0] - 1) * of_row + (kernel[1] - 1) * of_column,
    )


def obstacle(spec: ConvSpec) -> str | None:
    """Why the family cannot compute ``spec``, or None."""
    if spec.direction is Direction.GRAD_WEIGHT:
        return "it computes no weight gradients"
    if spec.direction is Direction.GRAD_INPUT and spec.stride != (1, 1):
        return "it computes no input gradient of a stride"
    if spec.dtype not in _ELEMENT:
        return "the tensor cores' sums are too short for float64"
    group_channels = forward_of(spec).channels
    if group_channels < LEAST_GROUP_CHANNELS and spec.groups > 1:
        return f"its groups have fewer than {LEAST_GROUP_CHANNELS} channels"
    taps = math.prod(spec.weight_shape[2:])
    if group_channels < LEAST_GROUP_CHANNELS:
        taps = unfolded_channels(forward_of(spec)) // VECTOR
    if taps > MOST_TAPS:
        return f"its filters have more than {MOST_TAPS} taps"
    if configure(spec, 1) is None:
        return "its patches do not fit into shared memory"
    return None


def configure(spec: ConvSpec, multiprocessors: int) -> Configuration | None:
    """The tiling for ``spec`` on a GPU of ``multiprocessors``; None where none fits."""
    forward = forward_of(spec)
    products = 3 if spec.precision is Precision.FLOAT32 else 1
    # Few filters leave a warpgroup none of its own: it takes more pixels, if their patch fits.
    for splits_filters in (False, True) if forward.filters <= ROWS_OF_BLOCK else (True,):
        attempts = [
            attempt(forward, products, spec.dtype.itemsize, multiprocessors, splits_filters, shape)
            for shape in SHAPES
        ]
        fitting = [one for one in attempts if one is not None]
        if fitting:
            return min(
                fitting,
                key=lambda one: math.prod(one.tiles) * (1 + 0.05 * (one.shape.columns == 8)),
            )
    return None


def attempt(
    spec: Forward,
    products: int,
    itemsize: int,
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
    taps = 1 if unfolds else math.prod(kernel)
    stride = spec.stride[0]
    phases, reach = [1, 1], [0, 0]
    if not unfolds:
        for axis, (one, step, dilation) in enumerate(
            zip(kernel, spec.stride, spec.dilation, strict=True)
        ):
            phases[axis] = met = min(one, step // math.gcd(step, dilation))
            reach[axis] = max(
                (r * dilation - (r % met) * dilation % step) // step for r in range(one)
            )
    patch_rows, pitch = tile[0] + reach[0], tile[1] + reach[1]
    pixels = math.prod(phases) * patch_rows * pitch
    needed = (spec.out_size[0] - 1) * stride + (kernel[0] - 1) * spec.dilation[0] + 1
    tall_height = -(-needed // stride) * stride
    if unfolds:
        tall_height = spec.out_size[0] * stride
    rings = 2 if splits_filters else 1
    block_filters = ROWS_OF_BLOCK * rings
    filter_blocks = -(-spec.filters // block_filters)
    stage_taps = choose_stage_taps(taps)
    padded_taps = -(-taps // stage_taps) * stage_taps
    tables = (5 if unfolds else 3) * -(-pixels // 4) * 4 * 4
    for block_channels, patch_stages, weight_stages, at_once in rings_to_try(
        channels, taps, itemsize
    ):
        channel_blocks = -(-channels // block_channels)
        group_bytes = at_once * VECTOR * LOADING_THREADS[products] * itemsize
        stage_bytes = stage_taps * parts * block_channels * ROWS_OF_BLOCK * 2
        all_stages = channel_blocks * padded_taps // stage_taps
        stay = weight_stages == 0
        if stay and (all_stages > MOST_STAGES or spec.groups * filter_blocks > 1):
            continue
        weight_stages = all_stages if stay else weight_stages
        # Else one warpgroup would soon wait for weights that the other one holds up.
        takes_turns = stay or products == 3
        if patch_stages > 4 and not takes_turns:
            continue
        shared = head_bytes(unfolds) + STAGING_BYTES + tables
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
        packed = padded // ROWS_OF_BLOCK * all_stages * stage_bytes
        return Configuration(
            products=products,
            splits_filters=splits_filters,
            unfolds=unfolds,
            shape=shape,
            tall_height=tall_height,
            phases=(phases[0], phases[1]),
            patch_rows=patch_rows,
            pitch=pitch,
            block_channels=block_channels,
            at_once=at_once,
            ahead=ahead,
            patch_stages=patch_stages,
            weight_stages=weight_stages,
            weights_stay=stay,
            stores_in_turn=takes_turns,
            stage_taps=stage_taps,
            tiles=tiles,
            blocks=min(math.prod(tiles) * spec.groups * filter_blocks, multiprocessors),
            shared_bytes=shared,
            workspace_bytes=packed + 4 * padded,
        )
    return None


def unfolded_channels(spec: Forward) -> int:
    """Channels of each tap, where there are few: a filter row's taps fill whole vectors."""
    rows, columns = spec.kernel
    return spec.channels * rows * -(-columns // VECTOR) * VECTOR


def rings_to_try(channels: int, taps: int, itemsize: int) -> list[tuple[int, int, int, int]]:
    """Channels of a patch, patches, stages of weights (0: of all), vectors at once; the best first.

    Of a single tap, several instructions' channels make a patch, so that it is worth a barrier.
    """
    whole = -(-channels // WGMMA_TERMS) * WGMMA_TERMS
    blocks = sorted({min(whole, 64), min(whole, 32), 16}, reverse=True) if taps == 1 else [16]
    at_once_to_try = (2, 1) if itemsize == 4 else (4, 2)  # 16-bit values are waited for
    found = []
    for least, most in ((3, 6), (2, 2), (1, 1)):
        for at_once in at_once_to_try:
            for block in blocks:
                patches = range(max(least, min(most, -(-channels // block) + 2)), least - 1, -1)
                found += [
                    (block, stages, weights, at_once)
                    for weights in (0, 4, 3, 2)
                    for stages in patches
                ]
    return found


def head_bytes(unfolds: bool) -> int:
    """kHeadBytes of Shared in implicit_gemm_problem.cuh."""
    head = 6 * MOST_STAGES * 8 + 4 * MOST_STAGES + 2 * 8 * 4
    head += 4 * MOST_TAPS + 3 * 4 * (MOST_TAPS if unfolds else 1)
    return -(-head // 128) * 128


def stores_vectors(forward: Forward) -> bool:
    """Whether all rows of the output are whole vectors of four neighbouring elements."""
    *others, columns = forward.out_strides
    aligned = all(step % 4 == 0 for step in others)
    return columns == 1 and forward.out_size[1] % 4 == 0 and aligned


def choose_stage_taps(taps: int) -> int:
    """Taps of a stage of weights: few enough for a ring, and fitting well into all of them."""
    return min((4, 3, 2, 1), key=lambda one: -(-taps // one) * one * (1 + 0.1 / one))


def predicted_ms(
    spec: ConvSpec, configuration: Configuration, ceilings: Ceilings, multiprocessors: int
) -> float:
    """Time of ``spec``: memory, or products of whole tiles, and what begins and ends a launch."""
    memory = spec.bytes_moved / (SHARE_OF_MEMORY * ceilings.copy_TBps * 1e9)
    block_filters = ROWS_OF_BLOCK * (2 if configuration.splits_filters else 1)
    pixels = 256 * (1 if configuration.splits_filters else 2)
    tiles = math.prod(configuration.tiles) * spec.groups
    forward = forward_of(spec)
    tiles *= -(-forward.filters // block_filters)
    waves = -(-tiles // configuration.blocks)
    channels, taps = forward.channels, math.prod(forward.kernel)
    if configuration.unfolds:
        channels, taps = channels * taps, 1
    channels = -(-channels // configuration.block_channels) * configuration.block_channels
    taps = -(-taps // configuration.stage_taps) * configuration.stage_taps
    operations = 2 * waves * configuration.blocks * block_filters * pixels * channels * taps
    rate = SHARE_OF_RATE * ceilings.fp16_TFLOPs * configuration.blocks / multiprocessors
    return max(memory, operations * configuration.products / (rate * 1e9)) + BEGIN_AND_END_MS


def reason(configuration: Configuration) -> str:
    """How the time comes about, in a few words."""
    rows, columns = configuration.tiles
    return (
        f"{rows} x {columns} tiles, {configuration.products} product(s), "
        f"{configuration.shared_bytes / 1024:.0f} KiB shared"
    )


def problem(spec: ConvSpec, configuration: Configuration) -> bytes:
    """What the kernel is told of ``spec`` at run time."""
    forward = forward_of(spec)
    shape = configuration.shape
    numbers = (  # Problem of implicit_gemm_problem.cuh
        *(forward.batch, forward.groups, forward.channels, forward.filters),
        *(*forward.in_size, *forward.out_size, *forward.kernel),
        *(*forward.stride, *forward.padding, *forward.dilation),
        *(*forward.in_strides, *forward.out_strides),
        *(*forward.weight_strides, forward.first_weight),
        configuration.tall_height,
        *(shape.columns, shape.down, shape.right, shape.rows),
        *configuration.phases,
        *(configuration.patch_rows, configuration.pitch, configuration.patch_stages),
        *(configuration.weight_stages, configuration.stores_in_turn),
        *(configuration.weights_stay, *configuration.tiles),
        stores_vectors(forward),
        forward.out_strides[3] == 1 and shape.columns == HALF,
        configuration.blocks,
    )
    return struct.pack(f"{len(numbers)}q", *numbers)


def template_arguments(spec: ConvSpec, configuration: Configuration) -> tuple[str, ...]:
    """What ``Specialisation`` of implicit_gemm_problem.cuh is instantiated with."""
    splits = str(configuration.splits_filters).lower()
    unfolds = str(configuration.unfolds).lower()
    loads = (configuration.at_once, configuration.ahead)
    numbers = (configuration.block_channels, *loads, configuration.stage_taps)
    first = (_ELEMENT[spec.dtype], str(configuration.products), splits, unfolds)
    return (*first, *map(str, numbers))


def source(spec: ConvSpec, configuration: Configuration) -> KernelSource:
    """The kernel that runs ``spec``."""
    dtype = str(spec.dtype).removeprefix("torch.")
    name = f"{NAME}_{spec.direction.value}_{dtype}_{configuration.products}"
    return render(NAME, name, template_arguments(spec, configuration))
