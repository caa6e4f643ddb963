"""A Model in float64, its convolutions summed exactly, with or without rounded operands.

The float64 result of a model is what its float32 result is compared with. The same model with
each convolution's operands first rounded to TF32 is what the TF32 class entitles a solution to; it
is found by computing, not taken from the GPU, because PyTorch is free not to use TF32 where the
class allows it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from convsmith.bench import reference
from convsmith.spec import ConvSpec, Direction, Precision, contiguous_strides

aten = torch.ops.aten

Rounding = Callable[[Tensor], Tensor]


def to_tf32(tensor: Tensor) -> Tensor:
    """Round a float64 tensor to nearest even, to TF32's 11-bit significand."""
    return _scaled(tensor, torch.round)


def to_tf32_truncated(tensor: Tensor) -> Tensor:
    """Cut a float64 tensor to an 11-bit significand: what tensor cores do to raw float32."""
    return _scaled(tensor, torch.trunc)


def to_bfloat16(tensor: Tensor) -> Tensor:
    """Round a float64 tensor to bfloat16."""
    return tensor.to(torch.bfloat16).double()


def _scaled(tensor: Tensor, to_integer: Rounding) -> Tensor:
    significand, exponent = torch.frexp(tensor)
    rounded = torch.ldexp(to_integer(significand * 2**11), exponent - 11)
    return torch.where(tensor.isfinite(), rounded, tensor)


class Exactly(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """While active, float64 convolutions are summed tap by tap, their operands rounded before.

    Args:
        rounding: applied to both operands of every convolution, forward and backward.

    Attributes:
        terms: how many products the longest sums of the model hold, added over its layers.
    """

    def __init__(self, rounding: Rounding | None = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.rounding: Rounding = rounding or (lambda tensor: tensor)
        self.terms = 0

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # nothing is compiled in this mode, and importing Dynamo takes a second

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func is aten.convolution.default:
            return self._convolution(*args)
        if func is aten.convolution_backward.default:
            return self._convolution_backward(*args)
        if func in (aten.mm.default, aten.bmm.default):
            self.terms += args[0].shape[-1]
        elif func in (aten.addmm.default, aten.baddbmm.default):
            self.terms += args[1].shape[-1]
        return func(*args, **(kwargs or {}))

    def _convolution(self, x: Tensor, weight: Tensor, bias: Tensor | None, *rest: Any) -> Tensor:
        self.terms += math.prod(weight.shape[1:])
        x, weight = self.rounding(x), self.rounding(weight)
        spec = _spec(Direction.FORWARD, x, weight, *rest)
        if spec is None:
            plain: Tensor = aten.convolution.default(x, weight, bias, *rest)
            return plain
        result = reference.compute(spec, x, weight)
        return result if bias is None else result + bias[:, None, None]

    def _convolution_backward(
        self,
        upstream: Tensor,
        x: Tensor,
        weight: Tensor,
        bias_sizes: list[int] | None,
        *rest: Any,
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        *geometry, (wants_input, wants_weight, wants_bias) = rest
        pixels = math.prod(upstream.shape) // upstream.shape[1]
        self.terms += pixels + math.prod(weight.shape) // weight.shape[1]
        # A bias is added in float32, so the sum of its gradient takes what was not rounded.
        bias = upstream.sum([0, *range(2, upstream.dim())]) if wants_bias else None
        upstream, x, weight = map(self.rounding, (upstream, x, weight))
        spec = _spec(Direction.GRAD_INPUT, x, weight, *geometry)
        if spec is None:
            mask = [wants_input, wants_weight, False]
            grads = aten.convolution_backward.default(upstream, x, weight, None, *geometry, mask)
            return grads[0], grads[1], bias
        of_input = reference.compute(spec, upstream, weight) if wants_input else None
        spec = _spec(Direction.GRAD_WEIGHT, x, weight, *geometry)
        assert spec is not None
        return of_input, reference.compute(spec, upstream, x) if wants_weight else None, bias


def _spec(
    direction: Direction,
    x: Tensor,
    weight: Tensor,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    transposed: bool,
    output_padding: list[int],
    groups: int,
) -> ConvSpec | None:
    """The convolution for `reference`, or None where it is no 2D convolution of any elements."""
    if x.dim() != 4 or transposed or 0 in x.shape or 0 in weight.shape:
        return None
    batch, channels, height, width = x.shape
    filters, _, rows, columns = weight.shape
    return ConvSpec(
        direction=direction,
        batch=batch,
        in_channels=channels,
        height=height,
        width=width,
        out_channels=filters,
        kernel_size=(rows, columns),
        stride=_pair(stride),
        padding=_pair(padding),
        dilation=_pair(dilation),
        groups=groups,
        dtype=torch.float64,
        precision=Precision.FLOAT64,
        has_bias=False,
        # `reference` makes tensors of its own and reads shapes only.
        input_strides=contiguous_strides(x.shape),
        weight_strides=contiguous_strides(weight.shape),
        output_strides=contiguous_strides(x.shape),
    )


def _pair(values: list[int]) -> tuple[int, int]:
    """One number stands for both axes."""
    return values[0], values[-1]


@contextmanager
def tf32_switch(on: bool) -> Iterator[None]:
    """PyTorch's TF32 switch for convolutions, on or off; on again, its default, afterwards.

    Set through ``torch.backends.cudnn.allow_tf32``: solutions may read that, and PyTorch >= 2.9
    refuses the reading once its newer switch has been set.
    """
    torch.backends.cudnn.allow_tf32 = on
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = True
