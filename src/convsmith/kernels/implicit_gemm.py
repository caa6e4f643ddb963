"""The implicit_gemm family: many channels, on the tensor cores (see implicit_gemm.cuh)."""

from __future__ import annotations

import math
import struct
from typing import Any

import torch

from convsmith.kernels.implicit_gemm_accuracy import errs_more_than_cudnn
from convsmith.kernels.implicit_gemm_cut import Configuration
from convsmith.kernels.implicit_gemm_forward import LEAST_GROUP_CHANNELS, forwards_of
from convsmith.kernels.implicit_gemm_phases import MOST_PHASES, no_phases
from convsmith.kernels.implicit_gemm_rings import MOST_TAPS, VECTOR
from convsmith.kernels.implicit_gemm_tiles import (
    columns_between_rows,
    configure_tiles,
    timed_tilings,
    unfolded_channels,
)
from convsmith.kernels.implicit_gemm_times import predicted_tiles_ms
from convsmith.kernels.implicit_gemm_weight import (
    best_cuts_of_units,
    configure_weight,
    weight_arguments,
    weight_obstacle,
    weight_problem,
    weight_reason,
)
from convsmith.kernels.implicit_gemm_weight_cut import WeightConfiguration
from convsmith.kernels.implicit_gemm_weight_times import predicted_weight_ms
from convsmith.kernels.source import KernelSource, render
from convsmith.roofline import Ceilings
from convsmith.spec import ConvSpec, Direction

NAME = "implicit_gemm"
LEAST_CAPABILITY = (9, 0)  # and no other: wgmma
MOST_CAPABILITY = (9, 0)
SIMULATION = 2

# Of all that fit, those worth measuring: so many, and predicted to take so much longer at most.
MOST_ALTERNATIVES = 3
LONGEST_ALTERNATIVE = 1.3

_ELEMENT = {
    torch.float32: "float",
    torch.float16: "__half",
    torch.bfloat16: "__nv_bfloat16",
}


