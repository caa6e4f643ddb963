"""The implicit_gemm family's input gradients of a stride against float64, simulated or on a GPU."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from convolutions import LARGEST_ERROR, PLAIN, Case, largest_error
from torch import Tensor

import convsmith
from convsmith import execute
from convsmith.kernels import implicit_gemm
from convsmith.kernels.implicit_gemm_forward import forwards_of
from convsmith.spec import Direction, Pair

FAMILY = "implicit_gemm"
ORDINARY = replace(PLAIN, group_channels=20, stride=(2, 2))
CASES = {
    "ordinary": ORDINARY,
    "pairs": replace(ORDINARY, size=(9, 14)),
    "pairs-of-six-columns": replace(ORDINARY, kernel_size=(3, 5), stride=(3, 6), size=(14, 16)),
    "columns": replace(ORDINARY, stride=(1, 2), group_channels=37),
    "rows": replace(ORDINARY, stride=(2, 1), padding=(2, 1)),
    "dilated": replace(ORDINARY, stride=(4, 2), dilation=(2, 3), size=(15, 16)),
    "phases-without-taps": replace(ORDINARY, group_channels=70, dilation=(2, 2), padding=(1, 2)),
    "stride-beyond-the-filter": replace(ORDINARY, kernel_size=(2, 3), stride=(5, 4), size=(17, 16)),
    "many-rows": replace(ORDINARY, group_channels=70, kernel_size=(7, 2), stride=(2, 1)),
    "three-channels": replace(ORDINARY, group_channels=3, kernel_size=(7, 7)),
    "three-channels-of-16-phases": replace(
        ORDINARY, group_channels=3, kernel_size=(11, 11), stride=(4, 4), size=(23, 27)
    ),
    "few-filters": replace(ORDINARY, group_filters=3),
    "1x1": replace(ORDINARY, kernel_size=(1, 1), padding=(0, 0)),
    "1x1-many-channels": replace(
        ORDINARY, group_channels=130, kernel_size=(1, 1), padding=(0, 0), size=(30, 31)
    ),
    "patches": replace(ORDINARY, kernel_size=(8, 8), stride=(8, 8), size=(17, 33), padding=(0, 0)),
    "whole-patches": replace(
        ORDINARY, kernel_size=(8, 8), stride=(8, 8), size=(17, 32), padding=(0, 0)
    ),
    "wide": replace(ORDINARY, size=(7, 301)),
    "small-planes": replace(ORDINARY, batch=9, size=(7, 7)),
    "rows-that-meet-nothing": replace(ORDINARY, padding=(0, 0), stride=(3, 4), size=(11, 14)),
    "padding-beyond-the-filter": replace(ORDINARY, padding=(6, 5)),
    "channels-last": replace(ORDINARY, layout="channels_last"),
}


def operands(case: Case, device: str) -> tuple[Tensor, Tensor, Tensor]:
    """dy, w and x."""
    x, w, _ = case.tensors(device)
    return case.upstream(torch.conv2d(x, w, None, *case.geometry)), w, x


def exact_gradient(case: Case, dy: Tensor, w: Tensor, x: Tensor) -> Tensor:
    return torch.nn.grad.conv2d_input(x.shape, w.double(), dy.double(), *case.geometry)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
@pytest.mark.usefixtures("halves")
def test_layers(case: Case, device: str, precision: str) -> None:
    given = operands(case, device)
    dx = execute.input_gradient(*given, *case.geometry)
    assert largest_error(dx, exact_gradient(case, *given)) < LARGEST_ERROR[precision]


@pytest.mark.parametrize(
    ("name", "apart"),
    [
        ("ordinary", False),
        ("many-rows", False),
        ("three-channels", True),
        ("phases-without-taps", True),
    ],
)
def test_row_phases_have_blocks_of_their_own(name: str, apart: bool) -> None:
    """Where that saves time; the cases above reach both ways."""
    spec = CASES[name].specs()[Direction.GRAD_INPUT]
    assert implicit_gemm.configure(spec, multiprocessors=4).way == int(apart)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("ordinary", False),
        ("pairs", True),
        ("pairs-of-six-columns", True),
        ("patches", False),
        ("whole-patches", True),
        ("channels-last", False),
    ],
)
def test_columns_are_stored_as_vectors(name: str, expected: bool) -> None:
    """Where rows are whole numbers of them; the cases above reach both ways."""
    phases = forwards_of(CASES[name].specs()[Direction.GRAD_INPUT])[0].phases
    assert phases is not None
    assert phases.stores_vectors is expected


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision(dtype: torch.dtype, device: str) -> None:
    case = replace(ORDINARY, dtype=dtype, size=(9, 140))
    given = operands(case, device)
    dx = execute.input_gradient(*given, *case.geometry)
    assert largest_error(dx, exact_gradient(case, *given)) < torch.finfo(dtype).eps


@pytest.mark.parametrize("value", [torch.inf, torch.nan], ids=str)
@pytest.mark.parametrize("name", ["many-rows", "few-filters", "wide", "pairs", "small-planes"])
def test_inf_and_nan_reach_what_they_meet(
    name: str, value: float, device: str, precision: str
) -> None:
    """And no other phase, though filters of a block meet each other's taps with zero weights."""
    case = CASES[name]
    dy, w, x = operands(case, device)
    dy[1, 2, 1, 3] = value
    dx = execute.input_gradient(dy, w, x, *case.geometry)
    exact = exact_gradient(case, dy, w, x)
    assert not exact.isfinite().all()
    torch.testing.assert_close(
        dx.double(), exact, rtol=0, atol=LARGEST_ERROR[precision] * 60, equal_nan=True
    )


@pytest.mark.parametrize(
    ("stride", "output_padding"), [((2, 2), (0, 0)), ((2, 2), (0, 1)), ((1, 3), (0, 2))], ids=str
)
def test_a_transposed_convolution(
    stride: Pair, output_padding: Pair, device: str, precision: str
) -> None:
    """Is the input gradient of a convolution."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 12, 7, 9, generator=generator).to(device)
    w = torch.randn(12, 10, 3, 4, generator=generator).to(device)
    options = {"stride": stride, "padding": 1, "output_padding": output_padding}
    y = convsmith.conv_transpose2d(x, w, None, **options)
    exact = torch.conv_transpose2d(x.double(), w.double(), None, **options)
    assert largest_error(y, exact) < LARGEST_ERROR[precision]
