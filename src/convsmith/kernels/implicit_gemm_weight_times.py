"""How long the implicit_gemm family's weight gradient takes, as fitted to an H100."""

from __future__ import annotations

import math

from convsmith.kernels.implicit_gemm_weight_cut import LOADING_WARPS, WeightConfiguration
from convsmith.roofline import Ceilings
from convsmith.spec import ConvSpec

# Microseconds of a multiprocessor, and rates per microsecond.
CYCLES = 1700.0
PRODUCT_CYCLES = {64: 39.0, 32: 19.0, 16: 18.0}  # of 64 filters, 16 pixels, by channels
PRODUCT_OF_PARTS = 0.92  # times that, of which three make one
UNSHARED_FILTERS = 1.31  # times that, where a warpgroup's units have filters of several
LOADED_VECTORS = {1: 1090.0, 3: 560.0}  # of four warps, by the number of products
EIGHT_WARPS = 1.87  # times that rate
STRIDED_SHARE = 0.68  # of that rate, where neighbours are no neighbours in memory
UNFOLDED_VECTOR = 1.65  # others
LOADED_SLICES = 101.0  # of four warps, beside their vectors, of each image
IMBALANCE = 0.27  # of the time that the warp with the most slices takes longer than the others
LINE_US = 1.9
WAITED_FOR = 1.17  # where a warp has nothing else on its way, of values that are split
UNHIDDEN = 0.39  # of the shorter one of loading and multiplying
WEIGHT_LAUNCHES_MS = 0.019
PARTIAL_SUMS_TBPS = 1.5
SHARE_OF_COPY_RATE = 0.85


def line_us(configuration: WeightConfiguration) -> float:
    """Time of a line: multiplying or loading, whichever takes longer, and part of the other."""
    multiply, load = multiply_us(configuration), load_us(configuration)
    longest, other = max(multiply, load), min(multiply, load)
    return longest + (UNHIDDEN if configuration.rings.lines > 1 else 1) * other + LINE_US


def multiply_us(configuration: WeightConfiguration) -> float:
    """Time of a line's products."""
    units = configuration.unit_filters * configuration.unit_channels * configuration.unit_taps
    warpgroups = -(-units // configuration.slots)
    steps = warpgroups * configuration.slots * configuration.line.y_pixels // 16
    product = PRODUCT_CYCLES[configuration.geometry.unit_columns]
    if configuration.products == 3:
        product *= PRODUCT_OF_PARTS
    if not configuration.shares_filters:
        product *= UNSHARED_FILTERS
    return steps * configuration.products * product / CYCLES


def load_us(configuration: WeightConfiguration) -> float:
    """Time of loading a line's row of dy and its new rows of x."""
    geometry, line = configuration.geometry, configuration.line
    of_y, of_x = configuration.slices
    of_x *= configuration.strip.advance
    x_vectors = of_x * geometry.phases * line.x_pixels
    vectors = of_y * line.y_pixels + x_vectors * (UNFOLDED_VECTOR if geometry.lanes else 1)
    rate = LOADED_VECTORS[configuration.products]
    rate *= STRIDED_SHARE if geometry.phases > 1 else 1
    slices = of_y + of_x
    warps = LOADING_WARPS * configuration.loaders
    most = -(-slices // warps) * warps / slices  # times what a warp has on average
    load = vectors / rate + slices * line.segments / LOADED_SLICES
    load /= EIGHT_WARPS if configuration.loaders == 2 else 1
    if configuration.rings.loads == 1 and configuration.products == 3:
        load *= WAITED_FOR
    return load * (1 + IMBALANCE * (most - 1))


def blocks_us(configuration: WeightConfiguration, multiprocessors: int) -> float:
    """Time of all blocks. A strip begins with more new rows of x than a line has."""
    rounds = -(-configuration.jobs * configuration.splits // multiprocessors)
    strips = math.ceil(configuration.split_lines / configuration.strip_lines)
    span, advance = configuration.strip.span, configuration.strip.advance
    lines = configuration.split_lines + strips * (span - advance) / advance
    return rounds * lines * line_us(configuration)


def predicted_weight_ms(
    spec: ConvSpec, configuration: WeightConfiguration, ceilings: Ceilings, multiprocessors: int
) -> float:
    """Time of ``spec``: memory, or blocks that go over lines; and adding partial sums."""
    rate = ceilings.fp16_TFLOPs / 760 * 132 / multiprocessors
    blocks_ms = blocks_us(configuration, multiprocessors) / 1e3 / rate
    moved = math.prod(spec.input_shape) + math.prod(spec.output_shape)
    memory_ms = moved * spec.dtype.itemsize / (SHARE_OF_COPY_RATE * ceilings.copy_TBps * 1e9)
    partial_ms = configuration.workspace_bytes / (PARTIAL_SUMS_TBPS * 1e9)
    return max(blocks_ms, memory_ms) + partial_ms + WEIGHT_LAUNCHES_MS
