"""ConvSpec: one 2D convolution, or one gradient of it, described by plain numbers.

Everything after validation works from a ConvSpec: the planner, the kernel families and the
benchmark. It holds no tensor and touches no GPU.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum

import torch
from torch import Tensor

Pair = tuple[int, int]
Shape = tuple[int, int, int, int]


class Direction(str, Enum):
    """Which of the three convolutions of a training step is meant."""

    FORWARD = "forward"
    GRAD_INPUT = "grad_input"
    GRAD_WEIGHT = "grad_weight"


class Precision(str, Enum):
    """The arithmetic a caller is entitled to; each class is defined in docs/precision.md."""

    TF32 = "tf32"
    FLOAT32 = "float32"
    FLOAT16 = "float16"
    BFLOAT16 = "bfloat16"
    FLOAT64 = "float64"


_PRECISION_OF_DTYPE = {
    torch.float16: Precision.FLOAT16,
    torch.bfloat16: Precision.BFLOAT16,
    torch.float64: Precision.FLOAT64,
}

# What torch.backends.cudnn.conv.fp32_precision (torch >= 2.9) reads, at a seventh of its cost.
_read_precision = getattr(torch._C, "_get_fp32_precision_getter", None)
_TF32_ALLOWED = ("tf32", True)


def precision_of(dtype: torch.dtype) -> Precision:
    """The precision class PyTorch's switches give a convolution of ``dtype`` at this moment.

    For float32 that is TF32 unless the caller switched it off, through
    ``torch.backends.cudnn.conv.fp32_precision`` (torch >= 2.9) or
    ``torch.backends.cudnn.allow_tf32``.
    """
    if dtype is not torch.float32:
        return _PRECISION_OF_DTYPE[dtype]
    return Precision.TF32 if float32_switch() in _TF32_ALLOWED else Precision.FLOAT32


def float32_switch() -> str | bool:
    """PyTorch's switch of float32 convolutions as it stands, in whichever form this PyTorch has."""
    if _read_precision is not None:
        switch: str = _read_precision("cuda", "conv")
        return switch
    return torch.backends.cudnn.allow_tf32


def supported_dtypes() -> tuple[torch.dtype, ...]:
    """The dtypes that ConvSmith's own kernels take; every other one is PyTorch's."""
    return (torch.float32, *_PRECISION_OF_DTYPE)


