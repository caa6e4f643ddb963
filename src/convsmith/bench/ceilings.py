"""The two ceilings of a GPU, measured: what memory and what the arithmetic units reach."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from convsmith.bench.switches import tf32_matrix_products
from convsmith.roofline import Ceilings
from convsmith.timing import CudaClock, alternate

COPY_BYTES = 2**31
MATRIX_SIZE = 8192


def measure(device: torch.device) -> Ceilings:
    """A copy of 2 GiB within the GPU, and products of random 8192 x 8192 matrices.

    Random ones, because products of zeros draw less power and so run faster than any real ones.
    """
    source = torch.randint(256, (COPY_BYTES,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    matrices = torch.randn(2, MATRIX_SIZE, MATRIX_SIZE, device=device)
    times = alternate(
        {
            "copy": lambda: target.copy_(source),
            "fp32": _product(matrices, tf32=False),
            "tf32": _product(matrices, tf32=True),
            "fp16": _product(matrices.half(), tf32=False),
            "bf16": _product(matrices.bfloat16(), tf32=False),
        },
        CudaClock(device),
    )

    def rate(name: str, amount: float) -> float:
        """10**12 a second."""
        return amount / (times[name].median * 1e9)

    operations = 2 * MATRIX_SIZE**3
    return Ceilings(
        copy_TBps=rate("copy", 2 * COPY_BYTES),  # each byte is read and written
        fp32_TFLOPs=rate("fp32", operations),
        tf32_TFLOPs=rate("tf32", operations),
        fp16_TFLOPs=rate("fp16", operations),
        bf16_TFLOPs=rate("bf16", operations),
    )


def _product(matrices: Tensor, *, tf32: bool) -> Callable[[], Tensor]:
    def call() -> Tensor:
        with tf32_matrix_products(tf32):
            return matrices[0] @ matrices[1]

    return call
