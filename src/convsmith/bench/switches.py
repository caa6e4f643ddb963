"""PyTorch's own switches, as a measurement needs them and back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from convsmith.spec import Precision, precision_of


@contextmanager
def precision_class(precision: Precision) -> Iterator[None]:
    """Let float32 convolutions use TF32 if ``precision`` is that class, and else not.

    It is set through ``allow_tf32``, which every PyTorch has and which solution files may read:
    PyTorch >= 2.9 refuses to tell it once its newer switch has been used.
    """
    before = precision_of(torch.float32) is Precision.TF32
    torch.backends.cudnn.allow_tf32 = precision is Precision.TF32
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


@contextmanager
def tf32_matrix_products(allowed: bool) -> Iterator[None]:
    """Let float32 matrix products use TF32, or not."""
    matmul = torch.backends.cuda.matmul
    name, value = (
        ("fp32_precision", "tf32" if allowed else "ieee")
        if hasattr(matmul, "fp32_precision")
        else ("allow_tf32", allowed)
    )
    before = getattr(matmul, name)
    setattr(matmul, name, value)
    try:
        yield
    finally:
        setattr(matmul, name, before)


@contextmanager
def cudnn_autotuning() -> Iterator[None]:
    """PyTorch at its best: cuDNN tries its algorithms and keeps the fastest."""
    cudnn = torch.backends.cudnn
    before = cudnn.benchmark
    cudnn.benchmark = True
    try:
        yield
    finally:
        cudnn.benchmark = before
