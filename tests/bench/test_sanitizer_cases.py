"""The cases that compute-sanitizer watches cover what they say, and can fail."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from sanitizer_cases import CASES, Case, families_of, main

from convsmith import execute
from convsmith.kernels import direct
from convsmith.kernels.families import FAMILIES
from convsmith.spec import Direction

MULTIPROCESSORS = 132


def configurations(direction: Direction) -> list[direct.Configuration]:
    return [
        direct.configure(spec, MULTIPROCESSORS)
        for case in CASES
        for spec in case.specs()
        if spec.direction is direction
    ]


@pytest.mark.parametrize("direction", Direction)
def test_every_family_runs_something(direction: Direction) -> None:
    specs = [spec for case in CASES for spec in case.specs() if spec.direction is direction]
    assert {name for spec in specs for name in families_of(spec)} == set(FAMILIES)


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


def depthwise(case: Case) -> bool:
    return 1 < case.groups == case.shape[1]


def group(channels: int, filters: int) -> Callable[[Case], bool]:
    """Whether a case has groups of this size."""
    return lambda case: (
        (case.shape[1] // case.groups, case.filters // case.groups) == (channels, filters)
    )


NARROW = {
    "3x3": lambda case: case.kernel == (3, 3),
    "7x7": lambda case: case.kernel == (7, 7),
    "13x13": lambda case: case.kernel == (13, 13),
    "31x31 on a smaller plane": lambda case: (
        case.kernel == (31, 31) and case.padding == (15, 15) and max(case.shape[2:]) < 31
    ),
    "1x1": lambda case: case.kernel == (1, 1),
    "a strip": lambda case: 1 in case.kernel and max(case.kernel) > 1,
    "5x5, stride 2": lambda case: case.kernel == (5, 5) and case.stride == (2, 2),
    "unequal strides": lambda case: len(set(case.stride)) == 2,
    "dilated": lambda case: case.dilation == (2, 2),
    "no padding": lambda case: case.padding == (0, 0) and case.kernel != (1, 1),
    "padding beyond the filter": lambda case: min(case.padding) > max(case.kernel),
    "multiplier": lambda case: case.filters == 2 * case.groups,
    "odd width": lambda case: case.shape[3] % 2 == 1,
    "small planes": lambda case: case.shape[0] > 4 and case.shape[2:] == (7, 7),
    "float16": lambda case: case.dtype is torch.float16,
    "bfloat16": lambda case: case.dtype is torch.bfloat16,
    "channels last": lambda case: case.layout == "channels_last",
    "strided": lambda case: case.layout == "strided",
}


@pytest.mark.parametrize("kind", NARROW)
def test_one_channel_a_group_comes_in_every_kind(kind: str) -> None:
    assert any(depthwise(case) and NARROW[kind](case) for case in CASES)


@pytest.mark.parametrize(("channels", "filters"), [(2, 2), (3, 5), (4, 4), (7, 7)])
def test_narrow_groups_come_in_every_size(channels: int, filters: int) -> None:
    assert any(case.groups > 1 and group(channels, filters)(case) for case in CASES)


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
    in_tf32 = sum(case.dtype is torch.float32 for case in CASES)  # and in float32
    assert main("cpu", "torch") == len(CASES) + in_tf32
    assert "is off by" in capsys.readouterr().out


@pytest.mark.gpu
def test_own_kernels_are_right_in_every_case(capsys: pytest.CaptureFixture) -> None:
    assert main() == 0, capsys.readouterr().out
