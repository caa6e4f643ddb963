"""Errors against float64, ours and PyTorch's on the same input, and when a result is right.

rms error     = rms(result - exact) / rms(exact)
largest error = max|result - exact| / max|exact|
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

import torch
from torch import Tensor

from convsmith.bench.reference import PART_ELEMENTS
from convsmith.spec import Precision, Shape


class Distribution(str, Enum):
    """Where random operands come from."""

    RAND = "rand"
    RANDN = "randn"
    WIDE = "wide"

    def draw(self, shape: Shape, dtype: torch.dtype, device: torch.device) -> Tensor:
        """A fresh tensor: uniform in [0, 1), normal, or normal times 10 to the uniform(-3, 3)."""
        if self is Distribution.RAND:
            return torch.rand(shape, device=device).to(dtype)
        values = torch.randn(shape, device=device)
        if self is Distribution.WIDE:
            exponents = torch.empty(shape, device=device).uniform_(-3, 3)
            values *= exponents.mul_(math.log(10)).exp_()
        return values.to(dtype)


# What times are measured on, and what a record's main columns of errors are of.
MAIN = Distribution.RANDN


def distributions(dtype: torch.dtype) -> tuple[Distribution, ...]:
    """Those that ``dtype`` has the range for, MAIN last: sums of wide operands overflow float16."""
    others = (
        [Distribution.RAND] if dtype is torch.float16 else [Distribution.RAND, Distribution.WIDE]
    )
    return (*others, MAIN)


@dataclass(frozen=True)
class Errors:
    """The two errors of one result. NaN where a result has a NaN that it should not have."""

    rms: float
    largest: float


class ErrorSums:
    """Gathers the errors of a result that is compared part by part."""

    def __init__(self, device: torch.device) -> None:
        self._sums = torch.zeros(2, dtype=torch.float64, device=device)  # of squares
        self._maxima = torch.zeros(2, dtype=torch.float64, device=device)

    def add(self, result: Tensor, exact: Tensor) -> None:
        """Compare a part with its float64 reference, without synchronising."""
        images = max(1, PART_ELEMENTS * len(exact) // exact.numel())
        parts = torch.split(result, images), torch.split(exact, images)
        for ours, reference in zip(*parts, strict=True):
            error = ours.double() - reference
            self._sums += torch.stack([error.square().sum(), reference.square().sum()])
            largest = torch.stack([error.abs().amax(), reference.abs().amax()])
            self._maxima = torch.maximum(self._maxima, largest)

    def errors(self) -> Errors:
        """The errors of all parts together."""
        error_square, exact_square = self._sums.tolist()
        error_largest, exact_largest = self._maxima.tolist()
        return Errors(
            _quotient(math.sqrt(error_square), math.sqrt(exact_square)),
            _quotient(error_largest, exact_largest),
        )


def _quotient(error: float, exact: float) -> float:
    """error / exact; no error is 0 whatever the exact result is."""
    if error == 0:
        return 0.0
    return error / exact if exact else math.inf


# Rounding both operands to TF32's 11-bit significand makes an rms error of 2.4e-4 to 3.0e-4 of the
# output, whatever the layer; truncating them instead makes three times that. An exact result is
# also in the class, so the bound is absolute and not PyTorch's own error alone: PyTorch computes
# depthwise convolutions exactly.
TF32_RMS = 3.5e-4
TF32_LARGEST = 1e-3
# Where operands or results are rounded to 8 or 11 bits, that rounding is most of both errors, and
# which of the two is larger is chance.
ROUNDING_SLACK = 1.05
# PyTorch's own convolution may add in another order from run to run.
SAME_FUNCTION_SLACK = 1.5


def limits(
    precision: Precision, theirs: Errors, *, same_function: bool, rounded: Errors | None = None
) -> Errors:
    """The largest errors of a right result, where PyTorch's on the same input are ``theirs``.

    In the float32 class they are PyTorch's own errors.

    Args:
        precision: the class that both ran in.
        theirs: PyTorch's errors.
        same_function: ours was PyTorch's convolution too.
        rounded: errors of an exact result of operands that are rounded to TF32, if known. A model
            may make them larger than a convolution's: it may cancel what they are relative to.
    """
    if same_function:
        slack = SAME_FUNCTION_SLACK
    else:
        slack = 1.0 if precision is Precision.FLOAT32 else ROUNDING_SLACK
    if precision is Precision.TF32:
        known = (theirs,) if rounded is None else (theirs, rounded)
        return Errors(
            max(TF32_RMS, *(slack * errors.rms for errors in known)),
            max(TF32_LARGEST, *(slack * errors.largest for errors in known)),
        )
    return Errors(slack * theirs.rms, slack * theirs.largest)


def fault(
    precision: Precision,
    ours: Errors,
    theirs: Errors,
    *,
    same_function: bool,
    rounded: Errors | None = None,
) -> str | None:
    """What is wrong with a result of these errors, in a few words, or None; see `limits`."""
    limit = limits(precision, theirs, same_function=same_function, rounded=rounded)
    # Written so that a NaN is a fault.
    if not ours.rms <= limit.rms:
        return f"rms error {ours.rms:.3g}, at most {limit.rms:.3g}"
    if not ours.largest <= limit.largest:
        return f"largest error {ours.largest:.3g}, at most {limit.largest:.3g}"
    return None


def poison(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> None:
    """Leave NaN in the memory that the next tensors of ``shape`` are likely to get.

    PyTorch's allocator hands freed blocks out again as they are, so a kernel that leaves an element
    of its output unwritten shows a NaN.
    """
    blocks = [torch.full(shape, math.nan, dtype=dtype, device=device) for _ in range(2)]
    del blocks
