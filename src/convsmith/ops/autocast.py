"""Autocast of the forward convolution, and of the transposed one."""

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
    # The casts are made in here too: autocast has no business with them.
    with torch._C._ExcludeDispatchKeyGuard(torch._C.DispatchKeySet(AUTOCAST_KEYS[device_type])):
        bias = bias if bias is None else lowered(bias, device_type)
        return conv2d(
            lowered(input, device_type),
            lowered(weight, device_type),
            bias,
            (stride, padding, dilation, groups),
        )


def lowered(tensor: Tensor, device_type: str) -> Tensor:
    """The tensor in the dtype of autocast on ``device_type``, which is on."""
    eligible = tensor.device.type == device_type and tensor.dtype is not torch.float64
    return tensor.to(torch.get_autocast_dtype(device_type)) if eligible else tensor
