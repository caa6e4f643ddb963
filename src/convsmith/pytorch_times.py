"""How long PyTorch's own convolution takes: what the planner weighs our kernels against.

The rates are what cuDNN and PyTorch's own kernels were measured to reach on an H200: the best seen
of their kind, not the typical ones, so that a win is a win.
"""

from __future__ import annotations

import math

from convsmith.roofline import TENSOR_CORE_CHANNELS, Ceilings
from convsmith.spec import ConvSpec, Direction, Precision

_FLOAT32_CLASSES = (Precision.TF32, Precision.FLOAT32)
_H200_FP32_TFLOPS = 50.9  # of the GPU on which the times per element were measured
_CONVERSION_BEGINS_MS = 0.018  # kernels that follow one another, and wait for their last blocks
_MANY_CHANNELS = 128
_FEW_CHANNELS = 8
_LARGE_PLANE = 2**20


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
        rate = {
            Precision.FLOAT16: ceilings.fp16_TFLOPs,
            Precision.BFLOAT16: ceilings.bf16_TFLOPs,
        }.get(spec.precision, ceilings.tf32_TFLOPs)
        compute_ms = giga_operations / (_tensor_core_share(spec) * rate)
        how = "cuDNN on tensor cores"
        conversion_ms = _conversion_ms(spec, ceilings)
        if conversion_ms > 0:
            how += ", converted to channels_last and back"
        return max(traffic_ms / _traffic_share(spec), compute_ms) + conversion_ms, how
    share, algorithm = _cudnn_float32_share(spec)
    compute_ms = giga_operations / (share * ceilings.fp32_TFLOPs)
    return max(traffic_ms, compute_ms), f"cuDNN, {algorithm}"


def _summed(spec: ConvSpec) -> int:
    """Channels of a group that a result is a sum of; of a weight gradient, the input's."""
    return (spec.out_channels if _is_grad_input(spec) else spec.in_channels) // spec.groups


def _resulting(spec: ConvSpec) -> int:
    """Channels of a group that results have; of a weight gradient, the output's."""
    return (spec.in_channels if _is_grad_input(spec) else spec.out_channels) // spec.groups


def _filled(spec: ConvSpec) -> float:
    """Channels and filters of a group, their geometric mean: what fills tiles of their product."""
    return math.sqrt(spec.in_channels * spec.out_channels) / spec.groups


def _is_grad_input(spec: ConvSpec) -> bool:
    return spec.direction is Direction.GRAD_INPUT


def _tensor_core_share(spec: ConvSpec) -> float:
    """The best share of a matrix product's rate that cuDNN reaches on tensor cores.

    Its tiles are as wide as results have channels, up to 256. In half precision less was measured,
    so that more is allowed for.
    """
    if spec.precision is not Precision.TF32:
        channels = spec.in_channels // spec.groups
        narrow = spec.groups > 1 and channels < TENSOR_CORE_CHANNELS
        few = spec.groups == 1 and channels < TENSOR_CORE_CHANNELS
        return 0.005 * channels if narrow else min(0.03 * channels, 0.85) if few else 0.85
    filled = _filled(spec)
    if spec.direction is Direction.GRAD_WEIGHT:
        if spec.groups > 1:
            return min(0.0045 * filled, 0.5)
        share = min(0.06 + 0.004 * filled, 0.36 + 0.0003 * filled)
        share *= 0.65 if spec.out_channels <= 32 else 1
        return share * (0.8 if spec.dilation != (1, 1) else 1)
    width = _resulting(spec)
    if spec.groups > 1:
        return min(0.005 * width, 0.85)
    if math.prod(spec.kernel_size) == 1:
        return 0.85
    share = min(width / _MANY_CHANNELS, 0.5 + 0.2 * math.log2(max(width, 64) / 64), 0.95)
    if spec.stride != (1, 1) and _is_grad_input(spec):
        share *= 0.65
    if _summed(spec) < TENSOR_CORE_CHANNELS:
        share = min(share, 0.1 if math.prod(spec.kernel_size) > 9 else 0.3)
    least = 0.12
    if spec.stride != (1, 1) and _is_grad_input(spec):
        least = min(least, 0.015 * math.prod(spec.stride))
    return max(share, least)


def _traffic_share(spec: ConvSpec) -> float:
    """Of the copy rate, the best that is reached where traffic takes longest.

    Less was measured of weight gradients of one tap, where planes are large or channels are few.
    """
    if spec.direction is not Direction.GRAD_WEIGHT or math.prod(spec.kernel_size) > 1:
        return 1
    if spec.groups == 1 and min(spec.in_channels, spec.out_channels) < 24:
        return 0.35
    return 0.7 if math.prod(spec.output_size) >= _LARGE_PLANE else 1


