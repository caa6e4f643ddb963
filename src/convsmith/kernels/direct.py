"""The direct family: the plain sum, for every parameter, dtype and layout (see direct.cuh).

One compilation serves every geometry: sizes, strides, padding, dilation and groups are run-time
numbers. What is compiled in is the direction, the dtype and the rows of a block's tile, so a whole
network needs a handful of kernels and a new input size none.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass

import torch

from convsmith.kernels.source import KernelSource, render
from convsmith.roofline import Ceilings
from convsmith.spec import ConvSpec, Direction, Shape

NAME = "direct"
LEAST_CAPABILITY = (7, 0)
MOST_CAPABILITY = (99, 0)
SIMULATION = 1

# The sizes of a block's tile.
TILE_COLUMNS = 128
TILE_TERMS = 8  # at a time
TILE_ROWS = (8, 16, 32, 64)  # one of these

# Beside its instructions. A block waits for memory at each stage, and for as long as WAITS_BESIDE
# stages take before its first one and after its last; RESIDENT blocks wait at the same time.
BEGIN_AND_END_MS = 0.005  # of a kernel
WAIT_MS = 0.00065
WAITS_BESIDE = 6
RESIDENT = 4

_DIRECTION = {
    Direction.FORWARD: "kForward",
    Direction.GRAD_INPUT: "kInputGradient",
    Direction.GRAD_WEIGHT: "kWeightGradient",
}
_ELEMENT = {
    torch.float32: "float",
    torch.float64: "double",
    torch.float16: "__half",
    torch.bfloat16: "__nv_bfloat16",
}


@dataclass(frozen=True)
class Configuration:
    """How one ConvSpec is cut into blocks.

    Args:
        rows, columns, terms: the contraction's extents in a group (and a phase of the stride).
        tile_rows: rows of a block's tile.
        splits: parts the terms are cut into; partial sums of more than one go to the workspace.
        promote_tiles: stages of TILE_TERMS terms between two promotions.
        blocks: of the whole grid.
        workspace_bytes: of partial sums.
    """

    rows: int
    columns: int
    terms: int
    tile_rows: int
    splits: int
    promote_tiles: int
    blocks: int
    workspace_bytes: int


def obstacle(spec: ConvSpec) -> str | None:
    """None: the family computes every convolution."""
    return None


def configure(spec: ConvSpec, multiprocessors: int) -> Configuration:
    """The tiling for ``spec`` on a GPU of ``multiprocessors``."""
    batch, _, height, width = spec.input_shape
    out_channels, group_channels, filter_height, filter_width = spec.weight_shape
    group_filters = out_channels // spec.groups
    taps = filter_height * filter_width
    pixels = batch * math.prod(spec.output_size)
    phases = 1
    if spec.direction is Direction.FORWARD:
        rows, columns, terms = group_filters, pixels, group_channels * taps
    elif spec.direction is Direction.GRAD_INPUT:
        phases = math.prod(spec.stride)
        rows = group_channels
        columns = batch * -(-height // spec.stride[0]) * -(-width // spec.stride[1])
        terms = group_filters * -(-taps // phases)
    else:
        rows, columns, terms = group_filters, group_channels * taps + spec.has_bias, pixels
    tile_rows = choose_tile_rows(rows, spec.dtype.itemsize)
    blocks = -(-rows // tile_rows) * -(-columns // TILE_COLUMNS) * spec.groups * phases
    splits, workspace_bytes = 1, 0
    if spec.direction is Direction.GRAD_WEIGHT:
        outputs = out_channels * columns
        splits = choose_splits(blocks, terms, outputs, multiprocessors)
        if splits > 1:
            workspace_bytes = splits * outputs * max(4, spec.dtype.itemsize)
    sums_taps = spec.direction is Direction.GRAD_INPUT and taps > 1
    promote_tiles = choose_promote_tiles(-(-terms // splits), sums_taps)
    return Configuration(
        rows, columns, terms, tile_rows, splits, promote_tiles, blocks * splits, workspace_bytes
    )


def alternatives(spec: ConvSpec, multiprocessors: int) -> list[Configuration]:
    """What ``configure`` returns: there is nothing else to measure."""
    return [configure(spec, multiprocessors)]


def choose_tile_rows(rows: int, itemsize: int) -> int:
    """The smallest tile that holds ``rows``, or the largest there is.

    Float64 stops at 32 rows: its sums take twice the registers.
    """
    largest = 32 if itemsize == 8 else 64
    return next((tile for tile in (8, 16, 32) if rows <= tile), largest)


def specialisations() -> list[KernelSource]:
    """Every kernel of the family."""
    return [
        specialise(direction, dtype, tile_rows)
        for direction in Direction
        for dtype in _ELEMENT
        for tile_rows in TILE_ROWS
        if tile_rows == choose_tile_rows(tile_rows, dtype.itemsize)
    ]


def choose_splits(blocks: int, terms: int, outputs: int, multiprocessors: int) -> int:
    """Into how many parts a weight gradient's terms are cut.

    Enough for six blocks a multiprocessor; but parts of at least 512 terms, and at most 16
    million partial sums in all.
    """
    wanted = -(-6 * multiprocessors // max(blocks, 1))
    return max(1, min(wanted, terms // 512, 2**24 // max(outputs, 1)))


def choose_promote_tiles(terms: int, sums_taps: bool) -> int:
    """Stages between promotions: 32 terms, or 16 in sums of at most 64, or 8 of at most 32.

    The rounding error of a sum grows with the square root of the terms between two promotions.
    At 32 it stays below that of all of cuDNN's algorithms; promoting costs a tenth of the time.
    But where an input gradient ``sums_taps``, that of cuDNN is as small in sums of up to 300.
    """
    fewest = 300 if sums_taps else 32
    return 1 if terms <= fewest else 2 if terms <= 64 else 4


def predicted_ms(
    spec: ConvSpec, configuration: Configuration, ceilings: Ceilings, multiprocessors: int
) -> float:
    """Time of ``spec``, fitted to an H100 and an H200.

    Instructions are issued at the rate of a matrix product: for each stage of TILE_TERMS terms a
    thread issues 8 multiply-adds per row of the tile and about 250 other instructions, for each
    promotion 5 per row, and about 900 to begin and end its block. Blocks run in whole rounds of one
    a multiprocessor. Where there are few rounds, blocks take as long as they wait for memory.
    Storing overlaps little with computing, so a third of the traffic adds.
    """
    stages = -(-configuration.terms // (configuration.splits * TILE_TERMS))
    rounds = -(-configuration.blocks // multiprocessors)
    promotions = stages // configuration.promote_tiles
    instructions = stages * (TILE_TERMS * configuration.tile_rows + 250) + 900
    instructions += promotions * 5 * configuration.tile_rows
    operations = rounds * multiprocessors * instructions * 2 * TILE_COLUMNS
    rate = ceilings.fp32_TFLOPs * (0.5 if spec.dtype is torch.float64 else 1.0)
    moved = spec.bytes_moved + 2 * configuration.workspace_bytes
    waits_ms = -(-rounds // RESIDENT) * (stages + WAITS_BESIDE) * WAIT_MS
    kernels = 2 if configuration.splits > 1 else 1  # the second one adds partial sums
    return (
        max(operations / (rate * 1e9), waits_ms)
        + moved / (3 * ceilings.copy_TBps * 1e9)
        + kernels * BEGIN_AND_END_MS
    )


def reason(configuration: Configuration) -> str:
    """How the time comes about, in a few words."""
    return (
        f"{configuration.blocks} blocks of {configuration.tile_rows} x {TILE_COLUMNS}, "
        f"{configuration.terms} terms in {configuration.splits} part(s)"
    )


def pack_problem(
    input_shape: Shape,
    weight_shape: Shape,
    output_size: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    groups: int,
    input_strides: Shape,
    weight_strides: Shape,
    output_strides: Shape,
    splits: int,
    promote_tiles: int,
) -> bytes:
    """``Problem`` of direct.cuh: 30 integers of 64 bits."""
    batch, in_channels, height, width = input_shape
    out_channels, _, filter_height, filter_width = weight_shape
    return struct.pack(
        "30q",
        *(groups, batch, in_channels // groups, height, width, out_channels // groups),
        *(filter_height, filter_width, *output_size, *stride, *padding, *dilation),
        *(*input_strides, *weight_strides, *output_strides, splits, promote_tiles),
    )


def problem(spec: ConvSpec, configuration: Configuration) -> bytes:
    """What the kernel is told of ``spec`` at run time."""
    return pack_problem(
        spec.input_shape,
        spec.weight_shape,
        spec.output_size,
        spec.stride,
        spec.padding,
        spec.dilation,
        spec.groups,
        spec.input_strides,
        spec.weight_strides,
        spec.output_strides,
        configuration.splits,
        configuration.promote_tiles,
    )


def source(spec: ConvSpec, configuration: Configuration) -> KernelSource:
    """The kernel that runs ``spec``."""
    return specialise(spec.direction, spec.dtype, configuration.tile_rows)


def specialise(direction: Direction, dtype: torch.dtype, tile_rows: int) -> KernelSource:
    """The kernel of one direction, dtype and tile."""
    name = f"{NAME}_{direction.value}_{str(dtype).removeprefix('torch.')}_{tile_rows}"
    return render(NAME, name, _arguments(direction, dtype, tile_rows))


def template_arguments(spec: ConvSpec, configuration: Configuration) -> tuple[str, ...]:
    """What ``Specialisation`` of direct.cuh is instantiated with."""
    return _arguments(spec.direction, spec.dtype, configuration.tile_rows)


def _arguments(direction: Direction, dtype: torch.dtype, tile_rows: int) -> tuple[str, ...]:
    constant = f"convsmith::direct::Direction::{_DIRECTION[direction]}"
    return constant, _ELEMENT[dtype], str(tile_rows)