@dataclass(frozen=True)
class ConvSpec:
    """One convolution, ``y = conv2d(x, w) + b``, or its gradient in ``x`` or in ``w``.

    Shapes are those of the forward convolution whatever the direction: ``input`` is x
    (batch, in_channels, height, width), ``weight`` is (out_channels, in_channels / groups,
    *kernel_size) and ``output`` is y. In a gradient the output's strides are those of the
    upstream gradient, and the strides of the tensor being computed are those it will have.

    Args:
        direction: what is computed.
        batch, in_channels, height, width: the size of x.
        out_channels: channels of y.
        kernel_size, stride, padding, dilation: (vertical, horizontal), as in ``nn.Conv2d``.
        groups: as in ``nn.Conv2d``.
        dtype: of every tensor.
        precision: the arithmetic the caller is entitled to.
        has_bias: a bias is added (forward) or its gradient is wanted (weight gradient).
        input_strides, weight_strides, output_strides: in elements.

    Raises:
        ValueError: a size, stride, dilation or group count that describes no convolution.
    """

    direction: Direction
    batch: int
    in_channels: int
    height: int
    width: int
    out_channels: int
    kernel_size: Pair
    stride: Pair
    padding: Pair
    dilation: Pair
    groups: int
    dtype: torch.dtype
    precision: Precision
    has_bias: bool
    input_strides: Shape
    weight_strides: Shape
    output_strides: Shape

    def __post_init__(self) -> None:
        _require_steps(self.stride, self.padding, self.dilation)
        if self.groups < 1 or self.in_channels % self.groups or self.out_channels % self.groups:
            raise ValueError(
                f"groups must divide in_channels and out_channels, got groups={self.groups}, "
                f"in_channels={self.in_channels}, out_channels={self.out_channels}"
            )
        if min(self.kernel_size) < 1 or min(self.output_size) < 1:
            raise ValueError(
                f"kernel_size {self.kernel_size} with dilation {self.dilation} does not fit into "
                f"an input of {self.height} x {self.width} padded by {self.padding}"
            )

    @classmethod
    def of(
        cls,
        direction: Direction,
        input: Tensor,
        weight: Tensor,
        has_bias: bool,
        stride: Pair,
        padding: Pair,
        dilation: Pair,
        groups: int,
        grad_output: Tensor | None = None,
    ) -> ConvSpec:
        """The spec of a call with these 4-D tensors, under PyTorch's precision switch of now.

        Args:
            input, weight: the operands; of the one whose gradient is computed only shape, dtype
                and layout matter.
            grad_output: the upstream gradient, where one is given.
        """
        _require_steps(stride, padding, dilation)
        channels_last = follows_channels_last(input.dtype, input, weight)
        strides = channels_last_strides if channels_last else contiguous_strides
        kernel_size = (weight.shape[2], weight.shape[3])
        output_size = (
            output_extent(size, *others)
            for size, *others in zip(
                input.shape[2:], kernel_size, stride, padding, dilation, strict=True
            )
        )
        output_shape = (input.shape[0], weight.shape[0], *output_size)

        def strides_of(tensor: Tensor, computed_by: Direction) -> Shape:
            return _four(strides(tensor.shape) if direction is computed_by else tensor.stride())

        return cls(
            direction=direction,
            batch=input.shape[0],
            in_channels=input.shape[1],
            height=input.shape[2],
            width=input.shape[3],
            out_channels=weight.shape[0],
            kernel_size=kernel_size,
            stride=stride,
            padding=padding,
            dilation=dilation,
            groups=groups,
            dtype=input.dtype,
            precision=precision_of(input.dtype),
            has_bias=has_bias,
            input_strides=strides_of(input, Direction.GRAD_INPUT),
            weight_strides=strides_of(weight, Direction.GRAD_WEIGHT),
            output_strides=_four(
                strides(output_shape) if grad_output is None else grad_output.stride()
            ),
        )

    @property
    def result_shape(self) -> Shape:
        """Shape of the tensor that is computed."""
        return {
            Direction.FORWARD: self.output_shape,
            Direction.GRAD_INPUT: self.input_shape,
            Direction.GRAD_WEIGHT: self.weight_shape,
        }[self.direction]

    @property
    def result_strides(self) -> Shape:
        """Strides of the tensor that is computed."""
        return {
            Direction.FORWARD: self.output_strides,
            Direction.GRAD_INPUT: self.input_strides,
            Direction.GRAD_WEIGHT: self.weight_strides,
        }[self.direction]

    @property
    def output_size(self) -> Pair:
        """(P, Q): height and width of y."""
        rows, columns = (
            output_extent(size, kernel, stride, padding, dilation)
            for size, kernel, stride, padding, dilation in zip(
                (self.height, self.width),
                self.kernel_size,
                self.stride,
                self.padding,
                self.dilation,
                strict=True,
            )
        )
        return rows, columns

    @property
    def input_shape(self) -> Shape:
        return (self.batch, self.in_channels, self.height, self.width)

    @property
    def weight_shape(self) -> Shape:
        return (self.out_channels, self.in_channels // self.groups, *self.kernel_size)

    @property
    def output_shape(self) -> Shape:
        return (self.batch, self.out_channels, *self.output_size)

    @property
    def operations(self) -> int:
        """Floating-point operations of the plain sum: two for each product of x and w."""
        return 2 * math.prod(self.output_shape) * math.prod(self.weight_shape[1:])

    @property
    def bytes_moved(self) -> int:
        """The fewest bytes any kernel moves: each tensor read once or written once."""
        elements = sum(map(math.prod, (self.input_shape, self.weight_shape, self.output_shape)))
        return (elements + self.has_bias * self.out_channels) * self.dtype.itemsize

    @property
    def is_depthwise(self) -> bool:
        """One input channel a group."""
        return self.groups > 1 and self.groups == self.in_channels

    @property
    def is_channels_last(self) -> bool:
        """Whether the output (or upstream gradient) is laid out channels last."""
        return strides_like_channels_last(self.output_shape, self.output_strides)

    def __str__(self) -> str:
        def pair(name: str, value: Pair, default: int) -> str:
            return "" if value == (default, default) else f", {name} {value[0]}x{value[1]}"

        kernel = "x".join(map(str, self.kernel_size))
        shape = "x".join(map(str, self.input_shape))
        layout = "channels_last" if self.is_channels_last else "NCHW"
        dtype = str(self.dtype).removeprefix("torch.")
        return (
            f"{self.direction.value} {shape} -> {self.out_channels}, {kernel}"
            + pair("stride", self.stride, 1)
            + pair("padding", self.padding, 0)
            + pair("dilation", self.dilation, 1)
            + (f", groups {self.groups}" if self.groups > 1 else "")
            + f", {dtype} {layout}, {self.precision.value} class"
        )


def output_extent(size: int, kernel: int, stride: int, padding: int, dilation: int) -> int:
    """floor((size + 2 * padding - dilation * (kernel - 1) - 1) / stride) + 1, one axis of y."""
    return (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1


def extent(shape: tuple[int, ...], strides: tuple[int, ...]) -> int:
    """Elements from a tensor's first to one past its last in memory; 0 where it has none."""
    if 0 in shape:
        return 0
    return 1 + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))


