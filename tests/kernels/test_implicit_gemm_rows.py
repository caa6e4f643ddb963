"""Planes that the implicit_gemm family takes for single rows: of 1x1 filters."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from convolutions import LARGEST_ERROR, PLAIN
from tilings import exact_result, simulated_result

from convsmith.kernels.implicit_gemm_forward import forwards_of
from convsmith.kernels.implicit_gemm_tiles import timed_tilings
from convsmith.spec import Direction

POINTWISE = replace(
    PLAIN, group_channels=40, group_filters=70, kernel_size=(1, 1), padding=(0, 0), size=(14, 10)
)
JOINED = {
    "whole-16-bytes": replace(POINTWISE, size=(14, 14), batch=3),
    "odd": replace(POINTWISE, size=(19, 23)),
    "many-small-ones": replace(POINTWISE, batch=5, size=(13, 11), has_bias=False),
    "groups": replace(POINTWISE, groups=2, group_channels=9, group_filters=12),
    "channels-last": replace(POINTWISE, layout="channels_last", upstream_layout="channels_last"),
    "half": replace(POINTWISE, dtype=torch.float16, size=(16, 24)),
}
APART = {
    "cropped": replace(POINTWISE, layout="cropped"),
    "strided": replace(POINTWISE, size=(40, 40), stride=(2, 2)),
    "padded": replace(POINTWISE, padding=(1, 1)),
    "short": replace(POINTWISE, size=(8, 16)),
    "a-row": replace(POINTWISE, size=(1, 300)),
    "3x3": replace(POINTWISE, kernel_size=(3, 3), padding=(1, 1), size=(20, 20)),
}


@pytest.mark.parametrize("direction", [Direction.FORWARD, Direction.GRAD_INPUT])
@pytest.mark.parametrize("name", JOINED)
def test_rows_are_joined(name: str, direction: Direction) -> None:
    spec = JOINED[name].specs()[direction]
    first, joined = forwards_of(spec)
    assert joined.in_size == joined.out_size == (1, first.in_size[0] * first.in_size[1])


@pytest.mark.parametrize("name", APART)
def test_rows_that_cannot_be_joined(name: str) -> None:
    (first,) = forwards_of(APART[name].specs()[Direction.FORWARD])
    assert first.in_size == APART[name].size


def test_images_of_a_tile_lie_within_32_bits() -> None:
    large = replace(POINTWISE, batch=16, group_channels=2048, group_filters=8, size=(300, 300))
    assert len(forwards_of(large.specs()[Direction.FORWARD])) == 1
    assert len(forwards_of(replace(large, batch=8).specs()[Direction.FORWARD])) == 2


@pytest.mark.parametrize("direction", [Direction.FORWARD, Direction.GRAD_INPUT])
@pytest.mark.parametrize("name", JOINED)
def test_all_tilings_of_joined_rows(name: str, direction: Direction, precision: str) -> None:
    case = JOINED[name]
    spec = case.specs()[direction]
    tilings = [one for _, one in timed_tilings(spec, multiprocessors=8) if one.way == 1]
    assert tilings
    x, w, b = case.tensors("cpu")
    dy = case.upstream(torch.conv2d(x, w, None, *case.geometry))
    exact = exact_result(case, direction, x, w, b, dy)
    most = LARGEST_ERROR["tf32" if case.dtype is torch.float16 else precision]
    for one in tilings:
        ours = simulated_result(spec, one, x, w, b, dy)
        assert (ours - exact).abs().max() / exact.abs().max() < most, one
