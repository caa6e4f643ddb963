"""How long PyTorch's own convolution takes: what the planner weighs our kernels against.

The rates are what cuDNN and PyTorch's own kernels were measured to reach on an H200: the best seen
of their kind, not the typical ones, so that a win is a win.
"""

from __future__ import annotations

import math

from convsmith.roofline import TENSOR_CORE_CHANNELS, Ceilings
from convsmith.spec import ConvSpec, Direction, Precision

_FLOAT32_CLASSES = (Precision.TF32, Precision.FLOAT32)
_TF32_WEIGHT_SHARE = 0.45  # of a matrix product's rate, at best
_H200_FP32_TFLOPS = 50.9  # of the GPU on which the times per element were measured


def predict(spec: ConvSpec, ceilings: Ceilings) -> tuple[float, str]:
    """PyTorch's time for ``spec`` in milliseconds, and how it comes about, in a few words."""
    traffic_ms = spec.bytes_moved / (ceilings.copy_TBps * 1e9)
    giga_operations = spec.operations / 1e9
    if spec.is_depthwise and spec.precision is not Precision.FLOAT64:
        compute_ms = _depthwise_ms(spec) * _H200_FP32_TFLOPS / ceilings.fp32_TFLOPs
        begin_ms = 0.012 if spec.direction is Direction.GRAD_WEIGHT else 0.004
        return begin_ms + max(1.1 * traffic_ms, compute_ms), "depthwise, a thread an output"
    if spec.precision is Precision.FLOAT64:
        compute_ms = giga_operations / ceilings.fp32_TFLOPs
        return max(traffic_ms, compute_ms), "float64 on tensor cores, at their rate"
    if spec.precision is not Precision.FLOAT32:
        channels = spec.in_channels // spec.groups
        narrow = spec.groups > 1 and channels < TENSOR_CORE_CHANNELS
        few = spec.groups == 1 and channels < TENSOR_CORE_CHANNELS
        share = 0.005 * channels if narrow else min(0.03 * channels, 0.85) if few else 0.85
        if spec.direction is Direction.GRAD_WEIGHT and spec.precision is Precision.TF32:
            share = min(share, _TF32_WEIGHT_SHARE * min(1, _filled(spec) / 110))
        rate = {
            Precision.FLOAT16: ceilings.fp16_TFLOPs,
            Precision.BFLOAT16: ceilings.bf16_TFLOPs,
        }.get(spec.precision, ceilings.tf32_TFLOPs)
        compute_ms = giga_operations / (share * rate)
        hardly = ", hardly filled" if narrow or few else ""
        how = f"cuDNN on tensor cores{hardly}"
        conversion_ms = _conversion_ms(spec, ceilings)
        if conversion_ms > 0:
            how += ", converted to channels_last and back"
        return max(traffic_ms, compute_ms) + conversion_ms, how
    share, algorithm = _cudnn_float32_share(spec)
    compute_ms = giga_operations / (share * ceilings.fp32_TFLOPs)
    return max(traffic_ms, compute_ms), f"cuDNN, {algorithm}"


def _filled(spec: ConvSpec) -> float:
    """Channels and filters of a group, their geometric mean: what fills tiles of their product."""
    return math.sqrt(spec.in_channels * spec.out_channels) / spec.groups


def _conversion_ms(spec: ConvSpec, ceilings: Ceilings) -> float:
    """The time of bringing x and y from NCHW to channels_last, or back: each is read and written.

    A product of matrices, which a filter of one tap is, needs no such thing.
    """
    if spec.is_channels_last or math.prod(spec.kernel_size) == 1 or spec.groups > 1:
        return 0
    elements = math.prod(spec.input_shape) + math.prod(spec.output_shape)
    slower = 1.25 if spec.dtype.itemsize == 2 else 1
    return slower * 2 * elements * spec.dtype.itemsize / (ceilings.copy_TBps * 1e9)


def _depthwise_ms(spec: ConvSpec) -> float:
    """PyTorch's own depthwise kernels: a time per position and one per tap, at the least seen.

    They are bound by instructions, so they take as long in half precision, except where cuDNN has a
    kernel: 3x3 in float16, and channels_last.
    """
    taps = math.prod(spec.kernel_size)
    positions = math.prod(spec.output_shape)
    if spec.direction is Direction.GRAD_INPUT:
        positions = math.prod(spec.input_shape)
    if spec.is_channels_last:
        per_position = (0.26 if spec.precision in _FLOAT32_CLASSES else 0.14) * taps
    elif spec.direction is Direction.GRAD_WEIGHT:
        per_position = 4 + 1.1 * taps
    elif spec.precision is Precision.FLOAT16 and taps == 9:
        per_position = 2.3
    elif spec.direction is Direction.FORWARD:
        per_position = 7 + 0.24 * taps
    else:
        per_position = 8 + 0.35 * taps
    return positions * per_position * 1e-9


def _cudnn_float32_share(spec: ConvSpec) -> tuple[float, str]:
    """cuDNN's nominal rate in float32 over a matrix product's, and the algorithm behind it."""
    taps = math.prod(spec.kernel_size)
    plain = spec.stride == (1, 1) and spec.dilation == (1, 1)
    if spec.groups > 1:
        shares = {Direction.FORWARD: 0.057, Direction.GRAD_INPUT: 0.04, Direction.GRAD_WEIGHT: 0.08}
        channels = spec.in_channels // spec.groups
        return shares[spec.direction] * max(channels / 4, 1), "grouped"
    if taps == 1:
        return 0.65, "a matrix product"
    if taps <= 9 and plain:
        small = 0.6 if max(spec.output_size) <= 8 else 1  # planes fill no whole tile of Winograd's
        shares = {Direction.FORWARD: 1.35, Direction.GRAD_INPUT: 1.3, Direction.GRAD_WEIGHT: 2.2}
        share = shares[spec.direction] * small
        if spec.direction is Direction.GRAD_WEIGHT:
            share = max(min(share, 2.2 * (_filled(spec) / 128) ** 2), 0.45)
        return share, "Winograd, FFT or implicit product"
    if taps <= 9:
        return 0.66, "implicit product, strided or dilated"
    filled = max(0.64, min(1.0, spec.out_channels / 128))  # of a tile of 128 output channels
    if spec.direction is Direction.FORWARD:
        return 0.72 * filled, "implicit product of more than nine taps"
    if spec.direction is Direction.GRAD_INPUT:
        if spec.stride == (1, 1) and not plain:
            return 0.4, "implicit product, dilated"
        return 1.65 * max(0.7, min(1.0, spec.in_channels / 64)), "FFT or implicit product"
    return 0.63 * filled, "implicit product of more than nine taps"
