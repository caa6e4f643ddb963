"""A defect planted in a copy of a real kernel makes the simulator, or the comparison, fail."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from convsmith.errors import SimulatorError
from convsmith.jit import simulator
from convsmith.jit.simulator import Buffer
from convsmith.kernels import depthwise, direct
from convsmith.kernels.family import Family, places_written
from convsmith.kernels.source import _FOLDER, KernelSource, render
from convsmith.spec import ConvSpec, Direction, Pair

BARRIER = "__syncthreads();"


@dataclass(frozen=True)
class Case:
    """A convolution with stride 1 whose result is as large as its input."""

    name: str
    family: Family
    direction: Direction
    in_channels: int
    out_channels: int
    size: Pair
    kernel_size: Pair = (3, 3)
    groups: int = 1
    batch: int = 1
    multiprocessors: int = 132
    stages: int | None = None  # of depthwise; None leaves it to the family

    def __str__(self) -> str:
        return self.name

    @property
    def geometry(self) -> tuple[Pair, Pair, Pair, int]:
        padding = (self.kernel_size[0] // 2, self.kernel_size[1] // 2)
        return (1, 1), padding, (1, 1), self.groups

    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """Of x, w, b and dy."""
        return (
            (self.batch, self.in_channels, *self.size),
            (self.out_channels, self.in_channels // self.groups, *self.kernel_size),
            (self.out_channels,),
            (self.batch, self.out_channels, *self.size),
        )

    def plan(self) -> tuple[ConvSpec, Any]:
        """What the family is told, and how it cuts it."""
        x, w, _, _ = (torch.empty(shape, device="meta") for shape in self.shapes())
        spec = ConvSpec.of(self.direction, x, w, True, *self.geometry)
        configuration = self.family.configure(spec, self.multiprocessors)
        return spec, configuration if self.stages is None else replace(
            configuration, stages=self.stages
        )

    def run(self, *substitutions: tuple[str, str]) -> tuple[Tensor, Tensor]:
        """What the kernel computes, its text changed, and what it should have."""
        x, w, b, dy = map(torch.randn, self.shapes())
        spec, configuration = self.plan()
        result = torch.full(spec.result_shape, torch.nan)
        bias_gradient = torch.full_like(b, torch.nan)
        workspace = torch.full((max(1, configuration.workspace_bytes // 4),), torch.nan)
        tensors = {
            Direction.FORWARD: [x, w, b, result, workspace],
            Direction.GRAD_INPUT: [dy, w, result, workspace],
            Direction.GRAD_WEIGHT: [dy, x, result, bias_gradient, workspace],
        }[self.direction]
        writable = places_written(self.direction)
        simulator.run(
            changed(self.family.source(spec, configuration), *substitutions),
            self.family.problem(spec, configuration),
            [
                Buffer(tensor.data_ptr(), 4 * tensor.numel(), place in writable)
                for place, tensor in enumerate(tensors)
            ],
            time_limit=20,
        )
        expected = {
            Direction.FORWARD: lambda: torch.conv2d(
                x.double(), w.double(), b.double(), *self.geometry
            ),
            Direction.GRAD_INPUT: lambda: torch.nn.grad.conv2d_input(
                x.shape, w.double(), dy.double(), *self.geometry
            ),
            Direction.GRAD_WEIGHT: lambda: torch.nn.grad.conv2d_weight(
                x.double(), w.shape, dy.double(), *self.geometry
            ),
        }[self.direction]()
        if self.direction is not Direction.GRAD_WEIGHT:
            return result, expected
        of_bias = dy.double().sum((0, 2, 3))
        return torch.cat([result.flatten(), bias_gradient]), torch.cat(
            [expected.flatten(), of_bias]
        )


# Their sums take several tables of terms and several promotions.
FORWARD = Case("forward", direct, Direction.FORWARD, 40, 5, (8, 8))
GRAD_INPUT = Case("grad_input", direct, Direction.GRAD_INPUT, 5, 40, (8, 8))
GRAD_WEIGHT = Case("grad_weight", direct, Direction.GRAD_WEIGHT, 3, 5, (19, 19))
IN_PARTS = Case("grad_weight_in_parts", direct, Direction.GRAD_WEIGHT, 3, 5, (33, 33))
DIRECT = [FORWARD, GRAD_INPUT, GRAD_WEIGHT]
# Several tiles a block, through one stage of shared memory and through two; weight gradients whose
# sums are kept by the threads, or spread over them. Rows of 132 columns come by bulk copies.
CONVOLVE = [
    Case(f"{direction.value}_{sizes[2][1]}_{stages}", depthwise, direction, *sizes, stages=stages)
    for stages in (2, 1)
    for direction, *sizes in (
        (Direction.FORWARD, 3, 3, (9, 21), (3, 3), 3, 60, 1),
        (Direction.GRAD_INPUT, 8, 8, (9, 21), (3, 3), 2, 60, 1),
        (Direction.FORWARD, 3, 3, (40, 132), (3, 3), 3, 2, 1),
    )
]
WEIGHT = [
    Case(f"{name}_{stages}", depthwise, Direction.GRAD_WEIGHT, *sizes, stages=stages)
    for stages in (2, 1)
    for name, *sizes in (
        ("kept", 3, 3, (9, 21), (3, 3), 3, 60, 1),
        ("wide", 3, 3, (40, 132), (3, 3), 3, 2, 1),
        ("spread", 3, 3, (9, 13), (9, 9), 3, 60, 1),
    )
]

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


def barriers_of(family: str) -> list[tuple[int, ...]]:
    """A family's barriers, counted from 0, in groups of which each is needed.

    A barrier with which a function ends is for its caller, who may have one as well: the last one
    of all. Either is enough.
    """
    _, *after = render(family, "any", ()).cuda.split(BARRIER)
    last = len(after) - 1
    ends = [number for number, text in enumerate(after) if text.startswith("\n}")]
    single = [(number,) for number in range(last) if number not in ends]
    return [*single, (*(number for number in ends if number != last), last)]


def without_barriers(family: str, numbers: tuple[int, ...]) -> list[tuple[str, str]]:
    """The substitutions that remove some of a family's barriers."""
    pieces = render(family, "any", ()).cuda.split(BARRIER)
    around = [(pieces[number][-200:], pieces[number + 1][:200]) for number in numbers]
    return [(before + BARRIER + after, before + after) for before, after in around]


