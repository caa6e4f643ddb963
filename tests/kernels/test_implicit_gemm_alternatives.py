"""The implicit_gemm family's configurations that are worth measuring: few, apart, and right."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from convolutions import LARGEST_ERROR, PLAIN
from tilings import exact_result, simulated_result

from convsmith.kernels import implicit_gemm
from convsmith.kernels.implicit_gemm_weight_cut import WeightConfiguration
from convsmith.spec import Direction

LAYERS = {
    "small-planes": replace(PLAIN, batch=32, group_channels=512, group_filters=512, size=(7, 7)),
    "strided": replace(
        PLAIN, batch=8, group_channels=64, group_filters=64, size=(128, 128), stride=(2, 2)
    ),
    "large-filter": replace(
        PLAIN, batch=16, group_channels=96, group_filters=128, size=(60, 60), kernel_size=(5, 5)
    ),
    "pointwise": replace(
        PLAIN, group_channels=40, group_filters=200, kernel_size=(1, 1), padding=(0, 0)
    ),
    "few-channels": replace(PLAIN, batch=16, group_channels=3, group_filters=32, size=(112, 112)),
}


def key(configuration: object) -> object:
    """What alternatives differ in."""
    if isinstance(configuration, WeightConfiguration):
        return configuration.unit_filters, configuration.unit_channels, configuration.unit_taps
    return configuration.shape, configuration.way


@pytest.mark.parametrize("multiprocessors", [4, 132])
@pytest.mark.parametrize("direction", Direction)
def test_they_are_few_apart_and_begin_with_what_is_planned(
    direction: Direction, multiprocessors: int, precision: str
) -> None:
    counts = set()
    for case in LAYERS.values():
        spec = case.specs()[direction]
        if implicit_gemm.obstacle(spec) is not None:
            continue
        found = implicit_gemm.alternatives(spec, multiprocessors)
        assert found[0] == implicit_gemm.configure(spec, multiprocessors)
        assert len({key(one) for one in found}) == len(found) <= 3
        counts.add(len(found))
    assert counts - {1}, "nothing to choose among in any of the layers"


@pytest.mark.parametrize(
    ("times", "kept"),
    [
        ([3.0, 2.6, 2.0, 2.2, 2.4], [2.0, 2.2, 2.4]),
        ([2.61, 2.0, 2.6], [2.0, 2.6]),
        ([2.0], [2.0]),
        ([], []),
    ],
)
def test_the_quickest_are_kept(times: list[float], kept: list[float]) -> None:
    assert implicit_gemm.quickest([(time, time) for time in times]) == kept


SMALL = {
    Direction.FORWARD: replace(PLAIN, batch=3, group_channels=20, size=(7, 7)),
    Direction.GRAD_INPUT: replace(
        PLAIN, group_channels=8, size=(9, 8), kernel_size=(1, 3), padding=(0, 1), stride=(2, 1)
    ),
    Direction.GRAD_WEIGHT: replace(PLAIN, batch=1, group_channels=8, size=(20, 5), stride=(2, 2)),
}


@pytest.mark.parametrize("direction", Direction)
def test_all_of_them_compute_the_same(direction: Direction, precision: str) -> None:
    case = SMALL[direction]
    spec = case.specs()[direction]
    found = implicit_gemm.alternatives(spec, multiprocessors=8)
    assert len(found) > 1
    x, w, b = case.tensors("cpu")
    dy = case.upstream(torch.conv2d(x, w, None, *case.geometry))
    exact = exact_result(case, direction, x, w, b, dy)
    for one in found:
        ours = simulated_result(spec, one, x, w, b, dy)
        assert (ours - exact).abs().max() / exact.abs().max() < LARGEST_ERROR[precision], one
