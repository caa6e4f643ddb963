"""How long the depthwise family takes, as fitted to an H200: what the planner weighs."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

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


def predicted_ms(
    spec: ConvSpec, configuration: Configuration, ceilings: Ceilings, multiprocessors: int
) -> float:
    """Time of ``spec``: memory at nine tenths of a copy's rate, or the instructions it takes."""
    memory = spec.bytes_moved / (0.9 * ceilings.copy_TBps * 1e9)
    instructions = instructions_ms(spec, configuration) * H200_FP32_TFLOPS / ceilings.fp32_TFLOPs
    parts = 2 if configuration.workspace_bytes else 1  # partial sums take a second kernel
    return max(memory, instructions) + parts * BEGIN_AND_END_MS


def instructions_ms(spec: ConvSpec, configuration: Configuration) -> float:
    """Time of the instructions: for each load, each position, and each term of its sum."""
    group_channels = spec.weight_shape[1]
    terms = math.prod(spec.kernel_size) * group_channels
    together = configuration.together > 1
    x = loads_of(spec.input_shape, spec.input_strides, spec.dtype.itemsize, together)
    y = loads_of(spec.output_shape, spec.output_strides, spec.dtype.itemsize, together)
    positions = math.prod(spec.output_shape)
    if spec.direction is Direction.GRAD_WEIGHT:
        x *= -(-spec.out_channels // spec.groups // configuration.bundle_filters)
        y *= -(-group_channels // configuration.thread_filters)
        of_a_term = NARROW_GRADIENT_TERM if group_channels > 1 else GRADIENT_TERM
        return (x + y + positions * (GRADIENT_POSITION + of_a_term * terms)) * 1e-9
    if spec.direction is Direction.GRAD_INPUT:
        # Each product of the forward convolution, from the side of x.
        terms = terms * positions // math.prod(spec.input_shape)
        positions = math.prod(spec.input_shape)
    of_a_term = TERM if terms <= MANY_TERMS else TERM_OF_MANY
    loads = y if spec.direction is Direction.GRAD_INPUT else x
    return (loads + positions * (POSITION + of_a_term * terms)) * 1e-9


def loads_of(shape: Shape, strides: Shape, itemsize: int, together: bool) -> float:
    """What loading a tensor takes: in runs of up to 16 bytes of a row, or of a pixel's channels."""
    axis = 1 if together else 3
    run = math.gcd(shape[axis], 16 // itemsize) if strides[axis] == 1 else 1
    return math.prod(shape) * (LOAD / run if run > 1 else LONE_LOAD)
