"""The cases that compute-sanitizer watches cover what they say, and can fail."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from sanitizer_cases import CASES, Case, main

from convsmith import execute
from convsmith.bench.suites import Layer
from convsmith.kernels import direct
from convsmith.spec import ConvSpec, Direction, Precision, contiguous_strides

MULTIPROCESSORS = 132


def specs(case: Case) -> Iterator[ConvSpec]:
    """The convolution of ``case`` and both gradients, contiguous."""
    numbers = (case.filters, case.kernel, case.stride, case.padding, case.dilation, case.groups)
    layer = Layer(case.name, case.shape, *numbers)
    shapes = (layer.input_shape, layer.weight_shape, layer.output_shape)
    for direction in Direction:
        yield ConvSpec(
            direction,
            *case.shape,
            *numbers,
            case.dtype,
            Precision.FLOAT32,
            True,
            *map(contiguous_strides, shapes),
        )


def configurations(direction: Direction) -> list[direct.Configuration]:
    return [
        direct.configure(spec, MULTIPROCESSORS)
        for case in CASES
        for spec in specs(case)
        if spec.direction is direction
    ]


@pytest.mark.parametrize("direction", Direction)
def test_every_tile_height_is_reached(direction: Direction) -> None:
    reached = {configuration.tile_rows for configuration in configurations(direction)}
    assert reached == set(direct.TILE_ROWS)


def test_sums_are_split_somewhere_and_whole_elsewhere() -> None:
    splits = {configuration.splits for configuration in configurations(Direction.GRAD_WEIGHT)}
    assert min(splits) == 1
    assert max(splits) > 1


def test_every_dtype_and_layout_is_there() -> None:
    assert {case.dtype for case in CASES} >= {torch.float32, torch.float16, torch.bfloat16}
    assert {case.layout for case in CASES} == {"contiguous", "channels_last", "strided"}


def test_pytorchs_own_convolution_is_right_in_every_case(capsys: pytest.CaptureFixture) -> None:
    assert main("cpu", "torch") == 0, capsys.readouterr().out


@pytest.mark.parametrize("function", ["forward", "input_gradient", "weight_gradient"])
def test_a_wrong_result_is_counted(
    function: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    right = getattr(execute, function)

    def wrong(*arguments):  # type: ignore[no-untyped-def]
        result = right(*arguments)
        first = result[0] if isinstance(result, tuple) else result
        first[-1, -1, -1, -1] += 1 + first.abs().max()
        return result

    monkeypatch.setattr(execute, function, wrong)
    assert main("cpu", "torch") == len(CASES)
    assert "is off by" in capsys.readouterr().out


@pytest.mark.gpu
def test_own_kernels_are_right_in_every_case(capsys: pytest.CaptureFixture) -> None:
    assert main() == 0, capsys.readouterr().out
