"""Tiles of the implicit_gemm family that own sectors of memory: of rows that share them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from convolutions import LARGEST_ERROR, PLAIN, Case, largest_error
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from tilings import exact_result, prefer, simulated_result

import convsmith
from convsmith.kernels import implicit_gemm
from convsmith.kernels.implicit_gemm_cut import HALF, Configuration
from convsmith.kernels.implicit_gemm_forward import forwards_of
from convsmith.kernels.implicit_gemm_tiles import (
    owned_columns,
    owned_pitch,
    timed_tilings,
)
from convsmith.spec import Direction

FAMILY = "implicit_gemm"

ORDINARY = replace(PLAIN, group_channels=20, batch=1, size=(4, 143), padding=(0, 0))
CASES = {
    "ordinary": ORDINARY,
    "padded-images": replace(ORDINARY, batch=3, size=(2, 250), padding=(1, 1)),
    "wide-filter": replace(ORDINARY, size=(4, 141), kernel_size=(2, 9), padding=(0, 2)),
    "dilated": replace(ORDINARY, batch=2, size=(4, 300), dilation=(2, 3), padding=(1, 2)),
    "stride": replace(ORDINARY, batch=2, size=(7, 291), stride=(2, 2), padding=(1, 1)),
    "few-channels": replace(ORDINARY, batch=2, size=(4, 260), group_channels=3),
    "few-channels-stride": replace(
        ORDINARY, size=(5, 290), group_channels=3, stride=(1, 2), padding=(1, 3)
    ),
    "many-filters": replace(ORDINARY, size=(3, 211), group_filters=130),
    "groups": replace(ORDINARY, groups=3, group_channels=9, group_filters=10, size=(5, 141)),
    "one-row": replace(ORDINARY, batch=2, size=(1, 204), kernel_size=(1, 4)),
    "1x1": replace(ORDINARY, size=(4, 189), kernel_size=(1, 1)),
    "half": replace(ORDINARY, size=(3, 280), dtype=torch.float16),
    "bfloat16": replace(ORDINARY, size=(3, 301), dtype=torch.bfloat16),
    # Of which the gradient's padding is negative; and runs of 16 bytes are copied.
    "much-padding": replace(
        ORDINARY, size=(3, 190), kernel_size=(1, 1), padding=(1, 1), dtype=torch.float16
    ),
    "more-padding": replace(ORDINARY, size=(3, 138), padding=(3, 3), group_filters=12),
}


def error_of_tilings(case: Case, direction: Direction) -> float | None:
    """The largest one of all that own sectors; None where there are none."""
    spec = case.specs()[direction]
    tilings = [one for _, one in timed_tilings(spec, 8) if one.shape.owns_sectors]
    if not tilings:
        return None
    x, w, b = case.tensors("cpu")
    dy = case.upstream(torch.conv2d(x, w, None, *case.geometry))
    exact = exact_result(case, direction, x, w, b, dy)
    results = (simulated_result(spec, one, x, w, b, dy) for one in tilings)
    return max(largest_error(ours, exact) for ours in results)


def most(case: Case, precision: str) -> float:
    if case.dtype is torch.bfloat16:
        return 8 * LARGEST_ERROR["tf32"]
    return LARGEST_ERROR["tf32" if case.dtype is torch.float16 else precision]


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_all_tilings_that_own_sectors(case: Case, precision: str) -> None:
    errors = [error_of_tilings(case, one) for one in (Direction.FORWARD, Direction.GRAD_INPUT)]
    assert errors != [None, None]
    assert all(error < most(case, precision) for error in errors if error is not None)


@settings(max_examples=25, suppress_health_check=list(HealthCheck))
@given(
    columns=st.integers(129, 420),
    rows=st.integers(1, 4),
    kernel_size=st.tuples(st.integers(1, 2), st.integers(1, 6)),
    padding=st.integers(0, 5),
    stride=st.integers(1, 2),
    dilation=st.integers(1, 2),
    channels=st.sampled_from([2, 9]),
    direction=st.sampled_from([Direction.FORWARD, Direction.GRAD_INPUT]),
    dtype=st.sampled_from([torch.float32, torch.float16]),
)
def test_rows_that_share_sectors(
    columns: int,
    rows: int,
    kernel_size: tuple[int, int],
    padding: int,
    stride: int,
    dilation: int,
    channels: int,
    direction: Direction,
    dtype: torch.dtype,
) -> None:
    case = replace(
        ORDINARY,
        group_channels=channels,
        size=(rows, columns),
        kernel_size=kernel_size,
        padding=(0 if rows >= kernel_size[0] else 1, padding),
        stride=(1, stride),
        dilation=(1, dilation),
        dtype=dtype,
    )
    error = error_of_tilings(case, direction)
    assume(error is not None)
    assert error is not None
    assert error < LARGEST_ERROR["tf32"]


@pytest.mark.parametrize("itemsize", [2, 4])
@pytest.mark.parametrize("columns", [129, 250, 511, 1022, 1921, 3001, 8190])
def test_the_last_tile_has_the_end_of_its_row(columns: int, itemsize: int) -> None:
    dtype = {2: torch.float16, 4: torch.float32}[itemsize]
    case = replace(ORDINARY, size=(4, columns), kernel_size=(1, 1), dtype=dtype)
    forward = forwards_of(case.specs()[Direction.FORWARD])[0]
    width, sector = owned_columns(forward), forward.sector
    assert 0 < width <= HALF - sector + 1
    tiles = -(-(owned_pitch(forward) + sector - 1 - HALF) // width) + 1
    begin = (tiles - 1) * width
    assert begin + HALF >= owned_pitch(forward) + sector - 1
    assert begin + sector - 1 <= columns


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("columns", [133, 248, 263, 371])
def test_every_row_and_channel_begins_elsewhere(
    columns: int, dtype: torch.dtype, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    prefer(monkeypatch, lambda shape: shape.owns_sectors)
    case = replace(ORDINARY, size=(5, columns), dtype=dtype)
    configuration = implicit_gemm.configure(case.specs()[Direction.FORWARD], 132)
    assert isinstance(configuration, Configuration)
    assert configuration.shape.owns_sectors
    x, w, b = case.tensors(device)
    y = convsmith.conv2d(x, w, b, *case.geometry)
    exact = torch.conv2d(x.double(), w.double(), None if b is None else b.double())
    assert largest_error(y, exact) < LARGEST_ERROR["tf32"]