def obstacle(spec: ConvSpec) -> str | None:
    """Why the family cannot compute ``spec``, or None."""
    if spec.dtype not in _ELEMENT:
        return "the tensor cores' sums are too short for float64"
    if errs_more_than_cudnn(spec):
        return "in the float32 class, its gradients of small groups err more than cuDNN's"
    if spec.direction is Direction.GRAD_WEIGHT:
        return weight_obstacle(spec)
    forward = forwards_of(spec)[0]
    if forward.unfolds and spec.groups > 1:
        return f"its groups have fewer than {LEAST_GROUP_CHANNELS} channels"
    if forward.phases is not None and math.prod(spec.stride) > MOST_PHASES:
        return f"its stride has more than {MOST_PHASES} phases"
    taps = math.prod(forward.kernel)
    if forward.unfolds:
        taps = max(forward.kernel[0], unfolded_channels(forward) // VECTOR)
    if taps > MOST_TAPS:
        return f"its filters have more than {MOST_TAPS} taps"
    tiling = configure_tiles(spec, 1)
    if tiling is None:
        return "its patches do not fit into shared memory"
    if spec.input_shape[0] * tiling.tall_height >= 2**31:
        return "its images have more rows than 32 bits count"
    return None


def configure(
    spec: ConvSpec,
    multiprocessors: int,
) -> Configuration | WeightConfiguration | None:
    """How ``spec`` is cut on a GPU of ``multiprocessors``; None where nothing fits."""
    if spec.direction is Direction.GRAD_WEIGHT:
        return configure_weight(spec, multiprocessors)
    return configure_tiles(spec, multiprocessors)


def alternatives(
    spec: ConvSpec, multiprocessors: int
) -> list[Configuration] | list[WeightConfiguration]:
    """What ``configure`` returns, and what predictions cannot tell to be slower."""
    if spec.direction is Direction.GRAD_WEIGHT:
        return quickest(best_cuts_of_units(spec, multiprocessors))
    return quickest(timed_tilings(spec, multiprocessors))


def quickest(timed: list[tuple[float, Any]]) -> list[Any]:
    """The few that are worth measuring, the quickest first."""
    ranked = sorted(timed, key=lambda one: one[0])[:MOST_ALTERNATIVES]
    return [what for time, what in ranked if time <= LONGEST_ALTERNATIVE * ranked[0][0]]


def predicted_ms(
    spec: ConvSpec,
    configuration: Configuration | WeightConfiguration,
    ceilings: Ceilings,
    multiprocessors: int,
) -> float:
    """The time to expect of ``spec``, in milliseconds."""
    if isinstance(configuration, WeightConfiguration):
        return predicted_weight_ms(spec, configuration, ceilings, multiprocessors)
    return predicted_tiles_ms(spec, configuration, ceilings, multiprocessors)


def reason(configuration: Configuration | WeightConfiguration) -> str:
    """How the time comes about, in a few words."""
    if isinstance(configuration, WeightConfiguration):
        return weight_reason(configuration)
    rows, columns = configuration.tiles
    return (
        f"{rows} x {columns} tiles, {configuration.products} product(s), "
        f"{configuration.rings.shared_bytes / 1024:.0f} KiB shared"
    )


def problem(spec: ConvSpec, configuration: Configuration | WeightConfiguration) -> bytes:
    """What the kernel is told of ``spec`` at run time."""
    if isinstance(configuration, WeightConfiguration):
        return weight_problem(spec, configuration)
    forward, shape = forwards_of(spec)[configuration.way], configuration.shape
    patch, rings = configuration.patch, configuration.rings
    filters, phases = forward.filters, no_phases()
    if forward.phases is not None:
        if forward.phases.apart > 1:
            filters = configuration.filter_blocks * configuration.block_filters
        phases = forward.phases.numbers(filters // spec.stride[0])
    numbers = (  # Problem of implicit_gemm_problem.cuh
        *(forward.batch, forward.groups, forward.channels, filters),
        *(*forward.in_size, *forward.out_size, *forward.kernel),
        *(*forward.stride, *forward.padding, *forward.dilation),
        *(*forward.in_strides, *forward.out_strides),
        *(*forward.weight_strides, forward.first_weight),
        configuration.tall_height,
        *(shape.columns, shape.down, shape.right),
        *(*patch.group_shift, *patch.tile),
        columns_between_rows(forward, shape),
        *(*patch.phases, patch.rows, patch.pitch, patch.row_pixels),
        patch.run_lead or 0,
        *(configuration.lead, rings.patch_stages, rings.weight_stages),
        *(configuration.stores_in_turn, rings.weights_stay, *configuration.tiles),
        configuration.all_tiles,
        *(configuration.stores_pairs, configuration.stores_in_bulk, configuration.stores_runs),
        *(shape.owns_sectors, configuration.blocks, *phases),
    )
    return struct.pack(f"{len(numbers)}q", *numbers)


def template_arguments(
    spec: ConvSpec, configuration: Configuration | WeightConfiguration
) -> tuple[str, ...]:
    """What ``Specialisation`` of implicit_gemm.cuh is instantiated with: one type."""
    if isinstance(configuration, WeightConfiguration):
        return weight_arguments(_ELEMENT[spec.dtype], configuration)
    numbers = (
        *(configuration.rings.block_channels, configuration.piece),
        *(configuration.rings.ahead, configuration.stage_taps),
    )
    phases = forwards_of(spec)[configuration.way].phases
    shape, copies_runs = configuration.shape, configuration.patch.run_lead is not None
    what = (
        *(_ELEMENT[spec.dtype], configuration.products, configuration.sum_terms),
        configuration.sums.compensates,
        *(configuration.splits_filters, configuration.unfolds, *numbers),
        *(shape.count, shape.is_flat, phases.together if phases else 0, copies_runs),
        configuration.loaders,
    )
    named = (str(one).lower() if isinstance(one, bool) else str(one) for one in what)
    return (f"convsmith::implicit_gemm::Convolution<{', '.join(named)}>",)


def source(spec: ConvSpec, configuration: Configuration | WeightConfiguration) -> KernelSource:
    """The kernel that runs ``spec``."""
    dtype = str(spec.dtype).removeprefix("torch.")
    name = f"{NAME}_{spec.direction.value}_{dtype}_{configuration.products}"
    return render(NAME, name, template_arguments(spec, configuration))