def _conversion_ms(spec: ConvSpec, ceilings: Ceilings) -> float:
    """The time of bringing x and y from NCHW to channels_last, or back: each is read and written.

    A product of matrices, which a filter of one tap is, needs no such thing.
    """
    if spec.is_channels_last or math.prod(spec.kernel_size) == 1 or spec.groups > 1:
        return 0
    elements = math.prod(spec.input_shape) + math.prod(spec.output_shape)
    slower = 1.0
    if spec.dtype.itemsize == 2:
        slower = 1.5 if spec.direction is Direction.GRAD_WEIGHT else 1.25
    copies_ms = slower * 2 * elements * spec.dtype.itemsize / (ceilings.copy_TBps * 1e9)
    return copies_ms + _CONVERSION_BEGINS_MS


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
    """cuDNN's best nominal rate in float32 over a matrix product's, and the algorithm behind it."""
    taps = math.prod(spec.kernel_size)
    filled = _filled(spec)
    plain = spec.stride == (1, 1) and spec.dilation == (1, 1)
    is_forward = spec.direction is Direction.FORWARD
    fits = max(spec.output_size) <= (32 if is_forward else 40)
    if plain and taps > 9 and fits and not (is_forward and spec.groups > 1):
        return 3.4 * max(min(1, filled / 110), 0.2), "FFT"
    if spec.groups > 1:
        first, slope = {
            Direction.FORWARD: (0.1, 0.0075),
            Direction.GRAD_INPUT: (0.08, 0.005),
            Direction.GRAD_WEIGHT: (0.1, 0.005),
        }[spec.direction]
        return max(first + slope * (filled - 8), 0.06), "grouped"
    if spec.direction is Direction.FORWARD:
        return _float32_forward_share(spec, plain, taps)
    if spec.direction is Direction.GRAD_INPUT:
        return _float32_input_gradient_share(spec, plain, taps)
    if taps == 1:
        return min(0.1 + 0.0037 * filled, 0.45 if filled < 400 else 0.57), "a matrix product"
    if taps <= 9 and plain:
        return min(max(0.0113 * filled, 0.75), 2.8), "Winograd or implicit product"
    few = _summed(spec) < _FEW_CHANNELS and spec.stride != (1, 1)
    return 0.42 if few else 0.66, "implicit product"


def _float32_forward_share(spec: ConvSpec, plain: bool, taps: int) -> tuple[float, str]:
    few_filters = min(1, spec.out_channels / 8)
    if taps == 1:
        return 0.65 if spec.stride == (1, 1) else 0.75, "a matrix product"
    if taps <= 9 and plain:
        return (2.05 if _is_winograd(spec) else 0.85) * few_filters, "Winograd or implicit product"
    if taps <= 9:
        return 0.7, "implicit product, strided or dilated"
    width = max(0.64, min(1.0, spec.out_channels / _MANY_CHANNELS))  # of a tile
    return 0.72 * width * few_filters, "implicit product of more than nine taps"


def _float32_input_gradient_share(spec: ConvSpec, plain: bool, taps: int) -> tuple[float, str]:
    if taps == 1:
        few = spec.out_channels <= _MANY_CHANNELS
        many = spec.in_channels > _MANY_CHANNELS
        return 0.4 if few else 0.6 if many else 0.5, "a matrix product"
    if spec.stride != (1, 1):
        share = min(0.3 + 0.001 * spec.in_channels, 0.66) if taps <= 9 else 0.7
        return share, "implicit product, strided"
    if not plain:
        return 0.7 if taps <= 9 else 0.4, "implicit product, dilated"
    if taps > 9:
        return 1.65 * max(0.7, min(1.0, spec.in_channels / 64)), "FFT or implicit product"
    if spec.in_channels <= _MANY_CHANNELS:
        share = 0.42 if spec.in_channels < 32 else 0.5 if spec.in_channels <= 64 else 0.8
        return share, "implicit product"
    size = max(spec.input_shape[2:])
    share = 0.75 if size <= 16 or size > 64 else 1.8 if size <= 32 else 1.2
    return share, "Winograd or implicit product"


def _is_winograd(spec: ConvSpec) -> bool:
    """Whether planes and channels are such that Winograd's tiles pay, in a forward."""
    rows, columns = spec.output_size
    pixels = spec.input_shape[0] * rows * columns
    return spec.in_channels >= 2 * _MANY_CHANNELS and 8 < max(rows, columns) <= 32 and pixels > 8000
