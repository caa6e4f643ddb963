"""The implicit_gemm family's weight gradient against float64: in the simulator, and on a GPU."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from convolutions import LARGEST_ERROR, PLAIN, Case, begun_at, dense_cases
from hypothesis import HealthCheck, given, settings
from torch import Tensor

import convsmith
from convsmith import execute
from convsmith.kernels import implicit_gemm
from convsmith.kernels.implicit_gemm_weight_cut import geometry_of
from convsmith.spec import Direction

FAMILY = "implicit_gemm"
ORDINARY = replace(PLAIN, group_channels=20)
FEW_PIXELS = replace(
    ORDINARY, batch=16, size=(8, 8), kernel_size=(1, 3), padding=(0, 1), has_bias=False
)
CASES = {
    "ordinary": ORDINARY,
    "no-bias": replace(ORDINARY, has_bias=False),
    "many-filters": replace(ORDINARY, group_filters=70),
    "many-channels": replace(ORDINARY, group_channels=70),
    "wide": replace(ORDINARY, size=(6, 140)),
    "wide-unaligned": replace(ORDINARY, size=(5, 301), kernel_size=(2, 2), padding=(0, 0)),
    "small-planes": replace(ORDINARY, batch=9, size=(7, 7)),
    "smaller-planes": replace(ORDINARY, batch=40, size=(3, 2)),
    "strided": replace(ORDINARY, stride=(2, 1), padding=(2, 1)),
    "strided-small-planes": replace(ORDINARY, batch=5, size=(8, 8), stride=(2, 2)),
    "dilated": replace(ORDINARY, dilation=(2, 3), padding=(2, 3)),
    "strided-and-dilated": replace(ORDINARY, stride=(4, 2), dilation=(2, 3), size=(15, 16)),
    "rows-dilated": replace(ORDINARY, size=(13, 9), dilation=(3, 1), padding=(3, 1)),
    "rows-dilated-beyond-all": replace(ORDINARY, size=(6, 9), dilation=(9, 1), padding=(9, 1)),
    "rows-strided-and-dilated": replace(
        ORDINARY, size=(23, 9), stride=(2, 1), dilation=(3, 1), padding=(3, 1)
    ),
    "rows-strided-and-dilated-by-multiples": replace(
        ORDINARY, size=(31, 9), stride=(4, 1), dilation=(6, 1), padding=(5, 1)
    ),
    "1x1": replace(ORDINARY, kernel_size=(1, 1), padding=(0, 0), stride=(2, 2)),
    "1x1-many-channels": replace(
        ORDINARY, group_channels=130, kernel_size=(1, 1), padding=(0, 0), group_filters=70
    ),
    "5x2": replace(ORDINARY, kernel_size=(5, 2), padding=(4, 0)),
    "5x5": replace(ORDINARY, kernel_size=(5, 5), padding=(2, 2), group_channels=10),
    "groups": replace(ORDINARY, groups=3, group_channels=9, group_filters=10, size=(5, 8)),
    "cropped": replace(ORDINARY, layout="cropped", upstream_layout="cropped"),
    "expanded": replace(ORDINARY, layout="expanded", upstream_layout="expanded"),
    "few-channels": replace(ORDINARY, group_channels=3),
    "few-channels-7x7-strided": replace(
        ORDINARY,
        group_channels=3,
        size=(14, 41),
        kernel_size=(7, 7),
        stride=(2, 2),
        padding=(3, 3),
        group_filters=70,
    ),
    "few-channels-11x11": replace(
        ORDINARY, group_channels=4, size=(19, 23), kernel_size=(11, 11), stride=(4, 4)
    ),
    "few-channels-strided-by-3": replace(
        ORDINARY, group_channels=3, size=(11, 29), kernel_size=(3, 8), stride=(2, 3)
    ),
    "few-channels-patches": replace(
        ORDINARY, group_channels=3, size=(32, 48), kernel_size=(16, 16), stride=(16, 16)
    ),
    "few-channels-strided-small-planes": replace(
        ORDINARY, group_channels=5, batch=7, size=(9, 15), kernel_size=(5, 5), stride=(2, 2)
    ),
    "few-channels-strided-and-dilated": replace(
        ORDINARY, group_channels=6, size=(9, 31), kernel_size=(2, 5), stride=(1, 2), dilation=(1, 3)
    ),
    "few-channels-wide-unaligned": replace(
        ORDINARY, group_channels=2, size=(4, 301), kernel_size=(2, 5), padding=(0, 3)
    ),
    "few-channels-dilated": replace(
        ORDINARY, group_channels=7, size=(9, 27), kernel_size=(3, 9), dilation=(2, 3), stride=(1, 2)
    ),
    "few-channels-small-planes": replace(ORDINARY, group_channels=1, batch=9, size=(7, 5)),
    "few-channels-1x1": replace(ORDINARY, group_channels=3, kernel_size=(1, 1), padding=(0, 0)),
}


def operands(case: Case, device: str) -> tuple[Tensor, Tensor, Tensor]:
    """dy, x and w."""
    x, w, _ = case.tensors(device)
    return case.upstream(torch.conv2d(x, w, None, *case.geometry)), x, w


def gradients(case: Case, dy: Tensor, x: Tensor, w: Tensor) -> list[Tensor]:
    """dw, and db where it is wanted."""
    results = execute.weight_gradient(dy, x, w, *case.geometry, case.has_bias)
    return [one for one in results if one is not None]


def exact_gradients(case: Case, dy: Tensor, x: Tensor, w: Tensor) -> list[Tensor]:
    dw = torch.nn.grad.conv2d_weight(x.double(), w.shape, dy.double(), *case.geometry)
    return [dw, dy.double().sum((0, 2, 3))][: 1 + case.has_bias]


def largest_error(ours: list[Tensor], exact: list[Tensor]) -> float:
    """The largest error of a gradient over its largest element, which may be 0."""
    return max(
        float((one.double() - true).abs().max() / true.abs().max().clamp_min(1e-300))
        for one, true in zip(ours, exact, strict=True)
    )


def error(case: Case, device: str, factors: tuple[float, float] = (1, 1)) -> float:
    """The largest error for dy and x multiplied by ``factors``."""
    dy, x, w = operands(case, device)
    dy, x = dy * factors[0], x * factors[1]
    return largest_error(gradients(case, dy, x, w), exact_gradients(case, dy, x, w))


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_layers(case: Case, device: str, precision: str) -> None:
    if case.groups > 1 and precision == "float32":  # in which smaller groups err too much
        case = replace(case, group_channels=17)
    assert error(case, device) < LARGEST_ERROR[precision]


def test_long_sums_of_one_sign(device: str, precision: str) -> None:
    """The tensor cores truncate when they add: a bias, if sums were left to them for long."""
    size, largest = {"tf32": ((160, 320), 6e-5), "float32": ((80, 320), 1.25e-7)}[precision]
    case = replace(ORDINARY, batch=1, group_channels=8, size=size, kernel_size=(1, 1))
    case = replace(case, padding=(0, 0), has_bias=False)
    assert error_of_one_sign(case, device) < largest


def error_of_one_sign(case: Case, device: str) -> float:
    """In rms, of operands in [0, 1), over the rms of dw."""
    dy, x, w = operands(case, device)
    generator = torch.Generator().manual_seed(case.seed)
    dy, x = (torch.rand(one.shape, generator=generator).to(device) for one in (dy, x))
    (ours,), (exact,) = gradients(case, dy, x, w), exact_gradients(case, dy, x, w)
    return float((ours - exact).square().mean().sqrt() / exact.square().mean().sqrt())


@pytest.mark.usefixtures("precision")
@pytest.mark.parametrize("precision", ["float32"], indirect=True)
def test_sums_of_few_pixels_err_no_more_than_cudnn_s(device: str) -> None:
    """Of 1024 it errs 6.4e-8; the tensor cores' sums of 32 pixels erred 7.5e-8."""
    case = replace(FEW_PIXELS, group_channels=64, group_filters=64)
    assert error_of_one_sign(case, device) < 6.4e-8


