"""PyTorch's switches are set for a measurement, and back after it."""

from __future__ import annotations

import pytest
import torch

from convsmith.bench.switches import cudnn_autotuning, precision_class, tf32_matrix_products
from convsmith.spec import Precision, precision_of


@pytest.mark.parametrize("outer", [Precision.TF32, Precision.FLOAT32])
@pytest.mark.parametrize("inner", [Precision.TF32, Precision.FLOAT32])
def test_the_precision_class_is_the_one_asked_for_and_goes_back(
    outer: Precision, inner: Precision
) -> None:
    before = precision_of(torch.float32)
    with precision_class(outer):
        with precision_class(inner):
            assert precision_of(torch.float32) is inner
        assert precision_of(torch.float32) is outer
    assert precision_of(torch.float32) is before


def test_it_goes_back_after_an_error() -> None:
    before = precision_of(torch.float32)
    other = Precision.FLOAT32 if before is Precision.TF32 else Precision.TF32
    with pytest.raises(ZeroDivisionError), precision_class(other):
        _ = 1 / 0
    assert precision_of(torch.float32) is before


@pytest.mark.parametrize("allowed", [True, False])
def test_matrix_products(allowed: bool) -> None:
    matmul = torch.backends.cuda.matmul
    before = matmul.fp32_precision
    with tf32_matrix_products(allowed):
        assert (matmul.fp32_precision == "tf32") == allowed
    assert matmul.fp32_precision == before


def test_autotuning() -> None:
    before = torch.backends.cudnn.benchmark
    with cudnn_autotuning():
        assert torch.backends.cudnn.benchmark
    assert torch.backends.cudnn.benchmark == before
