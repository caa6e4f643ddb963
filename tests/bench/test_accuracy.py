"""Errors against float64, and the line between a right and a wrong result."""

from __future__ import annotations

import math

import pytest
import torch

from convsmith.bench import accuracy
from convsmith.bench.accuracy import (
    Distribution,
    Errors,
    ErrorSums,
    distributions,
    fault,
    limits,
    poison,
)
from convsmith.spec import Precision

CPU = torch.device("cpu")


def errors_of(result: torch.Tensor, exact: torch.Tensor) -> Errors:
    sums = ErrorSums(CPU)
    sums.add(result, exact)
    return sums.errors()


def test_errors_are_relative_to_the_whole_output() -> None:
    exact = torch.tensor([3.0, -4.0, 0.0, 0.0], dtype=torch.float64)
    result = exact + torch.tensor([0.03, 0.0, 0.0, -0.04], dtype=torch.float64)
    errors = errors_of(result, exact)
    assert errors.rms == pytest.approx(0.01)
    assert errors.largest == pytest.approx(0.01)


def test_parts_make_the_same_errors_as_the_whole() -> None:
    exact = torch.randn(7, 5, dtype=torch.float64)
    result = exact.float() + 1e-3 * torch.randn(7, 5)
    sums = ErrorSums(CPU)
    for part in (slice(0, 2), slice(2, 7)):
        sums.add(result[part], exact[part])
    whole = errors_of(result, exact)
    assert sums.errors().rms == pytest.approx(whole.rms)
    assert sums.errors().largest == whole.largest


@pytest.mark.parametrize("place", [0, 3, 8])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_one_element_that_is_not_finite_is_a_fault(place: int, value: float) -> None:
    exact = torch.randn(9, dtype=torch.float64)
    result = exact.float()
    result[place] = value
    sums = ErrorSums(CPU)
    sums.add(result, exact)
    sums.add(exact, exact)  # a right part after it does not hide it
    for precision in (Precision.TF32, Precision.FLOAT32):
        theirs = Errors(1e-7, 1e-7)
        assert fault(precision, sums.errors(), theirs, same_function=False) is not None


def test_an_exact_result_has_no_error_even_where_it_is_zero() -> None:
    zeros = torch.zeros(3, dtype=torch.float64)
    assert errors_of(zeros.float(), zeros) == Errors(0.0, 0.0)
    assert errors_of(zeros.float() + 1, zeros) == Errors(math.inf, math.inf)


THEIRS = Errors(4e-7, 1e-6)


def test_what_rounding_operands_makes_is_right_in_the_tf32_class_alone() -> None:
    """A model whose results cancel errs more than a convolution does."""
    exact_of_pytorch, rounded = Errors(1e-7, 1e-7), Errors(6e-4, 2e-3)
    for ours, right in ((rounded, True), (Errors(6.4e-4, 2e-3), False)):
        why = fault(Precision.TF32, ours, exact_of_pytorch, same_function=False, rounded=rounded)
        assert (why is None) == right
    assert fault(Precision.TF32, rounded, exact_of_pytorch, same_function=False) is not None
    for precision in (Precision.FLOAT32, Precision.FLOAT16):
        assert limits(precision, THEIRS, same_function=False, rounded=rounded) == limits(
            precision, THEIRS, same_function=False
        )


@pytest.mark.parametrize(
    ("ours", "right"),
    [
        (THEIRS, True),
        (Errors(3e-7, 9e-7), True),
        (Errors(4.01e-7, 1e-6), False),
        (Errors(4e-7, 1.01e-6), False),
    ],
)
def test_the_float32_class_is_no_worse_than_pytorch(ours: Errors, right: bool) -> None:
    assert (fault(Precision.FLOAT32, ours, THEIRS, same_function=False) is None) == right


def test_the_fault_names_the_number_and_its_limit() -> None:
    text = fault(Precision.FLOAT32, Errors(5e-7, 1e-6), THEIRS, same_function=False)
    assert text == "rms error 5e-07, at most 4e-07"


