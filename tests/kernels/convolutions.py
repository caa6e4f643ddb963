"""Small convolutions to test kernels on, and the judgement of a result against float64."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from hypothesis import strategies as st
from torch import Tensor

from convsmith import execute
from convsmith.spec import Pair

LAYOUTS = ("nchw", "channels_last", "transposed", "sliced", "expanded")


@dataclass(frozen=True)
class Case:
    """A convolution by its numbers; tensors are drawn from ``seed``."""

    batch: int
    group_channels: int
    group_filters: int
    groups: int
    size: Pair
    kernel_size: Pair
    stride: Pair
    padding: Pair
    dilation: Pair
    has_bias: bool
    dtype: torch.dtype
    layout: str
    seed: int

    def tensors(self, device: str) -> tuple[Tensor, Tensor, Tensor | None]:
        """x, w and b."""
        generator = torch.Generator().manual_seed(self.seed)

        def draw(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator).to(device, self.dtype)

        channels = self.groups * self.group_channels
        filters = self.groups * self.group_filters
        x = in_layout(draw(self.batch, channels, *self.size), self.layout)
        w = draw(filters, self.group_channels, *self.kernel_size)
        if self.layout == "channels_last":
            w = w.to(memory_format=torch.channels_last)
        return x, w, draw(filters) if self.has_bias else None

    @property
    def geometry(self) -> tuple[Pair, Pair, Pair, int]:
        return self.stride, self.padding, self.dilation, self.groups


def in_layout(x: Tensor, layout: str) -> Tensor:
    """The values of ``x`` (of its first image, where expanded) in other strides."""
    if layout == "channels_last":
        return x.to(memory_format=torch.channels_last)
    if layout == "transposed":
        return x.transpose(2, 3).contiguous().transpose(2, 3)
    if layout == "sliced":
        room = x.new_full((x.shape[0], x.shape[1] + 1, x.shape[2] + 2, 2 * x.shape[3]), math.nan)
        inner = room[:, 1:, 1:-1, ::2]
        inner.copy_(x)
        return inner
    if layout == "expanded":
        return x[:1].expand_as(x)
    return x


@st.composite
def cases(draw: st.DrawFn, largest: int = 14) -> Case:
    """Any convolution whose result is not empty, of images up to ``largest`` on a side."""

    def pair(low: int, high: int) -> st.SearchStrategy[Pair]:
        return st.tuples(st.integers(low, high), st.integers(low, high))

    kernel_size = draw(pair(1, 5))
    stride, padding, dilation = draw(pair(1, 4)), draw(pair(0, 3)), draw(pair(1, 3))
    size = [
        draw(st.integers(max(1, step * (taps - 1) + 1 - 2 * pad), largest + step * (taps - 1)))
        for taps, step, pad in zip(kernel_size, dilation, padding, strict=True)
    ]
    return Case(
        batch=draw(st.integers(1, 3)),
        group_channels=draw(st.sampled_from([1, 2, 3, 5, 9])),
        group_filters=draw(st.sampled_from([1, 2, 7, 9, 17, 33, 65])),
        groups=draw(st.sampled_from([1, 1, 2, 3])),
        size=(size[0], size[1]),
        kernel_size=kernel_size,
        stride=stride,
        padding=padding,
        dilation=dilation,
        has_bias=draw(st.booleans()),
        dtype=draw(st.sampled_from([torch.float32, torch.float64, torch.float16, torch.bfloat16])),
        layout=draw(st.sampled_from(LAYOUTS)),
        seed=draw(st.integers(0, 2**31)),
    )


def check(case: Case, device: str) -> None:
    """Runs all three directions and compares each with float64, next to PyTorch's own error."""
    x, w, b = case.tensors(device)
    y = execute.forward(x, w, b, *case.geometry)
    grad = torch.randn(y.shape, dtype=torch.float32).to(y)
    dx = execute.input_gradient(grad, w, x, *case.geometry)
    dw, db = execute.weight_gradient(grad, x, w, *case.geometry, case.has_bias)
    ours = {"y": y, "dx": dx, "dw": dw, "db": db}

    exact = _by_pytorch(x, w, b, grad, case, torch.float64)
    theirs = _by_pytorch(x, w, b, grad, case, case.dtype)
    magnitude = _by_pytorch(
        x.abs(), w.abs(), None if b is None else b.abs(), grad.abs(), case, torch.float64
    )
    for name, result in ours.items():
        if result is None:
            assert not case.has_bias
            continue
        assert_as_exact(name, result, theirs[name], exact[name], magnitude[name])


def assert_as_exact(
    name: str, ours: Tensor, theirs: Tensor, exact: Tensor, magnitude: Tensor
) -> None:
    """At most twice PyTorch's largest error, or one rounding of the sum of absolute products.

    Four such roundings for float64, in which the reference itself is computed.
    """
    assert ours.shape == exact.shape
    roundings = 4 if ours.dtype is torch.float64 else 1
    error = (ours.double() - exact).abs().max().item()
    allowed = 2 * (theirs.double() - exact).abs().max().item()
    allowed += roundings * torch.finfo(ours.dtype).eps * magnitude.max().item()
    assert error <= allowed, f"{name}: largest error {error:.3g}, allowed {allowed:.3g}"


def _by_pytorch(
    x: Tensor, w: Tensor, b: Tensor | None, grad: Tensor, case: Case, dtype: torch.dtype
) -> dict[str, Tensor]:
    x, w, grad = x.to(dtype), w.to(dtype), grad.to(dtype)
    stride, padding, dilation, groups = case.geometry
    y = torch.conv2d(x, w, None if b is None else b.to(dtype), *case.geometry)
    dx, dw, db = torch.ops.aten.convolution_backward(
        grad,
        x,
        w,
        [w.shape[0]],
        stride,
        padding,
        dilation,
        False,
        (0, 0),
        groups,
        (True, True, True),
    )
    return {"y": y, "dx": dx, "dw": dw, "db": db}
