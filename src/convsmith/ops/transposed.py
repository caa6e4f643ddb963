"""The transposed convolution: the input gradient of a convolution, used forward.

It is no operator of its own. In the form T(x, w, g) of ``operators``, its input is g, its weight w
and its result dT/dx, so that everything PyTorch layers over a computation is there already; its
gradient in the input is conv2d, and in the weight the weight gradient.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from convsmith.ops.autocast import lowered
from convsmith.ops.operators import INPUT_GRADIENT, Geometry
from convsmith.spec import Pair, channels_last_strides, follows_channels_last


def conv_transpose2d(
    input: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry, size: Pair
) -> Tensor:
    """conv_transpose2d(input, weight) + bias through PyTorch's dispatcher.

    Nothing is checked, as in ``operators.conv2d``.

    Args:
        geometry: of the convolution whose input gradient it is.
        size: height and width of the result.
    """
    device_type = input.device.type
    # The operator is below autocast, as gradients are.
    if torch.is_autocast_enabled(device_type):
        input, weight = lowered(input, device_type), lowered(weight, device_type)
        bias = None if bias is None else lowered(bias, device_type)
    like = result_like(input, weight, geometry, size)
    output = cast(Tensor, INPUT_GRADIENT.overload(input, weight, like, *geometry))
    return output if bias is None else output + bias[:, None, None]


def result_like(input: Tensor, weight: Tensor, geometry: Geometry, size: Pair) -> Tensor:
    """A tensor of the result's shape, which with ``weight`` gives the result its memory format.

    One element seen as many, unless it has to be channels last: nobody looks at the elements.
    """
    shape = (input.shape[0], weight.shape[1] * geometry[3], *size)
    by_input, by_weight = (follows_channels_last(input.dtype, tensor) for tensor in (input, weight))
    if by_input and not by_weight:
        return input.new_empty_strided(shape, channels_last_strides(shape))
    return input.new_empty(()).expand(shape)
