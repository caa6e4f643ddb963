"""Own kernels on awkward convolutions, for compute-sanitizer to watch.

    compute-sanitizer --tool memcheck python tests/bench/sanitizer_cases.py

Every convolution runs on every kernel family that can compute it. Small: a sanitizer slows kernels
down a hundredfold. Between them the cases reach every tile height of the direct family, every
dtype, ragged tiles in rows, columns and terms, split sums, phases of a stride that hold no filter
tap, strides of every kind, and groups of one to seven channels with filters of one tap to a
thousand. Results are compared with float64, so a sanitizer that found nothing has watched kernels
that do their work.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from convsmith import execute, planner
from convsmith.kernels import implicit_gemm
from convsmith.kernels.families import FAMILIES
from convsmith.launch import compile_ahead
from convsmith.spec import ConvSpec, Direction, Pair, Precision, output_extent

FLOAT32, FLOAT64 = torch.float32, torch.float64
FLOAT16, BFLOAT16 = torch.float16, torch.bfloat16

LAST, STRIDED = "channels_last", "strided"

# Largest error over largest result: rounding to the dtype, and sums in another order.
TOLERANCE = {FLOAT64: 1e-13, FLOAT32: 1e-5, FLOAT16: 2e-3, BFLOAT16: 1.5e-2}
TF32_TOLERANCE = 1e-3  # operands are rounded too


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

    @property
    def numbers(self) -> tuple[Pair, Pair, Pair, int]:
        """As PyTorch's convolutions take them, after the tensors."""
        return self.stride, self.padding, self.dilation, self.groups

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """Of the input, the weight, the bias and the output."""
        extents = map(
            output_extent, self.shape[2:], self.kernel, self.stride, self.padding, self.dilation
        )
        weight = (self.filters, self.shape[1] // self.groups, *self.kernel)
        return self.shape, weight, (self.filters,), (self.shape[0], self.filters, *extents)

    def specs(self) -> Iterator[ConvSpec]:
        """The three convolutions, as own kernels are told of them."""
        x, w, _, dy = (
            laid_out(torch.empty(shape, dtype=self.dtype, device="meta"), self.layout, "meta")
            for shape in self.shapes
        )
        for direction in Direction:
            upstream = None if direction is Direction.FORWARD else dy
            has_bias = direction is not Direction.GRAD_INPUT
            yield ConvSpec.of(direction, x, w, has_bias, *self.numbers, upstream)


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
    Case("channels last", (2, 7, 10, 9), 9, (3, 3), (1, 2), (1, 1), layout=LAST),
    Case("strided", (2, 5, 9, 8), 6, (2, 3), padding=(1, 1), layout=STRIDED),
    Case("float16", (2, 6, 11, 9), 10, (3, 3), (2, 2), (1, 1), dtype=FLOAT16),
    Case("bfloat16", (1, 10, 8, 12), 18, (3, 3), dilation=(2, 3), padding=(2, 3), dtype=BFLOAT16),
    Case("float64", (1, 7, 9, 10), 35, (3, 2), padding=(1, 0), dtype=FLOAT64),
    # Many channels, and few, on tensor cores.
    Case("dense, rows longer than a tile", (1, 17, 3, 150), 70, (3, 3), padding=(1, 1)),
    Case("dense, small planes", (5, 33, 7, 7), 20, (3, 3), padding=(1, 1)),
    Case("dense, strides", (2, 16, 20, 18), 12, (3, 3), (2, 2), (1, 1)),
    Case("dense, row phases apart", (1, 70, 12, 17), 20, (7, 2), (2, 2), (1, 1)),
    Case("dense, phases without taps", (2, 16, 9, 13), 12, (3, 3), (2, 2), (1, 2), (2, 2)),
    Case("dense, few channels, 16 phases", (1, 3, 23, 140), 12, (11, 11), (4, 4), (2, 2)),
    Case("dense, groups of eight", (1, 16, 9, 20), 24, (3, 3), groups=2),
    Case("dense, long sums of an input gradient", (1, 9, 5, 12), 128, (3, 3), padding=(1, 1)),
    Case("dense 1x1", (2, 70, 9, 16), 40, (1, 1)),
    # One channel a group.
    Case("dw 3x3", (2, 5, 17, 33), 5, (3, 3), padding=(1, 1), groups=5),
    Case("dw 3x3, small planes", (9, 3, 7, 7), 3, (3, 3), padding=(1, 1), groups=3),
    Case("dw 3x3, rows by bulk copies", (1, 2, 40, 132), 2, (3, 3), padding=(1, 1), groups=2),
    Case("dw 3x3, out by bulk copies", (1, 2, 40, 132), 2, (3, 3), groups=2),
    Case("dw 3x3 dilated", (1, 4, 15, 19), 4, (3, 3), (1, 1), (2, 2), (2, 2), 4),
    Case("dw 3x3 without padding", (2, 3, 10, 37), 3, (3, 3), groups=3),
    Case("dw 3x3, padding beyond the filter", (2, 3, 5, 6), 3, (3, 3), padding=(5, 4), groups=3),
    Case("dw 5x5 stride 2", (2, 4, 19, 23), 4, (5, 5), (2, 2), (2, 2), groups=4),
    Case("dw 7x7", (2, 3, 14, 29), 3, (7, 7), padding=(3, 3), groups=3),
    Case("dw 13x13", (2, 2, 12, 15), 2, (13, 13), padding=(6, 6), groups=2),
    Case("dw 31x31", (1, 2, 12, 14), 2, (31, 31), padding=(15, 15), groups=2),
    Case("dw 1x7", (2, 3, 6, 21), 3, (1, 7), (1, 2), (0, 3), groups=3),
    Case("dw 7x1", (2, 3, 21, 6), 3, (7, 1), (2, 1), (3, 0), groups=3),
    Case("dw 1x1", (2, 3, 9, 11), 3, (1, 1), (2, 2), groups=3),
    Case("dw multiplier", (2, 3, 13, 11), 6, (3, 3), padding=(1, 1), groups=3),
    Case("dw float16", (2, 3, 9, 35), 3, (3, 3), padding=(1, 1), groups=3, dtype=FLOAT16),
    Case("dw bfloat16", (1, 3, 11, 13), 3, (7, 7), padding=(3, 3), groups=3, dtype=BFLOAT16),
    Case("dw channels last", (2, 5, 9, 11), 5, (3, 3), (1, 1), (1, 1), (1, 1), 5, FLOAT32, LAST),
    Case("dw strided", (2, 3, 9, 11), 3, (5, 5), (1, 1), (2, 2), (1, 1), 3, FLOAT32, STRIDED),
    # Narrow groups: channels of a group, and filters where there are not as many.
    Case("group 2", (2, 6, 12, 17), 6, (3, 3), padding=(1, 1), groups=3),
    Case("group 3, 5 filters", (2, 6, 9, 13), 10, (3, 3), padding=(1, 1), groups=2),
    Case("group 4", (2, 8, 11, 9), 8, (3, 3), (2, 2), (1, 1), groups=2),
    Case("group 4 float16", (1, 8, 9, 14), 8, (3, 3), padding=(1, 1), groups=2, dtype=FLOAT16),
    Case("group 7", (1, 14, 8, 11), 14, (5, 3), padding=(2, 1), groups=2),
)


