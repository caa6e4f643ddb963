"""Own kernels on awkward convolutions, for compute-sanitizer to watch.

    compute-sanitizer --tool memcheck python tests/bench/sanitizer_cases.py

Small: a sanitizer slows kernels down a hundredfold. Between them the cases reach every tile height
of the direct family, every dtype, ragged tiles in rows, columns and terms, split sums, phases of a
stride that hold no filter tap, and strides of every kind. Results are compared with float64, so a
sanitizer that found nothing has watched kernels that do their work.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

import torch
from torch import Tensor

from convsmith import execute, planner
from convsmith.spec import Pair

FLOAT32, FLOAT64 = torch.float32, torch.float64
FLOAT16, BFLOAT16 = torch.float16, torch.bfloat16

# Largest error over largest result: rounding to the dtype, and sums in another order.
TOLERANCE = {FLOAT64: 1e-13, FLOAT32: 1e-5, FLOAT16: 2e-3, BFLOAT16: 1.5e-2}


@dataclass(frozen=True)
class Case:
    """One convolution with bias; all three directions are run.

    Args:
        name: what is awkward about it.
        shape: of the input.
        filters, kernel, stride, padding, dilation, groups: as in ``nn.Conv2d``.
        layout: contiguous, channels_last, or strided: every other element of a larger tensor.
    """

    name: str
    shape: tuple[int, int, int, int]
    filters: int
    kernel: Pair
    stride: Pair = (1, 1)
    padding: Pair = (0, 0)
    dilation: Pair = (1, 1)
    groups: int = 1
    dtype: torch.dtype = FLOAT32
    layout: str = "contiguous"


CASES = (
    Case("one element of everything", (1, 1, 1, 1), 1, (1, 1)),
    Case("ragged in all extents", (2, 5, 13, 11), 13, (3, 2), (2, 1), (1, 2), (1, 2)),
    Case("tall tiles, the last one nearly empty", (1, 40, 9, 15), 66, (3, 3), padding=(1, 1)),
    Case("middle tile", (2, 19, 7, 9), 27, (1, 5), padding=(0, 2)),
    Case("depthwise with a multiplier", (2, 6, 12, 10), 12, (3, 3), padding=(1, 1), groups=6),
    Case("groups of three and five", (1, 9, 10, 9), 15, (2, 4), (1, 2), (2, 1), groups=3),
    Case("stride beyond the filter", (1, 4, 17, 16), 6, (2, 1), (5, 3)),
    Case("padding beyond the input", (1, 3, 2, 3), 4, (7, 6), padding=(6, 5)),
    Case("long sums, split", (6, 3, 33, 31), 5, (3, 3), padding=(1, 1)),
    Case("channels last", (2, 7, 10, 9), 9, (3, 3), (1, 2), (1, 1), layout="channels_last"),
    Case("strided", (2, 5, 9, 8), 6, (2, 3), padding=(1, 1), layout="strided"),
    Case("float16", (2, 6, 11, 9), 10, (3, 3), (2, 2), (1, 1), dtype=FLOAT16),
    Case("bfloat16", (1, 10, 8, 12), 18, (3, 3), dilation=(2, 3), padding=(2, 3), dtype=BFLOAT16),
    Case("float64", (1, 7, 9, 10), 35, (3, 2), padding=(1, 0), dtype=FLOAT64),
)


def laid_out(tensor: Tensor, layout: str, device: str) -> Tensor:
    """``tensor`` in ``layout``, which the CPU arranges, to run no more kernels than needed."""
    if layout == "channels_last":
        return tensor.contiguous(memory_format=torch.channels_last).to(device)
    if layout == "strided":
        larger = torch.stack([tensor, torch.full_like(tensor, torch.nan)], dim=-1)
        return larger.to(device)[..., 0]
    return tensor.to(device)


def results(case: Case, device: str, kernel: str) -> dict[str, tuple[Tensor, Tensor]]:
    """Each direction's result and the exact one, both on the CPU."""
    weight_shape = (case.filters, case.shape[1] // case.groups, *case.kernel)
    numbers = (case.stride, case.padding, case.dilation, case.groups)
    x, w, b = (
        torch.randn(shape).to(case.dtype) for shape in (case.shape, weight_shape, (case.filters,))
    )
    exact = [tensor.double().requires_grad_() for tensor in (x, w, b)]
    exact_y = torch.nn.functional.conv2d(*exact, *numbers)
    dy = torch.randn(exact_y.shape).to(case.dtype)
    exact_y.backward(dy.double())
    x, w, dy = (laid_out(tensor, case.layout, device) for tensor in (x, w, dy))
    b = b.to(device)
    with planner.use_kernel(kernel):
        y = execute.forward(x, w, b, *numbers)
        dx = execute.input_gradient(dy, w, x, *numbers)
        dw, db = execute.weight_gradient(dy, x, w, *numbers, True)
    assert db is not None
    ours = {"y": y, "dx": dx, "dw": dw, "db": db}
    theirs = (exact_y.detach(), *(tensor.grad for tensor in exact))
    return {
        name: (tensor.cpu().double(), reference)
        for (name, tensor), reference in zip(ours.items(), theirs, strict=True)
        if reference is not None
    }


def main(device: str = "cuda", kernel: str = "direct") -> int:
    """Run every case; the number of wrong results."""
    torch.manual_seed(0)
    wrong = 0
    for case in CASES:
        for name, (result, exact) in results(case, device, kernel).items():
            error = ((result - exact).abs().max() / exact.abs().max()).item()
            if not error <= TOLERANCE[case.dtype]:  # so that a NaN is wrong
                print(f"{case.name}: {name} is off by {error:.3g} of its largest element")
                wrong += 1
    print(f"{len(CASES)} convolutions, {wrong} wrong results")
    return wrong


if __name__ == "__main__":
    sys.exit(main())