def test_how_many_pixels_the_tensor_cores_add_up(precision: str) -> None:
    few, more = (
        geometry_of(case.specs()[Direction.GRAD_WEIGHT]).sum_pixels
        for case in (FEW_PIXELS, replace(FEW_PIXELS, batch=32))
    )
    assert (few, more) == {"tf32": (0, 0), "float32": (16, 32)}[precision]


@pytest.mark.parametrize("offsets", [(1, 0), (0, 3), (2, 1)], ids=str)
@pytest.mark.parametrize("name", ["ordinary", "few-channels"])
def test_tensors_that_begin_anywhere(
    name: str, offsets: tuple[int, int], device: str, precision: str
) -> None:
    """Pieces of 16 bytes would reach over both ends of memory that begins and ends with them."""
    case = CASES[name]
    dy, x, w = operands(case, device)
    moved = map(begun_at, (dy, x), offsets)
    ours, exact = gradients(case, *moved, w), exact_gradients(case, dy, x, w)
    assert largest_error(ours, exact) < LARGEST_ERROR[precision]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    "name", ["ordinary", "wide-unaligned", "small-planes", "few-channels-7x7-strided"]
)
def test_half_precision(name: str, dtype: torch.dtype, device: str) -> None:
    assert error(replace(CASES[name], dtype=dtype), device) < torch.finfo(dtype).eps


