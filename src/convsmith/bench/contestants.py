"""What is timed: ConvSmith's convolution and PyTorch's, as calls without arguments."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

import torch
import torch.nn.functional as F
from torch import Tensor

from convsmith import execute
from convsmith.bench.accuracy import Distribution
from convsmith.bench.suites import Layer, Layout
from convsmith.spec import Direction

Convolution = Callable[[], Tensor]


class Peer(str, Enum):
    """Whom ConvSmith is measured against: PyTorch, each time at its best.

    Every one runs with ``cudnn.benchmark`` on. The tensors of `CHANNELS_LAST` lie so already: the
    conversion, which a program with NCHW tensors would have to pay, is not counted.
    """

    TORCH = "torch"
    CHANNELS_LAST = "channels_last"
    COMPILE = "compile"


@dataclass(frozen=True)
class Operands:
    """The tensors of a layer's training step: x, w and the gradient of y."""

    image: Tensor
    weight: Tensor
    upstream: Tensor

    @classmethod
    def draw(
        cls,
        layer: Layer,
        distribution: Distribution,
        dtype: torch.dtype,
        device: torch.device,
    ) -> Operands:
        """Fresh random operands, contiguous."""
        shapes = (layer.input_shape, layer.weight_shape, layer.output_shape)
        return cls(*(distribution.draw(shape, dtype, device) for shape in shapes))

    def to(self, layout: Layout) -> Operands:
        """The same numbers laid out as ``layout``."""
        tensors = (self.image, self.weight, self.upstream)
        return Operands(*(one.contiguous(memory_format=layout.memory_format) for one in tensors))

    def read_by(self, direction: Direction) -> tuple[Tensor, Tensor]:
        """The two that ``direction`` reads, in the order of `convsmith.bench.reference`."""
        return {
            Direction.FORWARD: (self.image, self.weight),
            Direction.GRAD_INPUT: (self.upstream, self.weight),
            Direction.GRAD_WEIGHT: (self.upstream, self.image),
        }[direction]


def ours(layer: Layer, direction: Direction, operands: Operands) -> Convolution:
    """ConvSmith's convolution, on whichever kernel it chooses."""
    image, weight, upstream = operands.image, operands.weight, operands.upstream
    numbers = (layer.stride, layer.padding, layer.dilation, layer.groups)
    return {
        Direction.FORWARD: lambda: execute.forward(image, weight, None, *numbers),
        Direction.GRAD_INPUT: lambda: execute.input_gradient(upstream, weight, image, *numbers),
        Direction.GRAD_WEIGHT: lambda: execute.weight_gradient(
            upstream, image, weight, *numbers, False
        )[0],
    }[direction]


def pytorch(layer: Layer, direction: Direction, operands: Operands) -> Convolution:
    """PyTorch's convolution."""
    function = _pytorch_function(layer, direction)
    return lambda: function(operands.image, operands.weight, operands.upstream)


def compiled(
    layer: Layer, direction: Direction, operands: Operands, backend: str = "inductor"
) -> Convolution:
    """PyTorch's convolution through ``torch.compile``."""
    torch._dynamo.reset()  # or the limit on recompilations ends compiling after a few layers
    function = torch.compile(_pytorch_function(layer, direction), dynamic=False, backend=backend)
    return lambda: function(operands.image, operands.weight, operands.upstream)


def _pytorch_function(
    layer: Layer, direction: Direction
) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    numbers = (layer.stride, layer.padding, layer.dilation, layer.groups)

    def forward(image: Tensor, weight: Tensor, upstream: Tensor) -> Tensor:
        return F.conv2d(image, weight, None, *numbers)

    def gradient(image: Tensor, weight: Tensor, upstream: Tensor) -> Tensor:
        wanted = (direction is Direction.GRAD_INPUT, direction is Direction.GRAD_WEIGHT, False)
        gradients: tuple[Tensor, ...] = torch.ops.aten.convolution_backward(
            upstream,
            image,
            weight,
            None,
            layer.stride,
            layer.padding,
            layer.dilation,
            False,
            (0, 0),
            layer.groups,
            wanted,
        )
        return gradients[wanted.index(True)]

    return forward if direction is Direction.FORWARD else gradient