def rounded_to_tf32(values: torch.Tensor, *, truncate: bool) -> torch.Tensor:
    """``values`` with 11 significant bits."""
    bits = values.view(torch.int32)
    if not truncate:
        bits = bits + 0xFFF + ((bits >> 13) & 1)
    return (bits & ~0x1FFF).view(torch.float32)


@pytest.mark.parametrize("distribution", list(Distribution))
@pytest.mark.parametrize(("truncate", "right"), [(False, True), (True, False)])
def test_the_tf32_class_is_rounded_and_not_truncated(
    distribution: Distribution, truncate: bool, right: bool
) -> None:
    """A sum of 576 products; as of 64 channels and a 3x3 filter."""
    a = distribution.draw((256, 576), torch.float32, CPU)
    b = distribution.draw((576, 256), torch.float32, CPU)
    exact = a.double() @ b.double()
    product = (
        rounded_to_tf32(a, truncate=truncate).double()
        @ rounded_to_tf32(b, truncate=truncate).double()
    )
    ours = errors_of(product, exact)
    theirs = errors_of((a @ b), exact)  # exact float32: PyTorch on a depthwise layer, say
    assert (fault(Precision.TF32, ours, theirs, same_function=False) is None) == right


def test_exact_float32_is_within_the_tf32_class() -> None:
    assert fault(Precision.TF32, Errors(1e-7, 1e-6), THEIRS, same_function=False) is None


def test_half_precision_may_differ_by_chance_only() -> None:
    theirs = Errors(2e-4, 4e-4)
    for precision in (Precision.FLOAT16, Precision.BFLOAT16):
        assert fault(precision, Errors(2.08e-4, 4e-4), theirs, same_function=False) is None
        assert fault(precision, Errors(2.2e-4, 4e-4), theirs, same_function=False) is not None


def test_two_runs_of_the_same_function_may_differ() -> None:
    again = Errors(4.4e-7, 1.3e-6)
    assert fault(Precision.FLOAT32, again, THEIRS, same_function=True) is None
    assert fault(Precision.FLOAT32, Errors(1e-5, 1e-5), THEIRS, same_function=True) is not None
    assert limits(Precision.FLOAT32, THEIRS, same_function=False) == THEIRS


def test_distributions_are_what_they_say() -> None:
    shape = (4, 50, 50, 10)
    rand = Distribution.RAND.draw(shape, torch.float32, CPU)
    assert rand.min() >= 0
    assert rand.max() <= 1
    randn = Distribution.RANDN.draw(shape, torch.float32, CPU)
    assert randn.std().item() == pytest.approx(1, rel=0.02)
    wide = Distribution.WIDE.draw(shape, torch.float32, CPU).abs().log10()
    assert wide.quantile(0.9).item() == pytest.approx(2.2, abs=0.15)
    assert wide.quantile(0.1).item() == pytest.approx(-2.8, abs=0.15)
    again = Distribution.RANDN.draw(shape, torch.float32, CPU)
    assert not torch.equal(randn, again)


def test_wide_operands_are_left_out_where_sums_would_overflow() -> None:
    assert Distribution.WIDE not in distributions(torch.float16)
    assert set(distributions(torch.bfloat16)) == set(Distribution)
    assert set(distributions(torch.float32)) == set(Distribution)


@pytest.mark.gpu
def test_poisoned_memory_is_what_the_next_output_gets() -> None:
    device = torch.device("cuda")
    shape = (3, 7, 250, 250)
    poison(shape, torch.float32, device)
    assert torch.empty(shape, device=device).isnan().all()


def test_a_large_result_is_compared_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    exact = torch.randn(7, 5, dtype=torch.float64)
    result = exact.float()
    whole = errors_of(result, exact)
    monkeypatch.setattr(accuracy, "PART_ELEMENTS", 10)
    pieces = errors_of(result, exact)
    assert pieces.rms == pytest.approx(whole.rms)
    assert pieces.largest == whole.largest
    result[6, 4] = math.nan
    assert math.isnan(errors_of(result, exact).largest)
