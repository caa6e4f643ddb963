"""How long the depthwise family takes, as fitted to an H200: what the planner weighs."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from convsmith.kernels.depthwise_tiles import SPREAD_RUN
from convsmith.roofline import Ceilings
from convsmith.spec import ConvSpec, Direction, Shape

if TYPE_CHECKING:
    from convsmith.kernels.depthwise_blocks import Configuration

H200_FP32_TFLOPS = 50.9  # of the GPU to which the times are fitted
BEGIN_AND_END_MS = 0.005

# Picoseconds of the whole GPU. A load moves up to 16 bytes; a position is one of the output (or of
# dx), a term one product of its sum.
LOAD, LONE_LOAD = 1.6, 2.6
POSITION, TERM, TERM_OF_MANY = 0.6, 0.065, 0.045
MANY_TERMS = 64
GRADIENT_POSITION, GRADIENT_TERM, NARROW_GRADIENT_TERM = 0.4, 0.065, 0.15

# Threads that keep a multiprocessor busy, or fewer where each has more sums than
# SUMS_OF_A_THREAD. Still fewer wait for what each product needs.
BUSY_THREADS, SUMS_OF_A_THREAD = 448, 32

# Of a weight gradient whose threads own taps: adding up a chain's sums, in products that take as
# long; and by what factor products take longer where columns of dy are counted, for they fill no
# whole runs.
CHAIN_END = 800
COUNTED = 1.2


def predicted_ms(
    spec: ConvSpec, configuration: Configuration, ceilings: Ceilings, multiprocessors: int
) -> float:
    """Time of ``spec``: memory at nine tenths of a copy's rate, or the instructions it takes."""
    memory = spec.bytes_moved / (0.9 * ceilings.copy_TBps * 1e9)
    instructions = instructions_ms(spec, configuration) * H200_FP32_TFLOPS / ceilings.fp32_TFLOPs
    if configuration.spreads:
        products = spread_products(spec, configuration, multiprocessors)
        instructions += 2 * products / (ceilings.fp32_TFLOPs * 1e9)
    else:
        instructions *= waiting(configuration, multiprocessors)
    parts = 2 if configuration.workspace_bytes else 1  # partial sums take a second kernel
    return max(memory, instructions) + parts * BEGIN_AND_END_MS


def instructions_ms(spec: ConvSpec, configuration: Configuration) -> float:
    """Time of the instructions: for each load, each position, and each term of its sum.

    Without the products of a weight gradient whose threads own taps: `spread_products`.
    """
    group_channels = spec.weight_shape[1]
    terms = math.prod(spec.kernel_size) * group_channels
    together = configuration.together > 1
    x = loads_of(spec.input_shape, spec.input_strides, spec.dtype.itemsize, together)
    y = loads_of(spec.output_shape, spec.output_strides, spec.dtype.itemsize, together)
    positions = math.prod(spec.output_shape)
    if spec.direction is Direction.GRAD_WEIGHT:
        group_filters = spec.out_channels // spec.groups
        filter_parts = -(-group_filters // configuration.bundle_filters)
        channel_parts = -(-group_channels // configuration.thread_filters)
        x *= filter_parts
        y *= channel_parts
        if configuration.spreads:
            return (x + y) * 1e-9
        # Threads of the last part work for channels and filters that do not exist, too.
        terms = channel_parts * configuration.thread_filters * math.prod(spec.kernel_size)
        planes = filter_parts * configuration.bundle_filters / group_filters
        of_a_term = NARROW_GRADIENT_TERM if group_channels > 1 else GRADIENT_TERM
        of_a_position = GRADIENT_POSITION + of_a_term * terms
        return (x + y + planes * positions * of_a_position) * 1e-9
    if spec.direction is Direction.GRAD_INPUT:
        # Each product of the forward convolution, from the side of x.
        terms = terms * positions // math.prod(spec.input_shape)
        positions = math.prod(spec.input_shape)
    of_a_term = TERM if terms <= MANY_TERMS else TERM_OF_MANY
    loads = y if spec.direction is Direction.GRAD_INPUT else x
    return (loads + positions * (POSITION + of_a_term * terms)) * 1e-9


def spread_products(spec: ConvSpec, configuration: Configuration, multiprocessors: int) -> float:
    """Products of a weight gradient whose threads own taps, and what takes as long.

    Every thread goes over the rows of a part of dy, in one run of columns, though it be the last
    one and shorter; so do those of taps that tiles have beyond the filter.
    """
    height, width = spec.output_size
    rows = height / -(-height // configuration.part[0])
    chains = -(-rows // configuration.chain)
    run = SPREAD_RUN * math.prod(configuration.tile) * rows
    run *= COUNTED if width % SPREAD_RUN else 1
    blocks = -(-configuration.blocks // multiprocessors) * multiprocessors
    parts = blocks * -(-configuration.tiles // configuration.blocks)
    of_a_part = configuration.threads * (run + CHAIN_END * chains)
    return parts * of_a_part * waiting(configuration, multiprocessors)


def waiting(configuration: Configuration, multiprocessors: int) -> float:
    """By what factor instructions take longer where too few threads are at work."""
    sums = math.prod(configuration.tile) * configuration.thread_filters
    threads = configuration.bundles * math.prod(configuration.thread_tiles)
    blocks = min(configuration.resident, -(-configuration.blocks // multiprocessors))
    threads *= configuration.bundle_filters * blocks
    return max(1, BUSY_THREADS / (threads * max(1, sums / SUMS_OF_A_THREAD)))


def loads_of(shape: Shape, strides: Shape, itemsize: int, together: bool) -> float:
    """What loading a tensor takes: in runs of up to 16 bytes of a row, or of a pixel's channels."""
    axis = 1 if together else 3
    run = math.gcd(shape[axis], 16 // itemsize) if strides[axis] == 1 else 1
    return math.prod(shape) * (LOAD / run if run > 1 else LONE_LOAD)
