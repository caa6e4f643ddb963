"""The three convolutions as plain functions of tensors: plan, then launch or hand to PyTorch.

Nothing here knows of autograd. ``ops.py`` calls these below every dispatcher layer.
"""

from __future__ import annotations

import torch
from torch import Tensor

from convsmith.spec import Pair


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
    return torch.ops.aten.convolution(
        input, weight, bias, stride, padding, dilation, False, (0, 0), groups
    )


def input_gradient(
    grad_output: Tensor,
    weight: Tensor,
    input_like: Tensor,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
    groups: int,
) -> Tensor:
    """d(sum(grad_output * y)) / d(input); ``input_like`` gives its shape."""
    return torch.ops.aten.convolution_backward(
        grad_output, input_like, weight, None, stride, padding, dilation, False, (0, 0), groups,
        (True, False, False),
    )[0]


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
    """d(sum(grad_output * y)) / d(weight), and / d(bias) where ``has_bias``."""
    _, weight_grad, bias_grad = torch.ops.aten.convolution_backward(
        grad_output, input, weight_like, [weight_like.size(0)] if has_bias else None, stride,
        padding, dilation, False, (0, 0), groups, (False, True, has_bias),
    )
    return weight_grad, bias_grad
