"""nn.Conv2d on NVIDIA GPUs: generated, proven and measured CUDA kernels for plain tensors.

    y = convsmith.conv2d(x, w, b, padding=1)          # as torch.nn.functional.conv2d
    layer = convsmith.Conv2d(64, 128, 3)              # as torch.nn.Conv2d
    z = convsmith.conv_transpose2d(y, w, padding=1)   # likewise, as convsmith.ConvTranspose2d
    print(convsmith.plan(x, w, b, padding=1))         # which kernel runs, and why

Importing initialises no GPU and writes nothing.
"""

from __future__ import annotations

from convsmith import errors
from convsmith.choice import plan
from convsmith.functional import conv2d, conv_transpose2d
from convsmith.modules import Conv2d, ConvTranspose2d, LazyConv2d, LazyConvTranspose2d
from convsmith.planner import Plan, simulator, use_kernel
from convsmith.spec import ConvSpec, Direction, Precision

__version__ = "0.1.0"

__all__ = [
    "Conv2d",
    "ConvSpec",
    "ConvTranspose2d",
    "Direction",
    "LazyConv2d",
    "LazyConvTranspose2d",
    "Plan",
    "Precision",
    "conv2d",
    "conv_transpose2d",
    "errors",
    "plan",
    "simulator",
    "use_kernel",
]
