"""The implicit_gemm family against float64: in the simulator, and on a GPU where there is one."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from convolutions import LARGEST_ERROR, PLAIN, Case, begun_at, dense_cases
from hypothesis import HealthCheck, given, settings
from tilings import prefer
from torch import Tensor

import convsmith
from convsmith import execute
from convsmith.kernels import implicit_gemm
from convsmith.kernels.implicit_gemm_cut import Configuration
from convsmith.spec import Direction, Pair

FAMILY = "implicit_gemm"
ORDINARY = replace(PLAIN, group_channels=20)
CASES = {
    "ordinary": ORDINARY,
    "many-filters": replace(ORDINARY, group_filters=70),
    "wide": replace(ORDINARY, size=(6, 140)),
    "wide-unaligned": replace(ORDINARY, size=(5, 301), kernel_size=(2, 2), padding=(0, 0)),
    "small-planes": replace(ORDINARY, batch=9, size=(7, 7)),
    "strided": replace(ORDINARY, stride=(2, 1), padding=(2, 1)),
    "dilated": replace(ORDINARY, dilation=(2, 3), padding=(2, 3)),
    "strided-and-dilated": replace(ORDINARY, stride=(4, 2), dilation=(2, 3), size=(15, 16)),
    "1x1": replace(ORDINARY, kernel_size=(1, 1), padding=(0, 0), stride=(2, 2)),
    "far-strided": replace(  # a tile reaches over more columns than 16 bits count
        ORDINARY, batch=1, size=(2, 140000), kernel_size=(1, 1), padding=(0, 0), stride=(1, 1000)
    ),
    "5x2": replace(ORDINARY, kernel_size=(5, 2), padding=(4, 0)),
    "groups": replace(ORDINARY, groups=3, group_channels=9, group_filters=10, size=(5, 8)),
    "three-channels": replace(ORDINARY, group_channels=3, kernel_size=(7, 7), stride=(2, 2)),
    "three-channels-even": replace(
        ORDINARY,
        group_channels=3,
        kernel_size=(7, 7),
        stride=(2, 2),
        padding=(3, 3),
        size=(14, 26),
    ),
    "three-channels-dilated": replace(ORDINARY, group_channels=3, dilation=(2, 3), size=(12, 20)),
    "three-channels-small-planes": replace(
        ORDINARY, batch=40, group_channels=3, size=(9, 11), kernel_size=(5, 3), stride=(3, 1)
    ),
    "three-channels-many-filters": replace(
        ORDINARY,
        batch=2,
        group_channels=3,
        group_filters=90,
        size=(43, 32),
        kernel_size=(11, 11),
        stride=(4, 4),
        padding=(2, 2),
    ),
    "one-channel": replace(ORDINARY, group_channels=1, padding=(3, 0)),
    "1x1-many-channels": replace(
        ORDINARY, group_channels=130, kernel_size=(1, 1), padding=(0, 0), group_filters=70
    ),
    "channels-last": replace(ORDINARY, layout="channels_last"),
    "transposed": replace(ORDINARY, layout="transposed"),
}


def errors(case: Case, device: str, factor: float = 1) -> float:
    """The largest error of y over its largest element, for x multiplied by ``factor``."""
    x, w, b = case.tensors(device)
    x = x * factor
    y = convsmith.conv2d(x, w, b, *case.geometry)
    exact = torch.conv2d(x.double(), w.double(), None if b is None else b.double(), *case.geometry)
    return float((y.double() - exact).abs().max() / exact.abs().max())


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
@pytest.mark.usefixtures("halves")
def test_layers(case: Case, device: str, precision: str) -> None:
    assert errors(case, device) < LARGEST_ERROR[precision]


def gradient_error(case: Case, device: str) -> float:
    """The largest error of dx over its largest element."""
    x, w, _ = case.tensors(device)
    dy = case.upstream(torch.conv2d(x, w, None, *case.geometry))
    dx = execute.input_gradient(dy, w, x, *case.geometry)
    exact = torch.nn.grad.conv2d_input(x.shape, w.double(), dy.double(), *case.geometry)
    return float((dx.double() - exact).abs().max() / exact.abs().max())


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, id=name)
        for name, case in CASES.items()
        if case.stride == (1, 1) and case.groups == 1
    ],
)
@pytest.mark.usefixtures("halves")
def test_input_gradients(case: Case, device: str, precision: str) -> None:
    assert gradient_error(case, device) < LARGEST_ERROR[precision]


@pytest.mark.parametrize("stride", [(1, 1), (2, 3)], ids=str)
def test_input_gradients_of_groups(stride: Pair, device: str, precision: str) -> None:
    case = replace(CASES["groups"], stride=stride)
    if precision == "float32":  # in which sums of fewer terms err too much
        case = replace(case, group_filters=50)
    assert gradient_error(case, device) < LARGEST_ERROR[precision]


FLAT_CASES = {
    **{name: CASES[name] for name in ("ordinary", "many-filters", "small-planes", "groups")},
    **{name: CASES[name] for name in ("dilated", "5x2", "three-channels", "one-channel")},
    "one-column": replace(ORDINARY, batch=3, size=(50, 1), kernel_size=(3, 1), padding=(1, 0)),
    "128-columns": replace(ORDINARY, batch=1, size=(5, 128)),
    "no-padding": replace(ORDINARY, size=(9, 21), padding=(0, 0)),
    "padding-of-one-side": replace(ORDINARY, size=(9, 20), kernel_size=(2, 4), padding=(1, 3)),
    "1x1": replace(ORDINARY, size=(7, 7), kernel_size=(1, 1), padding=(0, 0), batch=5),
}


@pytest.mark.usefixtures("flat")
@pytest.mark.parametrize("case", FLAT_CASES.values(), ids=FLAT_CASES)
def test_tiles_that_go_on_from_row_to_row(case: Case, device: str, precision: str) -> None:
    configuration = implicit_gemm.configure(case.specs()[Direction.FORWARD], 132)
    assert isinstance(configuration, Configuration)
    assert configuration.shape.is_flat
    assert errors(case, device) < LARGEST_ERROR[precision]
    if case.groups == 1 and case.stride == (1, 1):
        assert gradient_error(case, device) < LARGEST_ERROR[precision]


def test_an_input_gradient_of_padding_beyond_the_filter(device: str, precision: str) -> None:
    case = replace(ORDINARY, padding=(4, 5))
    assert gradient_error(case, device) < LARGEST_ERROR[precision]


HALF_PRECISION = pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)


@HALF_PRECISION
@pytest.mark.usefixtures("halves")
@pytest.mark.parametrize(
    "name",
    [
        *("ordinary", "wide-unaligned", "strided", "groups", "channels-last", "transposed"),
        *("three-channels", "three-channels-dilated", "one-channel", "1x1-many-channels"),
    ],
)
def test_half_precision(name: str, dtype: torch.dtype, device: str) -> None:
    """Planes of an odd and of an even number of elements."""
    assert errors(replace(CASES[name], dtype=dtype), device) < torch.finfo(dtype).eps


@HALF_PRECISION
@pytest.mark.parametrize("name", ["ordinary", "wide-unaligned", "three-channels"])
def test_half_precision_from_any_address(name: str, dtype: torch.dtype, device: str) -> None:
    """x begins at an odd multiple of two bytes."""
    case = replace(CASES[name], dtype=dtype)
    x, w, b = case.tensors(device)
    y = convsmith.conv2d(begun_at(x, 1), w, b, *case.geometry)
    assert torch.equal(y, convsmith.conv2d(x, w, b, *case.geometry))


@pytest.mark.parametrize("factor", [1e-25, 1e-6, 1e6, 1e25], ids=str)
def test_any_magnitude(factor: float, device: str, precision: str) -> None:
    assert errors(replace(ORDINARY, has_bias=False), device, factor) < LARGEST_ERROR[precision]


def test_magnitudes_that_change_from_channel_to_channel(device: str, precision: str) -> None:
    """So that the scale of one patch does not suit the next."""
    case = replace(ORDINARY, group_channels=64, has_bias=False)
    x, w, _ = case.tensors(device)
    x *= 10.0 ** torch.arange(-12, 12, 24 / 64, device=device)[:, None, None]
    y = convsmith.conv2d(x, w, None, *case.geometry)
    exact = torch.conv2d(x.double(), w.double(), None, *case.geometry)
    assert (y.double() - exact).abs().max() / exact.abs().max() < LARGEST_ERROR[precision]


@pytest.mark.parametrize("value", [torch.inf, -torch.inf, torch.nan], ids=str)
def test_inf_and_nan_reach_what_they_meet(value: float, device: str, precision: str) -> None:
    x, w, b = ORDINARY.tensors(device)
    x[1, 3, 4, 5] = value
    y = convsmith.conv2d(x, w, b, *ORDINARY.geometry)
    exact = torch.conv2d(x.double(), w.double(), b.double(), *ORDINARY.geometry)
    torch.testing.assert_close(
        y.double(), exact, rtol=0, atol=LARGEST_ERROR[precision] * 60, equal_nan=True
    )


@pytest.mark.parametrize("value", [torch.inf, torch.nan], ids=str)
@pytest.mark.parametrize(
    "name", ["5x5", "three-channels", "three-channels-even", "three-channels-many-filters"]
)
def test_inf_and_nan_reach_nothing_else(
    name: str, value: float, device: str, precision: str
) -> None:
    """Where taps do not fill a stage of weights, or a vector: what fills them up meets x too."""
    case = {"5x5": replace(ORDINARY, kernel_size=(5, 5)), **CASES}[name]
    x, w, b = case.tensors(device)
    x[1, 2, 4, 5:7] = value
    y = convsmith.conv2d(x, w, b, *case.geometry)
    exact = torch.conv2d(x.double(), w.double(), None if b is None else b.double(), *case.geometry)
    torch.testing.assert_close(
        y.double(), exact, rtol=0, atol=LARGEST_ERROR[precision] * 60, equal_nan=True
    )


RUN_CASES = {
    "padded": replace(ORDINARY, batch=1, size=(5, 136)),
    "no-padding": replace(ORDINARY, batch=1, size=(5, 264), padding=(0, 0)),
    "dilated": replace(ORDINARY, size=(7, 40), dilation=(2, 3), padding=(2, 5)),
    "5x2": replace(ORDINARY, size=(6, 144), kernel_size=(5, 2), padding=(4, 0)),
    "groups": replace(ORDINARY, groups=3, group_channels=9, group_filters=10, size=(5, 24)),
    "many-channels": replace(ORDINARY, batch=1, size=(3, 136), group_channels=75),
    "1x1": replace(ORDINARY, size=(4, 136), kernel_size=(1, 1), padding=(0, 0)),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("case", RUN_CASES.values(), ids=RUN_CASES)
def test_rows_copied_by_runs(
    case: Case, dtype: torch.dtype, halves: int, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From an address that runs are aligned at, and from another; and where scales change."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    prefer(monkeypatch, lambda shape: not (shape.is_narrow or shape.is_flat))
    case = replace(case, dtype=dtype)
    configuration = implicit_gemm.configure(case.specs()[Direction.FORWARD], 132)
    assert isinstance(configuration, Configuration)
    assert configuration.patch.run_lead is not None
    largest = LARGEST_ERROR["float32"] if dtype is torch.float32 else torch.finfo(dtype).eps
    assert errors(case, device) < largest
    x, w, b = case.tensors(device)
    x[:, ::3] *= 1e-4
    y = convsmith.conv2d(x, w, b, *case.geometry)
    assert torch.equal(y, convsmith.conv2d(begun_at(x, 1), w, b, *case.geometry))
    exact = torch.conv2d(x.double(), w.double(), None if b is None else b.double(), *case.geometry)
    assert float((y.double() - exact).abs().max() / exact.abs().max()) < largest


def test_few_channels_from_any_address(device: str, precision: str) -> None:
    """Where pieces of several elements could be copied, did they not lie across their size."""
    case = CASES["three-channels-even"]
    x, w, b = case.tensors(device)
    y = convsmith.conv2d(begun_at(x, 1), w, b, *case.geometry)
    assert torch.equal(y, convsmith.conv2d(x, w, b, *case.geometry))


def test_the_same_bits_again(device: str, precision: str) -> None:
    def once() -> Tensor:
        x, w, b = ORDINARY.tensors(device)
        return convsmith.conv2d(x, w, b, *ORDINARY.geometry)

    assert torch.equal(once(), once())


@settings(max_examples=15, suppress_health_check=[HealthCheck.too_slow])
@given(case=dense_cases(images=4, channels=(1, 40)))
def test_any_layer(case: Case) -> None:
    if implicit_gemm.obstacle(case.specs()[Direction.FORWARD]) is not None:
        return
    with convsmith.use_kernel("implicit_gemm"), convsmith.simulator():
        assert errors(case, "cpu") < LARGEST_ERROR["tf32"]
        if implicit_gemm.obstacle(case.specs()[Direction.GRAD_INPUT]) is None:
            assert gradient_error(case, "cpu") < LARGEST_ERROR["tf32"]
