"""The depthwise family: few channels a group, at the speed of memory (see depthwise.cuh).

It covers one channel a group, with any number of filters, and narrow groups of up to
MOST_GROUP_CHANNELS channels. Compiled in are the direction, the dtype, kernel size, stride,
padding, dilation and a thread's tile; image sizes, channels and strides in memory are run-time
numbers, so a network needs one kernel for each kind of layer and a new input size none.
"""

from __future__ import annotations

import math
import struct
from dataclasses import astuple

import torch

from convsmith.kernels.depthwise_blocks import SHARED_BYTES, Configuration
from convsmith.kernels.depthwise_blocks import configure as configure
from convsmith.kernels.depthwise_tiles import (
    MOST_TILE,
    block_of,
    columns_of,
    computed,
    sums_by_row,
    thread_tile,
)
from convsmith.kernels.depthwise_times import predicted_ms as predicted_ms
from convsmith.kernels.source import KernelSource, render
from convsmith.spec import ConvSpec, Direction

NAME = "depthwise"
LEAST_CAPABILITY = (8, 0)  # cp.async
MOST_CAPABILITY = (99, 0)
SIMULATION = 0

MOST_GROUP_CHANNELS = 7
MOST_WINDOW = 80  # columns of a source row that a thread keeps in registers

_ELEMENT = {
    torch.float32: "float",
    torch.float16: "__half",
    torch.bfloat16: "__nv_bfloat16",
}


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


def alternatives(spec: ConvSpec, multiprocessors: int) -> list[Configuration]:
    """What ``configure`` returns: there is nothing else to measure."""
    return [configure(spec, multiprocessors)]


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
            *astuple(configuration.loaded),
            *(configuration.upstream_columns, configuration.threads),
        )
        return struct.pack(f"{len(numbers)}q", *numbers)
    source_shape, source_strides, out_shape, out_strides = computed(spec)
    planes = strides[:2] if spec.direction is Direction.FORWARD else strides[1::-1]
    numbers = (  # ConvolveProblem of depthwise_convolve.cuh
        *(batch, spec.groups, *source_shape[2:], *out_shape[2:]),
        *(*source_strides, *out_strides, group_filters * strides[0], *planes, *strides[2:]),
        *(configuration.bundles, *configuration.thread_tiles, configuration.row_tiles),
        *(*astuple(configuration.loaded), configuration.threads, configuration.blocks),
    )
    return struct.pack(f"{len(numbers)}q", *numbers)


def template_arguments(spec: ConvSpec, configuration: Configuration) -> tuple[str, ...]:
    """What ``Specialisation`` of depthwise.cuh is instantiated with: one type."""
    geometry = (*spec.weight_shape[2:], *spec.stride, *spec.padding, *spec.dilation)
    tile = (*configuration.tile, configuration.thread_filters)
    numbers = ", ".join(map(str, (*geometry, *tile)))
    threads, blocks = block_of(spec, configuration.has_totals)
    whole_rows, together = str(configuration.whole_rows).lower(), configuration.together
    last = f"{configuration.stages}, {threads}, {blocks}"
    element, space = _ELEMENT[spec.dtype], "convsmith::depthwise::"
    if spec.direction is Direction.GRAD_WEIGHT:
        spreads, has_totals, has_bias = (
            str(one).lower()
            for one in (configuration.spreads, configuration.has_totals, spec.has_bias)
        )
        kind = f"{has_bias}, {spreads}, {has_totals}, {whole_rows}, {together}"
        return (f"{space}WeightGradient<{element}, {numbers}, {kind}, {last}>",)
    is_gradient = str(spec.direction is Direction.GRAD_INPUT).lower()
    sums, outputs = (shape[1] // spec.groups for shape in computed(spec)[::2])
    by_row = f"{outputs}, {sums}, {str(sums_by_row(spec)).lower()}"
    direct = str(configuration.direct).lower()
    kind = f"{whole_rows}, {configuration.plane_rows}, {together}, {direct}"
    what = f"{is_gradient}, {element}, {numbers}, {by_row}, {kind}"
    return (f"{space}Convolution<{what}, {last}>",)


def source(spec: ConvSpec, configuration: Configuration) -> KernelSource:
    """The kernel that runs ``spec``."""
    kernel, stride, padding, dilation = (
        "x".join(map(str, pair))
        for pair in (spec.weight_shape[2:], spec.stride, spec.padding, spec.dilation)
    )
    dtype = str(spec.dtype).removeprefix("torch.")
    name = f"{NAME}_{spec.direction.value}_{dtype}_{kernel}_s{stride}_p{padding}_d{dilation}"
    return render(NAME, name, template_arguments(spec, configuration))
