"""A defect planted in a copy of a real kernel makes the simulator, or the comparison, fail."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from convsmith.errors import SimulatorError
from convsmith.jit import simulator
from convsmith.jit.simulator import Buffer
from convsmith.kernels import direct
from convsmith.kernels.source import KernelSource, render
from convsmith.spec import ConvSpec, Direction

BARRIER = "__syncthreads();"
BARRIERS = render("direct", "any", ()).cuda.count(BARRIER)
GEOMETRY = {"stride": (1, 1), "padding": (1, 1), "dilation": (1, 1), "groups": 1}


@dataclass(frozen=True)
class Case:
    """A 3x3 convolution whose sums take several tables of terms and several promotions."""

    direction: Direction
    in_channels: int
    out_channels: int
    size: int
    in_parts: bool = False

    def __str__(self) -> str:
        return self.direction.value + ("_in_parts" if self.in_parts else "")

    def run(self, *substitutions: tuple[str, str]) -> tuple[Tensor, Tensor]:
        """What the kernel computes, its text changed, and what it should have."""
        x = torch.randn(1, self.in_channels, self.size, self.size)
        w = torch.randn(self.out_channels, self.in_channels, 3, 3)
        b = torch.randn(self.out_channels)
        dy = torch.randn(1, self.out_channels, self.size, self.size)
        spec = ConvSpec.of(self.direction, x, w, True, **GEOMETRY)
        configuration = direct.configure(spec, multiprocessors=132)
        assert configuration.promote_tiles > 1
        assert configuration.terms > 2 * direct.TILE_TERMS * configuration.promote_tiles
        assert (configuration.splits > 1) == self.in_parts

        result = torch.full(spec.result_shape, torch.nan)
        bias_gradient = torch.full_like(b, torch.nan)
        workspace = torch.full((max(1, configuration.workspace_bytes // 4),), torch.nan)
        tensors = {
            Direction.FORWARD: [x, w, b, result],
            Direction.GRAD_INPUT: [dy, w, result],
            Direction.GRAD_WEIGHT: [dy, x, result, bias_gradient, workspace],
        }[self.direction]
        writable = direct.writable(self.direction)
        simulator.run(
            changed(direct.source(spec, configuration), *substitutions),
            direct.problem(spec, configuration),
            [
                Buffer(tensor.data_ptr(), 4 * tensor.numel(), place in writable)
                for place, tensor in enumerate(tensors)
            ],
            time_limit=20,
        )
        geometry = list(GEOMETRY.values())
        expected = {
            Direction.FORWARD: lambda: torch.conv2d(x.double(), w.double(), b.double(), *geometry),
            Direction.GRAD_INPUT: lambda: torch.nn.grad.conv2d_input(
                x.shape, w.double(), dy.double(), *geometry
            ),
            Direction.GRAD_WEIGHT: lambda: torch.nn.grad.conv2d_weight(
                x.double(), w.shape, dy.double(), *geometry
            ),
        }[self.direction]()
        return result, expected


FORWARD = Case(Direction.FORWARD, in_channels=40, out_channels=5, size=8)
GRAD_INPUT = Case(Direction.GRAD_INPUT, in_channels=5, out_channels=40, size=8)
GRAD_WEIGHT = Case(Direction.GRAD_WEIGHT, in_channels=3, out_channels=5, size=19)
IN_PARTS = Case(Direction.GRAD_WEIGHT, in_channels=3, out_channels=5, size=33, in_parts=True)
CASES = [FORWARD, GRAD_INPUT, GRAD_WEIGHT, IN_PARTS]

# Each is an exact text of the kernel, which must be there once, and what takes its place.
OFF_BY_ONE_BOUND = ("(w + term.w_shift) < width", "(w + term.w_shift) <= width")
OFF_BY_ONE_ROW = (
    "m = first_row + threadIdx.x / kTileK",
    "m = first_row + 1 + threadIdx.x / kTileK",
)
STORE_PAST_THE_END = (
    "for (int m = 0; m < rows; ++m) {\n        Accumulator value",
    "for (int m = 0; m <= rows; ++m) {\n        Accumulator value",
)
STORE_PAST_THE_END_OF_PARTS = ("if (index >= count) return;", "if (index > count) return;")


def changed(source: KernelSource, *substitutions: tuple[str, str]) -> KernelSource:
    text = source.cuda
    for old, new in substitutions:
        assert text.count(old) == 1, f"{old!r} is not once in the kernel"
        text = text.replace(old, new)
    return replace(source, cuda=text)


def without_barrier(number: int) -> tuple[str, str]:
    """The substitution that removes one of the barriers, counted from 0."""
    text = render("direct", "any", ()).cuda
    pieces = text.split(BARRIER)
    before, after = pieces[number][-200:], pieces[number + 1][:200]
    return before + BARRIER + after, before + after


def is_right(result: Tensor, expected: Tensor) -> bool:
    return torch.allclose(result.double(), expected, rtol=1e-5, atol=1e-4)


def must_fail(case: Case, *substitutions: tuple[str, str]) -> None:
    try:
        result, expected = case.run(*substitutions)
    except SimulatorError:
        return
    assert not is_right(result, expected), "nobody noticed the defect"


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_kernel_as_it_is_passes(case: Case) -> None:
    assert is_right(*case.run())


@pytest.mark.parametrize("case", [FORWARD, GRAD_INPUT, GRAD_WEIGHT], ids=str)
@pytest.mark.parametrize("number", range(BARRIERS))
def test_a_missing_barrier(number: int, case: Case) -> None:
    must_fail(case, without_barrier(number))


def test_the_kernel_has_barriers() -> None:
    assert BARRIERS >= 2


@pytest.mark.parametrize("case", [FORWARD, GRAD_INPUT, GRAD_WEIGHT], ids=str)
@pytest.mark.parametrize("defect", [OFF_BY_ONE_BOUND, OFF_BY_ONE_ROW], ids=["bound", "row"])
def test_an_index_off_by_one(case: Case, defect: tuple[str, str]) -> None:
    must_fail(case, defect)


@pytest.mark.parametrize(
    ("case", "defect"),
    [
        pytest.param(FORWARD, STORE_PAST_THE_END, id="forward"),
        pytest.param(GRAD_INPUT, STORE_PAST_THE_END, id="grad_input"),
        pytest.param(GRAD_WEIGHT, STORE_PAST_THE_END, id="grad_weight"),
        pytest.param(IN_PARTS, STORE_PAST_THE_END_OF_PARTS, id="grad_weight_in_parts"),
    ],
)
def test_a_store_past_the_end(case: Case, defect: tuple[str, str]) -> None:
    with pytest.raises(SimulatorError, match="past the end"):
        case.run(defect)
