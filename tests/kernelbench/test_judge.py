"""The tolerance: what is right in each class, what is not, and what is said about it."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from convsmith.kernelbench.exact import to_bfloat16, to_tf32, to_tf32_truncated
from convsmith.kernelbench.judge import Expectation, Finding, errors, judge
from convsmith.kernelbench.report import Verdict

# Terms of the sum: depthwise, few channels, many channels.
SHAPES = [(1, 3), (16, 3), (512, 3), (64, 9)]


def drawn(channels: int, kernel: int, values: str) -> tuple[Tensor, Tensor]:
    x = torch.rand(2, channels, 14, 15) if values == "rand" else torch.randn(2, channels, 14, 15)
    if values == "wide":
        x *= 10 ** torch.empty_like(x).uniform_(-3, 3)
    return x, torch.randn(8, channels, kernel, kernel) / kernel


def expected(x: Tensor, w: Tensor, *, tf32: bool) -> Expectation:
    return Expectation(
        exact=F.conv2d(x.double(), w.double()),
        rounded=F.conv2d(to_tf32(x.double()), to_tf32(w.double())) if tf32 else None,
        pytorch=F.conv2d(x, w),
        terms=w[0].numel(),
    )


def in_one_accumulator(x: Tensor, w: Tensor) -> Tensor:
    """A float32 convolution that adds one product after another: the plainest kernel."""
    patches = F.unfold(x, w.shape[2:])
    total = torch.zeros(len(x), len(w), patches.shape[-1])
    for column, row in zip(w.flatten(1).mT, patches.unbind(1), strict=True):
        total += column[:, None] * row[:, None]
    return total.view(len(x), len(w), x.shape[2] - w.shape[2] + 1, -1)


def with_rounded(rounding, x: Tensor, w: Tensor) -> Tensor:
    return F.conv2d(rounding(x.double()).float(), rounding(w.double()).float())


@pytest.mark.parametrize("values", ["rand", "randn", "wide"])
@pytest.mark.parametrize(("channels", "kernel"), SHAPES)
def test_classes(channels: int, kernel: int, values: str) -> None:
    x, w = drawn(channels, kernel, values)
    both = {tf32: expected(x, w, tf32=tf32) for tf32 in (True, False)}

    def verdicts(y: Tensor) -> tuple[bool, bool]:
        """Whether ``y`` is right in the TF32 class, and in the float32 class."""
        found = [judge("y", y, both[tf32]).verdict is Verdict.RIGHT for tf32 in (True, False)]
        return found[0], found[1]

    assert verdicts(in_one_accumulator(x, w)) == (True, True)
    assert verdicts(both[False].exact.float()) == (True, True)
    assert verdicts(with_rounded(to_tf32, x, w)) == (True, False)
    assert verdicts(with_rounded(to_tf32_truncated, x, w)) == (False, False)
    assert verdicts(with_rounded(to_bfloat16, x, w)) == (False, False)


@pytest.mark.parametrize("channels", [1, 64, 400])
@pytest.mark.parametrize(
    ("dtype", "verdict"), [(torch.float16, Verdict.RIGHT), (torch.bfloat16, Verdict.WRONG)]
)
def test_three_products_of_parts(channels: int, dtype: torch.dtype, verdict: Verdict) -> None:
    """Each operand as the sum of two halves: float16 keeps 22 bits of it, bfloat16 only 16."""
    x, w = drawn(channels, 3, "randn")

    def parts(t: Tensor) -> tuple[Tensor, Tensor]:
        high = t.to(dtype).float()
        return high, ((t - high) * 2**11).to(dtype).float() / 2**11

    (x1, x2), (w1, w2) = parts(x), parts(w)
    y = F.conv2d(x1, w1) + (F.conv2d(x1, w2) + F.conv2d(x2, w1))
    assert judge("y", y, expected(x, w, tf32=False)).verdict is verdict
    assert judge("y", y, expected(x, w, tf32=True)).verdict is Verdict.RIGHT


def test_small_results_count_as_much_as_large_ones() -> None:
    """Beside a large item the error of two small ones shows in neither rms nor largest error."""
    x = torch.randn(3, 4, 14, 15)
    x[0] *= 1e6
    w = torch.randn(8, 4, 3, 3)
    y = F.conv2d(x, w)
    expectation = expected(x, w, tf32=True)
    assert judge("y", y, expectation).verdict is Verdict.RIGHT
    y[1:] *= 1.01
    found = judge("y", y, expectation)
    assert found.verdict is Verdict.WRONG
    assert found.measured["rms_error"] < 1e-6
    assert "half of the elements of y are off by more than 1.0e-02" in found.came


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_may_round_once(dtype: torch.dtype) -> None:
    x, w = (t.to(dtype) for t in drawn(32, 3, "randn"))
    exact = F.conv2d(x.double(), w.double())
    expectation = Expectation(exact, None, exact.to(dtype), w[0].numel())
    assert judge("y", F.conv2d(x.float(), w.float()).to(dtype), expectation).verdict == "right"
    worse = exact * (1 + 8 * torch.finfo(dtype).eps)
    assert judge("y", worse.to(dtype), expectation).verdict is Verdict.WRONG


def test_float64_is_judged_as_float64() -> None:
    x, w = (t.double() for t in drawn(16, 3, "randn"))
    y = F.conv2d(x, w)
    expectation = Expectation(y, None, y, w[0].numel())
    assert judge("y", y + y * 1e-15, expectation).verdict is Verdict.RIGHT
    assert judge("y", y.float().double(), expectation).verdict is Verdict.WRONG


def special(place: float) -> tuple[Expectation, Tensor]:
    x, w = drawn(3, 3, "randn")
    x[0, 1, 5, 5] = place
    return expected(x, w, tf32=True), F.conv2d(x, w)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_infinities_and_nan_have_their_places(value: float) -> None:
    expectation, y = special(value)
    assert judge("y", y, expectation).verdict is Verdict.RIGHT
    for wrong in (y.nan_to_num(), torch.where(y.isinf(), -y, y), torch.where(y > 3, math.inf, y)):
        if not torch.equal(wrong.nan_to_num(9), y.nan_to_num(9)):
            found = judge("y", wrong, expectation)
            assert found.verdict is Verdict.WRONG
            assert found.misplaced
            assert "instead of" in found.came


def test_infinities_where_pytorch_itself_has_them_are_right() -> None:
    expectation, y = special(math.inf)
    shared = Expectation(
        expectation.exact, expectation.rounded, torch.full_like(y, math.nan), expectation.terms
    )
    assert judge("y", torch.full_like(y, math.nan), shared).verdict is Verdict.RIGHT


def test_an_exact_zero_allows_no_error() -> None:
    zero = torch.zeros(2, 3, 4, 5)
    expectation = Expectation(zero.double(), zero.double(), zero, 27)
    assert judge("y", zero, expectation).verdict is Verdict.RIGHT
    assert judge("y", zero + 1e-30, expectation).verdict is Verdict.WRONG


def test_shape_dtype_and_device_come_first() -> None:
    x, w = drawn(3, 3, "randn")
    expectation = expected(x, w, tf32=True)
    for other in (
        expectation.pytorch.flatten(1),
        expectation.exact,
        expectation.pytorch.to("meta"),
    ):
        found = judge("y", other, expectation)
        assert found.verdict is Verdict.WRONG
        assert found.expected == "y: (2, 8, 12, 13) float32 on cpu"


def test_what_is_said() -> None:
    x, w = drawn(3, 3, "randn")
    y = F.conv2d(x, w)
    y[1, 2, 3, 4] += 5
    found: Finding = judge("the output", y, expected(x, w, tf32=True))
    exact = float(F.conv2d(x.double(), w.double())[1, 2, 3, 4])
    assert f"the output is {exact + 5:.6g} instead of {exact:.6g} at (1, 2, 3, 4)" in found.came
    assert "; PyTorch " in found.came
    assert found.expected.startswith("errors up to rms ")
    assert found.measured["max_error"] > found.measured["torch_max_error"]


def test_errors_are_relative_to_the_exact_result() -> None:
    exact = torch.tensor([3.0, -4.0, 0.0], dtype=torch.float64)
    found = errors(torch.tensor([3.0, -4.5, 0.0]), exact, torch.ones(3, dtype=torch.bool))
    assert found.rms == pytest.approx(0.1)
    assert found.largest == pytest.approx(0.125)
