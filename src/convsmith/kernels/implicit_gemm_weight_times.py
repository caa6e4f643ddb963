"""How long the implicit_gemm family's weight gradient takes, as fitted to an H100."""

from __future__ import annotations

import math

from convsmith.kernels.implicit_gemm_weight_cut import (
    LOADING_WARPS,
    WeightConfiguration,
    geometry_of,
)
from convsmith.roofline import Ceilings
from convsmith.spec import ConvSpec

# Microseconds of a multiprocessor, and rates per microsecond.
CYCLES = 1700.0
PRODUCT_CYCLES = {64: 60, 32: 12, 16: 8}  # of 64 filters, 16 pixels, by channels
LOADED_VECTORS = {1: 925.0, 3: 490.0}  # by the number of products
STRIDED_SHARE = 0.75  # of that rate, where neighbours are no neighbours in memory, or unfolded
LOADED_SLICES = 46.0  # beside their vectors, of each image
LINE_US = 1.9
WAITED_FOR = 1.5  # where a warp has nothing else on its way
UNHIDDEN = 0.45  # of the shorter one of loading and multiplying
WEIGHT_LAUNCHES_MS = 0.017
PARTIAL_SUMS_TBPS = 1.5
SHARE_OF_COPY_RATE = 0.85


def line_us(configuration: WeightConfiguration) -> float:
    """Time of a line: multiplying or loading, whichever takes longer, and part of the other."""
    line, products, slots = configuration.line, configuration.products, configuration.slots
    filters, channels = configuration.unit_filters, configuration.unit_channels
    warpgroups = -(-filters * channels * configuration.unit_taps // slots)
    steps = warpgroups * slots * line.y_pixels // 16 * products
    multiply = steps * PRODUCT_CYCLES[configuration.columns] / CYCLES
    of_y, of_x = configuration.slices
    of_x *= configuration.advance
    vectors = of_y * line.y_pixels + of_x * configuration.phases * line.x_pixels
    slices = of_y + of_x
    strided = configuration.phases > 1 or (configuration.lanes > 0 and configuration.loaders == 1)
    rate = LOADED_VECTORS[products] * (STRIDED_SHARE if strided else 1)
    load = vectors / rate + slices * line.segments / LOADED_SLICES
    load *= -(-slices // LOADING_WARPS) * LOADING_WARPS / slices  # for the warp with the most
    if configuration.loads == 1:
        load *= WAITED_FOR
    longest, other = max(multiply, load), min(multiply, load)
    return longest + (UNHIDDEN if configuration.lines > 1 else 1) * other + LINE_US


def blocks_us(configuration: WeightConfiguration, multiprocessors: int) -> float:
    """Time of all blocks."""
    rounds = -(-configuration.jobs * configuration.splits // multiprocessors)
    first_rows = configuration.span / max(configuration.advance, 1)
    return rounds * (configuration.split_lines + first_rows) * line_us(configuration)


def predicted_weight_ms(
    spec: ConvSpec, configuration: WeightConfiguration, ceilings: Ceilings, multiprocessors: int
) -> float:
    """Time of ``spec``: memory, or blocks that go over lines; and adding partial sums."""
    geometry = geometry_of(spec)
    rate = ceilings.fp16_TFLOPs / 760 * 132 / multiprocessors
    blocks_ms = blocks_us(configuration, multiprocessors) / 1e3 / rate
    moved = math.prod(spec.input_shape) + math.prod(spec.output_shape)
    memory_ms = moved * geometry.itemsize / (SHARE_OF_COPY_RATE * ceilings.copy_TBps * 1e9)
    partial_ms = configuration.workspace_bytes / (PARTIAL_SUMS_TBPS * 1e9)
    return max(blocks_ms, memory_ms) + partial_ms + WEIGHT_LAUNCHES_MS
