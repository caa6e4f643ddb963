"""PyTorch's own three convolutions, laid out as ConvSmith promises.

Results are laid out as PyTorch does on a GPU: channels last where ``follows_channels_last`` says
so of the forward convolution's input and weight, for the gradients too. What is traced or compiled
rests on it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from convsmith.spec import Pair, follows_channels_last


def forward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
    groups: int,
) -> Tensor:
    """y = conv2d(input, weight) + bias."""
    output = torch.convolution(
        input, weight, bias, stride, padding, dilation, False, (0, 0), groups
    )
    return _laid_out(output, input, weight)


def input_gradient(
    grad_output: Tensor,
    weight: Tensor,
    input_like: Tensor,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
    groups: int,
) -> Tensor:
    """d(sum(grad_output * y)) / d(input); ``input_like`` gives its shape and layout."""
    input_grad = torch.ops.aten.convolution_backward.default(
        grad_output,
        input_like,
        weight,
        None,
        stride,
        padding,
        dilation,
        False,
        (0, 0),
        groups,
        (True, False, False),
    )[0]
    return _laid_out(input_grad, input_like, weight)


def weight_gradient(
    grad_output: Tensor,
    input: Tensor,
    weight_like: Tensor,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
    groups: int,
    has_bias: bool,
) -> tuple[Tensor, Tensor | None]:
    """d(sum(grad_output * y)) / d(weight), and / d(bias) where ``has_bias``.

    ``weight_like`` gives the weight's shape and layout.
    """
    _, weight_grad, bias_grad = torch.ops.aten.convolution_backward.default(
        grad_output,
        input,
        weight_like,
        [weight_like.shape[0]] if has_bias else None,
        stride,
        padding,
        dilation,
        False,
        (0, 0),
        groups,
        (False, True, has_bias),
    )
    return _laid_out(weight_grad, input, weight_like), bias_grad


def _laid_out(result: Tensor, input: Tensor, weight: Tensor) -> Tensor:
    """PyTorch's result in the layout that ConvSmith promises; it rarely has another."""
    channels_last = follows_channels_last(input.dtype, input, weight)
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    return result.contiguous(memory_format=memory_format)
