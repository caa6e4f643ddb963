"""Whether a result is right: its error against float64, beside the error a right one may have.

Three errors, each relative to the exact result, are compared:

    rms      = rms(result - exact) / rms(exact)
    largest  = max|result - exact| / max|exact|
    typical  = median(|result - exact| / |exact|)      small results count as much as large ones

float32 class   rms, typical <= max(2 p, 2**-24 (1 + sqrt(terms)));  largest likewise
TF32 class      rms, typical <= 1.5 max(p, t), largest <= 2 max(p, t), or the float32 class's limit

p is PyTorch's own error in the same class on the same input, t the error of the same model in
float64 with the operands of its convolutions rounded to TF32, and terms the number of products in
its longest sums. 2**-24 sqrt(terms) is three times what a single float32 accumulator loses on
average, so that a plain float32 sum is right even where PyTorch happens to do better. Results of
another dtype are allowed two of that dtype's roundings more.

Infinities and NaN must be where float64 puts them, or where PyTorch does.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from convsmith.kernelbench.report import Verdict

FLOAT32_UNIT = 2.0**-24  # half of float32's distance from 1 to the next number
PYTORCH_SLACK = 2.0  # float32 class: times PyTorch's own error
TF32_SLACK = 1.5  # TF32 class: truncating instead of rounding gives about 2.5
TF32_LARGEST_SLACK = 2.0  # the largest error depends on a single element
# Where PyTorch's own error exceeds this, the exact result is the small rest of a cancellation and
# both errors are noise.
CANCELLED = 0.01
CANCELLED_SLACK = 10.0
FEWEST_FOR_TYPICAL = 32  # elements of which a median means something


@dataclass(frozen=True)
class Errors:
    """The three errors of a result, relative to the exact one; as text the first two."""

    rms: float
    largest: float
    typical: float

    def __str__(self) -> str:
        return f"rms {self.rms:.1e}, max {self.largest:.1e}"

    def within(self, limit: Errors) -> bool:
        """Whether each error is at most the limit's."""
        return (
            self.rms <= limit.rms
            and self.largest <= limit.largest
            and self.typical <= limit.typical
        )


@dataclass(frozen=True)
class Expectation:
    """What a result is compared with, for one tensor.

    Attributes:
        exact: the float64 result.
        rounded: the float64 result with operands rounded to TF32; None in the float32 class.
        pytorch: PyTorch's result in the class.
        terms: products in the longest sums behind it.
    """

    exact: Tensor
    rounded: Tensor | None
    pytorch: Tensor
    terms: int


@dataclass(frozen=True)
class Finding:
    """The judgement of one tensor.

    Attributes:
        misplaced: infinities or NaN are where they should not be.
        The others are those of a `Row`.
    """

    verdict: Verdict
    expected: str
    came: str
    measured: Mapping[str, float] = field(default_factory=dict)
    misplaced: bool = False


def judge(name: str, result: Tensor, expectation: Expectation) -> Finding:
    """Compare the tensor that a solution gave with what was expected of it.

    Args:
        name: what the tensor is, as "the output".
        result: what the solution gave.
        expectation: what it is compared with.
    """
    pytorch, exact = expectation.pytorch, expectation.exact
    if (theirs := _kind_of_tensor(pytorch)) != (ours := _kind_of_tensor(result)):
        return Finding(Verdict.WRONG, f"{name}: {theirs}", f"{name}: {ours}")
    result = result.detach()
    if not pytorch.is_floating_point():
        same = torch.equal(result, pytorch)
        verdict, came = (Verdict.RIGHT, "so") if same else (Verdict.WRONG, f"{name} differs")
        return Finding(verdict, "PyTorch's numbers exactly, being no floating-point ones", came)
    if misplaced := _misplaced(name, result, expectation):
        return misplaced
    counted = exact.isfinite() & pytorch.isfinite()
    if not counted.any():
        return Finding(Verdict.RIGHT, "infinities and NaN in IEEE's places", "the same")
    their_errors = errors(pytorch, exact, counted)
    our_errors = errors(result, exact, counted)
    limit = _limit(their_errors, expectation, counted)
    if their_errors.rms > 1 and our_errors.within(limit):
        noise = "rounding noise, like PyTorch's: the exact result cancels to nothing"
        return Finding(Verdict.RIGHT, noise, "so")
    measured = {
        "rms_error": our_errors.rms,
        "max_error": our_errors.largest,
        "torch_rms_error": their_errors.rms,
        "torch_max_error": their_errors.largest,
    }
    expected = f"errors up to {limit}"
    came = f"{our_errors}; PyTorch {their_errors.rms:.1e}, {their_errors.largest:.1e}"
    if our_errors.within(limit):
        return Finding(Verdict.RIGHT, expected, came, measured)
    if our_errors.rms <= limit.rms and our_errors.largest <= limit.largest:
        expected = f"half of the elements within {limit.typical:.1e} of their value"
        why = f"half of the elements of {name} are off by more than {our_errors.typical:.1e}"
    else:
        why = f"{name} is {_worst(result, exact, counted)}"
    return Finding(Verdict.WRONG, expected, f"{why}; errors: {came}", measured)


