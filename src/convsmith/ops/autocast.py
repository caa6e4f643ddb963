"""Autocast of the forward convolution."""

from __future__ import annotations

import torch
from torch import Tensor

from convsmith.ops.operators import conv2d
from convsmith.spec import Pair

AUTOCAST_KEYS = {
    "cuda": torch._C.DispatchKey.AutocastCUDA,
    "cpu": torch._C.DispatchKey.AutocastCPU,
}


def autocast(
    device_type: str,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
    groups: int,
) -> Tensor:
    """conv2d of the tensors in autocast's dtype; float64 stays, as PyTorch's conv2d has it."""
    dtype = torch.get_autocast_dtype(device_type)

    def lowered(tensor: Tensor) -> Tensor:
        eligible = tensor.device.type == device_type and tensor.dtype is not torch.float64
        return tensor.to(dtype) if eligible else tensor

    # The casts are made in here too: autocast has no business with them.
    with torch._C._ExcludeDispatchKeyGuard(torch._C.DispatchKeySet(AUTOCAST_KEYS[device_type])):
        bias = bias if bias is None else lowered(bias)
        return conv2d(lowered(input), lowered(weight), bias, (stride, padding, dilation, groups))
