"""Small convolutions to test kernels on, and the judgement of a result against float64."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from hypothesis import strategies as st
from torch import Tensor

import convsmith
from convsmith import execute
from convsmith.spec import ConvSpec, Direction, Pair

LAYOUTS = ("nchw", "channels_last", "transposed", "sliced", "cropped", "expanded")


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
    upstream_layout: str = "nchw"

    def tensors(self, device: str) -> tuple[Tensor, Tensor, Tensor | None]:
        """x, w and b; without values on the meta device."""
        generator = torch.Generator().manual_seed(self.seed)

        def draw(*shape: int) -> Tensor:
            return self._draw(generator, shape, device)

        channels = self.groups * self.group_channels
        filters = self.groups * self.group_filters
        x = in_layout(draw(self.batch, channels, *self.size), self.layout)
        w = draw(filters, self.group_channels, *self.kernel_size)
        if self.layout == "channels_last":
            w = w.to(memory_format=torch.channels_last)
        return x, w, draw(filters) if self.has_bias else None

    def upstream(self, y: Tensor) -> Tensor:
        """dy, of the shape and on the device of ``y``."""
        generator = torch.Generator().manual_seed(self.seed + 1)
        return in_layout(self._draw(generator, y.shape, y.device.type), self.upstream_layout)

    def specs(self) -> dict[Direction, ConvSpec]:
        """What a kernel family is told of each direction."""
        x, w, _ = self.tensors("meta")
        dy = self.upstream(torch.conv2d(x, w, None, *self.geometry))
        return {
            direction: ConvSpec.of(
                direction,
                x,
                w,
                self.has_bias and direction is not Direction.GRAD_INPUT,
                *self.geometry,
                None if direction is Direction.FORWARD else dy,
            )
            for direction in Direction
        }

    def _draw(self, generator: torch.Generator, shape: Sequence[int], device: str) -> Tensor:
        if device == "meta":
            return torch.empty(shape, dtype=self.dtype, device=device)
        return torch.randn(shape, generator=generator).to(device, self.dtype)

    @property
    def geometry(self) -> tuple[Pair, Pair, Pair, int]:
        return self.stride, self.padding, self.dilation, self.groups


PLAIN = Case(
    batch=2,
    group_channels=5,
    group_filters=9,
    groups=1,
    size=(9, 13),
    kernel_size=(3, 3),
    stride=(1, 1),
    padding=(1, 1),
    dilation=(1, 1),
    has_bias=True,
    dtype=torch.float32,
    layout="nchw",
    seed=0,
)


# The largest error that rounding operands to 11 bits, or to 22, may leave, over the largest result:
# what the tensor cores' families err.
LARGEST_ERROR = {"tf32": 1e-3, "float32": 5e-7}


def largest_error(ours: Tensor, exact: Tensor) -> float:
    """Over the largest result."""
    return float((ours.double() - exact).abs().max() / exact.abs().max())


@contextmanager
def on_poisoned_memory(kernel: str) -> Iterator[None]:
    """All convolutions, of CPU tensors too, run on ``kernel`` and find NaN in new memory."""
    torch.use_deterministic_algorithms(True)  # which fills new tensors with NaN
    with convsmith.use_kernel(kernel), convsmith.simulator():
        yield
    torch.use_deterministic_algorithms(False)


def begun_at(tensor: Tensor, offset: int) -> Tensor:
    """A copy of a contiguous tensor that begins so many elements into its memory."""
    room = tensor.new_full((offset + tensor.numel(),), math.nan)
    room[offset:] = tensor.flatten()
    return room[offset:].view_as(tensor)


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
    if layout == "cropped":  # rows begin at a multiple of 16 bytes where their width is one
        room = x.new_full((x.shape[0], x.shape[1] + 1, x.shape[2] + 2, x.shape[3] + 16), math.nan)
        inner = room[:, 1:, 1:-1, 8:-8]
        inner.copy_(x)
        return inner
    if layout == "expanded":
        return x[:1].expand_as(x)
    return x


@st.composite
def dense_cases(draw: st.DrawFn, images: int, channels: tuple[int, int]) -> Case:
    """Up to ``images`` and 140 filters, of ``channels``, the fewest and the most: dense layers."""
    kernel_size, dilation = draw(pairs(1, 5)), draw(pairs(1, 3))
    more = draw(pairs(0, 9))
    return replace(
        PLAIN,
        batch=draw(st.integers(1, images)),
        groups=draw(st.integers(1, 2)),
        group_channels=draw(st.integers(*channels)),
        group_filters=draw(st.integers(1, 140)),
        size=(
            dilation[0] * (kernel_size[0] - 1) + 1 + more[0],
            dilation[1] * (kernel_size[1] - 1) + 1 + more[1],
        ),
        kernel_size=kernel_size,
        stride=draw(pairs(1, 4)),
        padding=draw(pairs(0, 4)),
        dilation=dilation,
        has_bias=draw(st.booleans()),
        seed=draw(st.integers(0, 9)),
    )


@st.composite
def cases(draw: st.DrawFn, largest: int = 14) -> Case:
    """Any convolution whose result is not empty, of images up to ``largest`` on a side."""
    kernel_size = draw(pairs(1, 5))
    stride, padding, dilation = draw(pairs(1, 4)), draw(pairs(0, 3)), draw(pairs(1, 3))
    return Case(
        batch=draw(st.integers(1, 3)),
        group_channels=draw(st.sampled_from([1, 2, 3, 5, 9])),
        group_filters=draw(st.sampled_from([1, 2, 7, 9, 17, 33, 65])),
        groups=draw(st.sampled_from([1, 1, 2, 3])),
        size=draw(sizes(kernel_size, padding, dilation, largest)),
        kernel_size=kernel_size,
        stride=stride,
        padding=padding,
        dilation=dilation,
        has_bias=draw(st.booleans()),
        dtype=draw(st.sampled_from([torch.float32, torch.float64, torch.float16, torch.bfloat16])),
        layout=draw(st.sampled_from(LAYOUTS)),
        seed=draw(st.integers(0, 2**31)),
        upstream_layout=draw(st.sampled_from(LAYOUTS)),
    )


@st.composite
def narrow_layers(draw: st.DrawFn, images: int, largest: int = 14) -> list[Case]:
    """One layer of few channels a group, on so many images of different sizes and layouts."""
    kernel_size = draw(st.one_of(pairs(1, 7), pairs(1, 7), pairs(1, 7), pairs(1, 13)))
    padding = draw(st.one_of(pairs(0, 3), pairs(0, 3), pairs(0, 9)))
    stride, dilation = draw(pairs(1, 4)), draw(pairs(1, 3))
    group_channels = draw(st.sampled_from([1, 1, 1, 1, 2, 3, 4, 5, 6, 7]))
    group_filters = draw(st.one_of(st.just(group_channels), st.integers(1, 9)))
    dtype = draw(st.sampled_from([torch.float32, torch.float32, torch.float16, torch.bfloat16]))
    cases = []
    for _ in range(images):
        layout = draw(st.sampled_from([*LAYOUTS, "channels_last"]))
        cases.append(
            Case(
                batch=draw(st.integers(1, 5)),
                group_channels=group_channels,
                group_filters=group_filters,
                groups=draw(st.sampled_from([1 if group_channels == 1 else 2, 2, 3, 4, 8, 9, 19])),
                size=draw(sizes(kernel_size, padding, dilation, largest)),
                kernel_size=kernel_size,
                stride=stride,
                padding=padding,
                dilation=dilation,
                has_bias=draw(st.booleans()),
                dtype=dtype,
                layout=layout,
                seed=draw(st.integers(0, 2**31)),
                upstream_layout=draw(st.one_of(st.just(layout), st.sampled_from(LAYOUTS))),
            )
        )
    return cases


def pairs(low: int, high: int) -> st.SearchStrategy[Pair]:
    """Two numbers that need not be equal."""
    return st.tuples(st.integers(low, high), st.integers(low, high))


def sizes(
    kernel_size: Pair, padding: Pair, dilation: Pair, largest: int
) -> st.SearchStrategy[Pair]:
    """Of images with a result of at least one row and column, and at most about ``largest``."""
    rows, columns = (
        st.integers(max(1, step * (taps - 1) + 1 - 2 * pad), largest + step * (taps - 1))
        for taps, pad, step in zip(kernel_size, padding, dilation, strict=True)
    )
    return st.tuples(rows, columns)


def check(case: Case, device: str) -> None:
    """Runs all three directions and compares each with float64, next to PyTorch's own error."""
    x, w, b = case.tensors(device)
    y = execute.forward(x, w, b, *case.geometry)
    grad = case.upstream(y)
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

    Four such roundings for float64, in which the reference itself is computed. Where PyTorch's own
    result is NaN and the exact one is not, as in some bfloat16 weight gradients on a CPU, it allows
    nothing.
    """
    assert ours.shape == exact.shape
    roundings = 4 if ours.dtype is torch.float64 else 1
    error = (ours.double() - exact).abs().max().item()
    allowed = 2 * (theirs.double() - exact).abs().nan_to_num(nan=0.0).max().item()
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