def errors(result: Tensor, exact: Tensor, counted: Tensor) -> Errors:
    """The errors of ``result`` at the elements that are ``counted``."""
    exact = exact[counted]
    difference = (result[counted].double() - exact).abs()
    magnitude = exact.abs()
    comparable = magnitude > 0
    typical = 0.0
    if int(comparable.sum()) >= FEWEST_FOR_TYPICAL:
        typical = float((difference[comparable] / magnitude[comparable]).median())
    return Errors(
        _quotient(_rms(difference), _rms(magnitude)),
        _quotient(float(difference.max()), float(magnitude.max())),
        typical,
    )


def _limit(theirs: Errors, expectation: Expectation, counted: Tensor) -> Errors:
    """The largest errors that are right."""
    dtype = expectation.pytorch.dtype
    unit = torch.finfo(dtype).eps / 2
    floor = min(unit, FLOAT32_UNIT) * (1 + math.sqrt(expectation.terms))
    if unit > FLOAT32_UNIT:  # summed in float32, then rounded
        floor += 2 * unit
    slack = CANCELLED_SLACK if theirs.rms > CANCELLED else PYTORCH_SLACK
    limit = _largest_of(_times(theirs, slack, slack), Errors(floor, floor, floor))
    if expectation.rounded is None or dtype is not torch.float32:
        return limit
    entitled = _largest_of(theirs, errors(expectation.rounded, expectation.exact, counted))
    return _largest_of(limit, _times(entitled, TF32_SLACK, TF32_LARGEST_SLACK))


def _misplaced(name: str, result: Tensor, expectation: Expectation) -> Finding | None:
    """What is wrong with the places of infinities and NaN, or None."""
    exact, pytorch = expectation.exact, expectation.pytorch
    same_as_exact = _kind(result) == _kind(exact)
    same_as_pytorch = _kind(result) == _kind(pytorch)
    wrong = ~(same_as_exact | same_as_pytorch)
    if not wrong.any():
        return None
    place = tuple(int(index) for index in wrong.nonzero()[0])
    return Finding(
        Verdict.WRONG,
        "infinities and NaN only where IEEE arithmetic puts them",
        f"{name} is {float(result[place]):.6g} instead of {float(exact[place]):.6g} at {place}; "
        f"{int(wrong.sum())} of {wrong.numel()} elements are wrong in this way",
        misplaced=True,
    )


def _kind_of_tensor(tensor: Tensor) -> str:
    dtype = str(tensor.dtype).removeprefix("torch.")
    return f"{tuple(tensor.shape)} {dtype} on {tensor.device}"


def _kind(tensor: Tensor) -> Tensor:
    """0 finite, 1 and -1 the infinities, 2 NaN."""
    kind = tensor.isposinf().int() - tensor.isneginf().int()
    return kind + 2 * tensor.isnan().int()


def _worst(result: Tensor, exact: Tensor, counted: Tensor) -> str:
    """The element that is furthest off, in words."""
    difference = torch.where(counted, (result.double() - exact).abs(), 0)
    place = tuple(int(i) for i in torch.unravel_index(difference.argmax(), difference.shape))
    return f"{float(result[place]):.6g} instead of {float(exact[place]):.6g} at {place}"


def _rms(values: Tensor) -> float:
    return math.sqrt(float(values.square().mean()))


def _quotient(error: float, size: float) -> float:
    """error / size; no error is 0 whatever the size is."""
    if error == 0:
        return 0.0
    return error / size if size else math.inf


def _times(errors: Errors, factor: float, factor_of_largest: float) -> Errors:
    return Errors(errors.rms * factor, errors.largest * factor_of_largest, errors.typical * factor)


def _largest_of(first: Errors, second: Errors) -> Errors:
    return Errors(
        max(first.rms, second.rms),
        max(first.largest, second.largest),
        max(first.typical, second.typical),
    )