def is_right(result: Tensor, expected: Tensor) -> bool:
    return torch.allclose(result.double(), expected, rtol=1e-5, atol=1e-4)


def fails(case: Case, *substitutions: tuple[str, str]) -> bool:
    """Whether anybody notices the defect."""
    try:
        return not is_right(*case.run(*substitutions))
    except SimulatorError:
        return True


def must_fail(case: Case, *substitutions: tuple[str, str]) -> None:
    assert fails(case, *substitutions), "nobody noticed the defect"


@pytest.mark.parametrize("case", [*DIRECT, IN_PARTS, *CONVOLVE, *WEIGHT], ids=str)
def test_the_kernel_as_it_is_passes(case: Case) -> None:
    assert is_right(*case.run())


@pytest.mark.parametrize("case", [*DIRECT, IN_PARTS], ids=str)
def test_sums_take_several_tables_and_promotions(case: Case) -> None:
    """Else the direct family would not come to some of its barriers."""
    _, configuration = case.plan()
    assert configuration.promote_tiles > 1
    assert configuration.terms > 2 * direct.TILE_TERMS * configuration.promote_tiles
    assert (configuration.splits > 1) == (case is IN_PARTS)


@pytest.mark.parametrize("case", DIRECT, ids=str)
@pytest.mark.parametrize("numbers", barriers_of("direct"), ids=str)
def test_a_missing_barrier_of_direct(numbers: tuple[int, ...], case: Case) -> None:
    must_fail(case, *without_barriers("direct", numbers))


@pytest.mark.parametrize("numbers", barriers_of("depthwise"), ids=str)
def test_a_missing_barrier_of_depthwise(numbers: tuple[int, ...]) -> None:
    """Some are for one or two stages only, or for one kind of sums: one case has to fail."""
    substitutions = without_barriers("depthwise", numbers)
    header = _FOLDER.joinpath("depthwise_convolve.cuh").read_text()
    cases = CONVOLVE if substitutions[0][0] in header else WEIGHT
    assert any(fails(case, *substitutions) for case in cases)


def test_the_kernels_have_barriers() -> None:
    assert len(barriers_of("direct")) >= 2
    assert len(barriers_of("depthwise")) >= 8


@pytest.mark.parametrize("case", DIRECT, ids=str)
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