def _require_steps(stride: Pair, padding: Pair, dilation: Pair) -> None:
    if min(stride) < 1 or min(dilation) < 1 or min(padding) < 0:
        raise ValueError(
            "stride and dilation must be positive and padding not negative, got "
            f"stride={stride}, dilation={dilation}, padding={padding}"
        )


def _four(numbers: tuple[int, ...]) -> Shape:
    first, second, third, fourth = numbers
    return first, second, third, fourth


def contiguous_strides(shape: tuple[int, ...]) -> Shape:
    """The strides of a contiguous NCHW tensor of ``shape``."""
    _, channels, height, width = shape
    return (channels * height * width, height * width, width, 1)


def channels_last_strides(shape: tuple[int, ...]) -> Shape:
    """The strides of a contiguous channels_last tensor of ``shape``."""
    _, channels, height, width = shape
    return (channels * height * width, 1, channels * width, channels)


def strides_like_channels_last(shape: tuple[int, ...], strides: tuple[int, ...]) -> bool:
    """PyTorch's own reading of a layout (``Tensor.suggest_memory_format``), ambiguities included.

    Source: ``is_channels_last_strides_2d`` in c10/core/MemoryFormat.h. A tensor whose strides fit
    both layouts (1x1, or one channel) counts as NCHW.
    """
    if strides[1] == 0:
        return False
    smallest = 0
    for axis in (1, 3, 2, 0):
        if shape[axis] == 0 or strides[axis] < smallest:
            return False
        if axis == 0 and smallest == strides[1]:
            return False
        smallest = strides[axis] * max(shape[axis], 1)
    return True


def follows_channels_last(dtype: torch.dtype, *tensors: Tensor) -> bool:
    """Whether PyTorch lays the result of a convolution of ``tensors`` out channels last.

    It does where any of them is (a 1x1 or one-channel tensor is not, being both), but never for
    float64.
    """
    return dtype is not torch.float64 and any(
        strides_like_channels_last(tensor.shape, tensor.stride()) for tensor in tensors
    )