def laid_out(tensor: Tensor, layout: str, device: str) -> Tensor:
    """``tensor`` in ``layout``, which the CPU arranges, to run no more kernels than needed.

    A bias has no layout.
    """
    if tensor.dim() < 4:
        return tensor.to(device)
    if layout == LAST:
        return tensor.contiguous(memory_format=torch.channels_last).to(device)
    if layout == STRIDED:
        larger = torch.stack([tensor, torch.full_like(tensor, torch.nan)], dim=-1)
        return larger.to(device)[..., 0]
    return tensor.to(device)


def families_of(spec: ConvSpec) -> list[str]:
    """Names of the families that can compute ``spec``; in the TF32 class those that round."""
    rounding = [implicit_gemm.NAME] if spec.precision is Precision.TF32 else FAMILIES
    return [name for name in rounding if FAMILIES[name].obstacle(spec) is None]


def classes() -> Iterator[tuple[Case, float]]:
    """Every case in every precision class of its dtype, which is set, and its tolerance."""
    before = torch.backends.cudnn.allow_tf32
    try:
        for case in CASES:
            torch.backends.cudnn.allow_tf32 = False
            yield case, TOLERANCE[case.dtype]
            if case.dtype is FLOAT32:
                torch.backends.cudnn.allow_tf32 = True
                yield case, TF32_TOLERANCE
    finally:
        torch.backends.cudnn.allow_tf32 = before


def draw(case: Case) -> tuple[list[Tensor], dict[str, Tensor]]:
    """x, w, b and dy on the CPU, and the exact results."""
    operands = [torch.randn(shape).to(case.dtype) for shape in case.shapes]
    exact = [tensor.to(FLOAT64, copy=True).requires_grad_() for tensor in operands[:3]]
    y = torch.nn.functional.conv2d(*exact, *case.numbers)
    gradients = torch.autograd.grad(y, exact, operands[3].double())
    return operands, dict(zip(("y", "dx", "dw", "db"), (y.detach(), *gradients), strict=True))


def run(case: Case, direction: Direction, kernel: str, operands: list[Tensor]) -> dict[str, Tensor]:
    """The results of one direction on one kernel."""
    x, w, b, dy = operands
    with planner.use_kernel(kernel):
        if direction is Direction.FORWARD:
            return {"y": execute.forward(x, w, b, *case.numbers)}
        if direction is Direction.GRAD_INPUT:
            return {"dx": execute.input_gradient(dy, w, x, *case.numbers)}
        dw, db = execute.weight_gradient(dy, x, w, *case.numbers, True)
    assert db is not None
    return {"dw": dw, "db": db}


def compile_all(device: torch.device) -> None:
    """Compile what the cases run, where it has not been."""
    specs = [spec for case, _ in classes() for spec in case.specs()]
    plans = [planner.plan_for(spec, device, name) for spec in specs for name in families_of(spec)]
    compile_ahead(plans, device)


def main(device: str = "cuda", kernel: str | None = None) -> int:
    """Run every case on ``kernel``, or on each family that can; the number of wrong results."""
    torch.manual_seed(0)
    if device == "cuda":
        compile_all(torch.device(device, torch.cuda.current_device()))
    count = wrong = 0
    for case, tolerance in classes():
        drawn, exact = draw(case)
        operands = [laid_out(tensor, case.layout, device) for tensor in drawn]
        for spec in case.specs():
            for name in families_of(spec) if kernel is None else [kernel]:
                count += 1
                for title, result in run(case, spec.direction, name, operands).items():
                    error = relative_error(result.cpu(), exact[title])
                    if not error <= tolerance:  # so that a NaN is wrong
                        print(f"{case.name}: {title} of {name} is off by {error:.3g}")
                        wrong += 1
    print(f"{count} convolutions, {wrong} wrong results")
    return wrong


def relative_error(result: Tensor, exact: Tensor) -> float:
    """The largest error over the largest element."""
    return float((result.double() - exact).abs().max() / exact.abs().max())


if __name__ == "__main__":
    sys.exit(main())