@pytest.mark.parametrize(
    "factors",
    [(1e-25, 1), (1, 1e-25), (1e-6, 1e-6), (1e6, 1e6), (1e25, 1), (1, 1e25), (1e-25, 1e25)],
    ids=str,
)
def test_any_magnitude(factors: tuple[float, float], device: str, precision: str) -> None:
    assert error(ORDINARY, device, factors) < LARGEST_ERROR[precision]


@pytest.mark.parametrize("growth", [10.0, 0.1], ids=["growing", "shrinking"])
@pytest.mark.parametrize("name", ["ordinary", "few-channels"])
def test_magnitudes_that_change_from_row_to_row(
    name: str, growth: float, device: str, precision: str
) -> None:
    """So that the scale of one row does not suit the next."""
    case = replace(CASES[name], size=(18, 7))
    dy, x, w = operands(case, device)
    x = x * growth ** torch.arange(18.0, device=device)[:, None]
    dy = dy * growth ** torch.arange(float(dy.shape[2]), device=device)[:, None]
    ours, exact = gradients(case, dy, x, w), exact_gradients(case, dy, x, w)
    assert largest_error(ours, exact) < LARGEST_ERROR[precision]


@pytest.mark.parametrize("value", [torch.inf, -torch.inf, torch.nan], ids=str)
@pytest.mark.parametrize(
    "name",
    ["ordinary", "small-planes", "strided", "wide", "few-channels-dilated", "few-channels-1x1"],
)
def test_inf_and_nan_of_x_reach_what_they_meet_and_nothing_else(
    name: str, value: float, device: str, precision: str
) -> None:
    case = CASES[name]
    dy, x, w = operands(case, device)
    x[1, 2, 4, -1] = value
    x[0, -1, 0, 0] = value
    for ours, exact in zip(gradients(case, dy, x, w), exact_gradients(case, dy, x, w), strict=True):
        torch.testing.assert_close(
            ours.double(), exact, rtol=0, atol=LARGEST_ERROR[precision] * 200, equal_nan=True
        )


@pytest.mark.parametrize("value", [torch.inf, -torch.inf, torch.nan], ids=str)
def test_inf_and_nan_of_dy_reach_their_filter(value: float, device: str, precision: str) -> None:
    dy, x, w = operands(ORDINARY, device)
    dy[1, 3, 4, 5] = value
    for ours, exact in zip(
        gradients(ORDINARY, dy, x, w), exact_gradients(ORDINARY, dy, x, w), strict=True
    ):
        torch.testing.assert_close(
            ours.double(), exact, rtol=0, atol=LARGEST_ERROR[precision] * 200, equal_nan=True
        )


def test_the_same_bits_again(device: str, precision: str) -> None:
    def once() -> list[Tensor]:
        return gradients(ORDINARY, *operands(ORDINARY, device))

    assert all(torch.equal(*pair) for pair in zip(once(), once(), strict=True))


def test_rows_that_are_not_contiguous_are_refused() -> None:
    spec = replace(ORDINARY, layout="channels_last").specs()[Direction.GRAD_WEIGHT]
    assert implicit_gemm.obstacle(spec) == "the rows of its input are not contiguous"


@settings(max_examples=25, suppress_health_check=[HealthCheck.too_slow])
@given(case=dense_cases(images=6, channels=(1, 7)) | dense_cases(images=6, channels=(8, 80)))
def test_any_layer(case: Case) -> None:
    if implicit_gemm.obstacle(case.specs()[Direction.GRAD_WEIGHT]) is not None:
        return
    with convsmith.use_kernel("implicit_gemm"), convsmith.simulator():
        assert error(case, "cpu") < LARGEST_ERROR["tf32"]
