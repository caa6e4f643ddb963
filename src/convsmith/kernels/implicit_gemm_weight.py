"""The weight gradient of the implicit_gemm family (see implicit_gemm_weight.cuh)."""

from __future__ import annotations

import functools
import struct

from convsmith.kernels.implicit_gemm_forward import LEAST_GROUP_CHANNELS
from convsmith.kernels.implicit_gemm_weight_cut import (
    WeightConfiguration,
    attempt_lines,
    geometry_of,
    lines_to_try,
    units_to_try,
)
from convsmith.kernels.implicit_gemm_weight_times import blocks_us
from convsmith.spec import ConvSpec


def weight_obstacle(spec: ConvSpec) -> str | None:
    """Why the family cannot compute ``spec``, a weight gradient, or None."""
    if spec.weight_shape[1] < LEAST_GROUP_CHANNELS and spec.groups > 1:
        return f"its groups have fewer than {LEAST_GROUP_CHANNELS} channels"
    if spec.input_strides[3] != 1 and spec.input_shape[3] > 1:
        return "the rows of its input are not contiguous"
    if spec.output_strides[3] != 1 and spec.output_shape[3] > 1:
        return "the rows of its upstream gradient are not contiguous"
    if configure_weight(spec, 1) is None:
        return "its rows do not fit into shared memory"
    return None


@functools.cache
def configure_weight(spec: ConvSpec, multiprocessors: int) -> WeightConfiguration | None:
    """The blocks for ``spec`` on a GPU of ``multiprocessors``; None where none fit."""
    cuts = timed_cuts(spec, multiprocessors)
    return min(cuts, key=lambda timed: timed[0])[1] if cuts else None


def timed_cuts(spec: ConvSpec, multiprocessors: int) -> list[tuple[float, WeightConfiguration]]:
    """All blocks for ``spec`` that fit, each with its predicted time in microseconds."""
    geometry = geometry_of(spec)
    attempts = [
        attempt_lines(geometry, units, line, multiprocessors)
        for units in units_to_try(geometry)
        for line in lines_to_try(geometry)
    ]
    return [(blocks_us(one, multiprocessors), one) for one in attempts if one is not None]


def best_cuts_of_units(
    spec: ConvSpec, multiprocessors: int
) -> list[tuple[float, WeightConfiguration]]:
    """Of ``timed_cuts`` the quickest one for each way to share out units among blocks."""
    best: dict[tuple[int, int, int], tuple[float, WeightConfiguration]] = {}
    for time, one in sorted(timed_cuts(spec, multiprocessors), key=lambda timed: timed[0]):
        units = (one.unit_filters, one.unit_channels, one.unit_taps)
        best.setdefault(units, (time, one))
    return list(best.values())


def weight_reason(configuration: WeightConfiguration) -> str:
    """How the time comes about, in a few words."""
    line = configuration.line
    return (
        f"{configuration.jobs} x {configuration.splits} blocks of {configuration.split_lines} "
        f"lines of {line.segments} x {line.run_columns} pixels, {configuration.products} "
        f"product(s), {configuration.rings.shared_bytes / 1024:.0f} KiB shared"
    )


def weight_problem(spec: ConvSpec, configuration: WeightConfiguration) -> bytes:
    """What the kernel is told of ``spec`` at run time."""
    geometry, line = configuration.geometry, configuration.line
    strip, rings = configuration.strip, configuration.rings
    numbers = (  # WeightProblem of implicit_gemm_weight_problem.cuh
        *(geometry.batch, geometry.groups, geometry.channels, geometry.filters),
        *(*geometry.x_size, *geometry.y_size, *geometry.kernel),
        *(*geometry.stride, *geometry.padding, *geometry.dilation),
        *(*spec.input_strides, *spec.output_strides, *spec.weight_strides),
        *(configuration.unit_filters, configuration.unit_channels, configuration.unit_taps),
        *(line.runs, line.run_columns, line.pitch),
        *(strip.line_step, strip.row_step, strip.span, strip.advance),
        *(rings.lines, rings.rows),
        *(configuration.x_columns, geometry.row_taps, geometry.unfolded, configuration.splits),
    )
    return struct.pack(f"{len(numbers)}q", *numbers)


def weight_arguments(element: str, configuration: WeightConfiguration) -> tuple[str, ...]:
    """What ``Specialisation`` of implicit_gemm.cuh is instantiated with: one type."""
    geometry, line = configuration.geometry, configuration.line
    arguments = (  # WeightGradient of implicit_gemm_weight_problem.cuh
        *(geometry.parts, geometry.sum_pixels, geometry.unit_columns, configuration.slots),
        *(line.segments, configuration.is_plain, geometry.lanes),
        *(configuration.rings.loads, configuration.loaders),
        *(configuration.shares_filters, geometry.has_bias),
        *(line.y_pixels, geometry.phases, line.x_pixels),
        *configuration.load_bytes,
        *geometry.lie_alike,
    )
    what = ", ".join((element, *(str(argument).lower() for argument in arguments)))
    return (f"convsmith::implicit_gemm::WeightGradient<{what}>",)
