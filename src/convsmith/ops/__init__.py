"""The three convolutions of a training step as PyTorch operators.

``torch.ops.convsmith.conv2d``, ``conv2d_input_gradient`` and ``conv2d_weight_gradient``: 4-D
tensors, closed under differentiation, and at home in everything that PyTorch layers over a
computation: autograd in both modes, functorch, vmap, autocast, FakeTensor, compile, export, FLOP
counts. Importing this package registers them; the computation itself is ``convsmith.execute``.
"""

from __future__ import annotations

from functools import partial

import torch
from torch.utils.flop_counter import register_flop_formula

from convsmith.ops import computation, vmap
from convsmith.ops.autocast import AUTOCAST_KEYS, autocast
from convsmith.ops.differentiation import differentiable, recorded
from convsmith.ops.operators import (
    CONV2D,
    INPUT_GRADIENT,
    LIBRARY,
    WEIGHT_GRADIENT,
    Geometry,
    conv2d,
)
from convsmith.ops.transposed import conv_transpose2d, result_like

__all__ = [
    "CONV2D",
    "INPUT_GRADIENT",
    "Geometry",
    "conv2d",
    "conv_transpose2d",
    "recorded",
    "result_like",
]

for _operator, _fake, _vmap, _count in (
    (CONV2D, computation.fake_conv2d, vmap.conv2d, computation.count_conv2d),
    (
        INPUT_GRADIENT,
        computation.fake_input_gradient,
        vmap.gradient,
        computation.count_input_gradient,
    ),
    (
        WEIGHT_GRADIENT,
        computation.fake_weight_gradient,
        vmap.gradient,
        computation.count_weight_gradient,
    ),
):
    _name = _operator.overload._schema.name
    LIBRARY.impl(_name, _operator.compute, "CompositeExplicitAutograd")
    LIBRARY.impl(_name, partial(differentiable, _operator), "Autograd", with_keyset=True)
    torch.library.register_fake(_name, _fake, lib=LIBRARY)
    torch.library.register_vmap(_name, partial(_vmap, _operator), lib=LIBRARY)
    register_flop_formula(_operator.overload.overloadpacket)(_count)
# The gradients run in the dtype of the forward convolution, as PyTorch's do.
for _device_type, _key in AUTOCAST_KEYS.items():
    LIBRARY.impl("conv2d", partial(autocast, _device_type), _key.name)
