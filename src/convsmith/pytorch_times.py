"""How long PyTorch's own convolution takes: what the planner weighs our kernels against.

The rates are what cuDNN and PyTorch's own kernels were measured to reach on an H200: the best seen
of their kind, not the typical ones, so that a win is a win.
"""

from __future__ import annotations

import math

from convsmith.roofline import Ceilings
from convsmith.spec import ConvSpec, Direction, Precision


def predict(spec: ConvSpec, ceilings: Ceilings) -> tuple[float, str]:
    """PyTorch's time for ``spec`` in milliseconds, and how it comes about, in a few words."""
    traffic_ms = spec.bytes_moved / (ceilings.copy_TBps * 1e9)
    giga_operations = spec.operations / 1e9
    if spec.is_depthwise:
        return 2 * traffic_ms, "depthwise, at best half the rate of memory"
    if spec.precision is Precision.FLOAT64:
        compute_ms = giga_operations / ceilings.fp32_TFLOPs
        return max(traffic_ms, compute_ms), "float64 on tensor cores, at their rate"
    if spec.precision is not Precision.FLOAT32:
        compute_ms = giga_operations / (0.85 * ceilings.tf32_TFLOPs)
        return max(traffic_ms, compute_ms), "cuDNN on tensor cores"
    share, algorithm = _cudnn_float32_share(spec)
    compute_ms = giga_operations / (share * ceilings.fp32_TFLOPs)
    return max(traffic_ms, compute_ms), f"cuDNN, {algorithm}"


def _cudnn_float32_share(spec: ConvSpec) -> tuple[float, str]:
    """cuDNN's nominal rate in float32 over a matrix product's, and the algorithm behind it."""
    taps = math.prod(spec.kernel_size)
    plain = spec.stride == (1, 1) and spec.dilation == (1, 1)
    if spec.groups > 1:
        shares = {Direction.FORWARD: 0.057, Direction.GRAD_INPUT: 0.04, Direction.GRAD_WEIGHT: 0.05}
        return shares[spec.direction], "grouped"
    if taps == 1:
        return 0.65, "a matrix product"
    if taps <= 9 and plain:
        shares = {Direction.FORWARD: 1.35, Direction.GRAD_INPUT: 1.65, Direction.GRAD_WEIGHT: 2.2}
        return shares[spec.direction], "Winograd, FFT or implicit product"
    if taps <= 9:
        return 0.66, "implicit product, strided or dilated"
    filled = max(0.64, min(1.0, spec.out_channels / 128))  # of a tile of 128 output channels
    if spec.direction is Direction.FORWARD:
        return 0.72 * filled, "implicit product of more than nine taps"
    if spec.direction is Direction.GRAD_INPUT:
        if spec.stride == (1, 1) and not plain:
            return 0.4, "implicit product, dilated"
        return 1.65, "FFT or implicit product"
    return 0.63 * filled, "implicit product of more than nine taps"
