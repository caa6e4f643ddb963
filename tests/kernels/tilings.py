"""Which tiles tests of the implicit_gemm family get, and what is computed with them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from convolutions import Case
from torch import Tensor

from convsmith.kernels import implicit_gemm, implicit_gemm_tiles
from convsmith.kernels.implicit_gemm_cut import Configuration, Halves
from convsmith.kernels.implicit_gemm_weight_cut import WeightConfiguration
from convsmith.launch import SimulatedLaunch, run_forward, run_input_gradient, run_weight_gradient
from convsmith.planner import Candidate, Plan
from convsmith.spec import ConvSpec, Direction


def prefer(monkeypatch: pytest.MonkeyPatch, wanted: Callable[[Halves], bool]) -> None:
    """Leaves an implicit_gemm's tiles no other shapes, where it may have one that is wanted."""
    fitting_tilings = implicit_gemm_tiles.fitting_tilings

    def preferred(spec: ConvSpec, way: int, multiprocessors: int) -> list[Configuration]:
        fitting = fitting_tilings(spec, way, multiprocessors)
        return [one for one in fitting if wanted(one.shape)] or fitting

    monkeypatch.setattr(implicit_gemm_tiles, "fitting_tilings", preferred)


def simulated_result(
    spec: ConvSpec,
    configuration: Configuration | WeightConfiguration,
    x: Tensor,
    w: Tensor,
    b: Tensor | None,
    dy: Tensor,
) -> Tensor:
    """What the simulator computes of ``spec`` as it is cut; of a bias, the forward alone."""
    candidate = Candidate(implicit_gemm.NAME, None, "", configuration)
    launch = SimulatedLaunch(Plan(spec, "the simulator", (candidate,), "", None))
    if spec.direction is Direction.FORWARD:
        return run_forward(launch, x, w, b)
    if spec.direction is Direction.GRAD_INPUT:
        return run_input_gradient(launch, dy, w)
    return run_weight_gradient(launch, dy, x, None if b is None else torch.empty_like(b))


def exact_result(
    case: Case, direction: Direction, x: Tensor, w: Tensor, b: Tensor | None, dy: Tensor
) -> Tensor:
    """The same in float64."""
    x, w, dy = (tensor.double() for tensor in (x, w, dy))
    if direction is Direction.FORWARD:
        return torch.conv2d(x, w, None if b is None else b.double(), *case.geometry)
    if direction is Direction.GRAD_INPUT:
        return torch.nn.grad.conv2d_input(x.shape, w, dy, *case.geometry)
    return torch.nn.grad.conv2d_weight(x, w.shape, dy, *case.geometry)
