"""What the operators compute, what shapes they promise without data, and how they are counted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import conv_backward_flop, conv_flop_count

from convsmith import execute
from convsmith.spec import Pair, follows_channels_last, output_extent

# --- With data: below every layer that PyTorch puts over a computation.


def conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Tensor:
    """``convsmith::conv2d``."""
    stride, padding, dilation = _pairs(stride, padding, dilation)
    return execute.forward(input, weight, bias, stride, padding, dilation, groups)


def input_gradient(
    grad_output: Tensor,
    weight: Tensor,
    input: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Tensor:
    """``convsmith::conv2d_input_gradient``."""
    stride, padding, dilation = _pairs(stride, padding, dilation)
    return execute.input_gradient(grad_output, weight, input, stride, padding, dilation, groups)


def weight_gradient(
    grad_output: Tensor,
    input: Tensor,
    weight: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    has_bias: bool,
) -> tuple[Tensor, Tensor]:
    """``convsmith::conv2d_weight_gradient``."""
    stride, padding, dilation = _pairs(stride, padding, dilation)
    weight_grad, bias_grad = execute.weight_gradient(
        grad_output, input, weight, stride, padding, dilation, groups, has_bias
    )
    # A schema has no optional result.
    return weight_grad, grad_output.new_empty(0) if bias_grad is None else bias_grad


def _pairs(*values: Sequence[int]) -> tuple[Pair, Pair, Pair]:
    """The dispatcher hands over lists; execute takes tuples."""
    stride, padding, dilation = ((rows, columns) for rows, columns in values)
    return stride, padding, dilation


# --- Without data: meta tensors, FakeTensor, compile, export.


def fake_conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
    groups: int,
) -> Tensor:
    """The shape and layout of ``convsmith::conv2d``."""
    shape = output_shape(input, weight, stride, padding, dilation)
    return _empty(shape, input, weight)


def fake_input_gradient(
    grad_output: Tensor, weight: Tensor, input: Tensor, *geometry: Any
) -> Tensor:
    """The shape and layout of ``convsmith::conv2d_input_gradient``."""
    return _empty(input.shape, input, weight)


def fake_weight_gradient(
    grad_output: Tensor,
    input: Tensor,
    weight: Tensor,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
    groups: int,
    has_bias: bool,
) -> tuple[Tensor, Tensor]:
    """The shapes and layout of ``convsmith::conv2d_weight_gradient``."""
    bias_grad = grad_output.new_empty(weight.shape[0] if has_bias else 0)
    return _empty(weight.shape, input, weight), bias_grad


def output_shape(
    input: Tensor, weight: Tensor, stride: Pair, padding: Pair, dilation: Pair
) -> tuple[int, ...]:
    """(N, K, P, Q)."""
    extents = map(output_extent, input.shape[2:], weight.shape[2:], stride, padding, dilation)
    return (input.shape[0], weight.shape[0], *extents)


def _empty(shape: Sequence[int], input: Tensor, weight: Tensor) -> Tensor:
    """A result of the convolution of ``input`` and ``weight``, in the layout it has."""
    channels_last = follows_channels_last(input.dtype, input, weight)
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    return torch.empty(shape, dtype=input.dtype, device=input.device, memory_format=memory_format)


# --- Floating-point operations, by PyTorch's own formulas; arguments are shapes.


def count_conv2d(input: Any, weight: Any, *_: Any, out_shape: Any, **__: Any) -> int:
    """The operations of ``convsmith::conv2d``."""
    return conv_flop_count(input, weight, out_shape)


def count_input_gradient(grad_output: Any, weight: Any, *_: Any, out_shape: Any, **__: Any) -> int:
    """The operations of ``convsmith::conv2d_input_gradient``."""
    return conv_flop_count(grad_output, weight, out_shape, transposed=True)


def count_weight_gradient(
    grad_output: Any, input: Any, weight: Any, *_: Any, out_shape: Any, **__: Any
) -> int:
    """The operations of ``convsmith::conv2d_weight_gradient``."""
    # PyTorch's decorator gives its formula out_val in out_shape's place and does not say so.
    count: int = conv_backward_flop(  # type: ignore[call-arg]
        grad_output, input, weight, None, None, None, None,
        transposed=False,
        _output_padding=None,
        _groups=None,
        output_mask=(False, True, False),
        out_val=(None, *out_shape),
    )  # fmt: skip
    return count
