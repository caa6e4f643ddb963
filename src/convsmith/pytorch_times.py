"""How long PyTorch's own convolution takes: what the planner weighs our kernels against.

The rates are what cuDNN and PyTorch's own kernels were measured to reach on an H200 and an H100:
the best seen of their kind, and what nearly all of 200 random layers fell short of them by.
"""

from __future__ import annotations

import math

from convsmith.roofline import TENSOR_CORE_CHANNELS, Ceilings
from convsmith.spec import ConvSpec, Direction, Precision

_FLOAT32_CLASSES = (Precision.TF32, Precision.FLOAT32)
_H200_FP32_TFLOPS = 50.9  # of the GPU on which the times per element were measured

# What a convolution takes however small it is: its kernels follow one another, and each waits for
# the last blocks of the one before.
_BEGINS_MS = {Direction.FORWARD: 0.009, Direction.GRAD_INPUT: 0.012, Direction.GRAD_WEIGHT: 0.017}
_GROUPED_BEGINS_MS = 0.025
_CONVERTED_BEGINS_MS = 0.018
_DEPTHWISE_BEGINS_MS = 0.006
_DEPTHWISE_WEIGHT_GRADIENT_BEGINS_MS = 0.012

# By what factor random layers of several taps took longer than the best of their kind. Larger ones
# would be mistaken in more than two of a hundred.
_MORE_THAN_BEST = {
    (Precision.TF32, Direction.GRAD_INPUT): 1.2,
    (Precision.TF32, Direction.GRAD_WEIGHT): 1.3,
    (Precision.FLOAT32, Direction.GRAD_INPUT): 1.1,
    (Precision.FLOAT32, Direction.GRAD_WEIGHT): 1.25,
}

# Where cuDNN's kernels change their pace.
_NINE_TAPS = 9  # of 3x3, which most kernels are made for
_MANY_CHANNELS = 128  # as many as a tile is wide
_FILTERS_OF_A_TILE = 32  # in float32, of the narrowest
_HALF_A_TILE = 32  # filters of a weight gradient, which fill no more than half a tile
_FEW_CHANNELS = 8  # fewer than these make short sums for which tiles are loaded in vain
_LONG_VECTOR = 16  # channels, of which float32 kernels of stride 1 are no quicker
_NARROW_MATRIX = 24  # channels or filters, of one tap
_LARGE_PLANE = 2**20

# The best shares of a matrix product's rate on tensor cores; and what is left of a share in TF32.
_BEST_SHARE, _LEAST_SHARE = 0.85, 0.12
_FEW_CHANNELS_SHARE, _FEW_CHANNELS_OF_MANY_TAPS_SHARE = 0.3, 0.1
_LEFT_OF_HALF_A_TILE, _LEFT_OF_DILATED_WEIGHT_GRADIENT = 0.65, 0.8
_LEFT_OF_STRIDED_INPUT_GRADIENT = 0.65

# The best shares of the copy rate, of gradients of one tap.
_STRIDED_MATRIX_TRAFFIC_SHARE = 0.4
_NARROW_MATRIX_TRAFFIC_SHARE, _LARGE_PLANE_TRAFFIC_SHARE = 0.35, 0.7

# The best share of the float32 rate of more than nine taps; and of it, how much is left where there
# are few filters for the width of a tile.
_MANY_TAPS_SHARE = 0.72
_LEFT_OF_FEW_FILTERS, _LEFT_OF_FEW_FILTERS_AND_CHANNELS = 0.83, 0.64

# Of PyTorch's depthwise kernels: sizes that are compiled in, and as how many positions going on to
# the next plane counts, in the sum of each tap of a weight gradient.
_DEPTHWISE_KERNEL_SIZES = ((1, 1), (3, 3), (5, 5))
_POSITIONS_OF_A_PLANE = 60


def predict(spec: ConvSpec, ceilings: Ceilings) -> tuple[float, str]:
    """PyTorch's time for ``spec`` in milliseconds, and how it comes about, in a few words."""
    traffic_ms = spec.bytes_moved / (ceilings.copy_TBps * 1e9)
    if spec.is_depthwise and spec.precision is not Precision.FLOAT64:
        compute_ms = _depthwise_ms(spec) * _H200_FP32_TFLOPS / ceilings.fp32_TFLOPs
        begins_ms = _DEPTHWISE_BEGINS_MS
        if spec.direction is Direction.GRAD_WEIGHT:
            begins_ms = _DEPTHWISE_WEIGHT_GRADIENT_BEGINS_MS
        return begins_ms + max(1.1 * traffic_ms, compute_ms), "depthwise, a thread an output"
    if spec.precision is Precision.FLOAT64:
        compute_ms = spec.operations / 1e9 / ceilings.fp32_TFLOPs
        return max(traffic_ms, compute_ms), "float64 on tensor cores, at their rate"
    best_ms, how = _best(spec, ceilings)
    has_several_taps = math.prod(spec.kernel_size) > 1 and spec.groups == 1
    more = _MORE_THAN_BEST.get((spec.precision, spec.direction), 1) if has_several_taps else 1
    return best_ms * more, how


def _best(spec: ConvSpec, ceilings: Ceilings) -> tuple[float, str]:
    """cuDNN's time for ``spec``, the best of its kind."""
    if spec.precision is Precision.FLOAT32:
        return _float32(spec, ceilings)
    on_tensor_cores = _on_tensor_cores(spec, ceilings)
    if spec.precision is not Precision.TF32 or spec.direction is not Direction.FORWARD:
        return on_tensor_cores
    # Else float32 kernels are slower than their model there.
    plain = spec.stride == (1, 1) and spec.dilation == (1, 1)
    if not _FEW_CHANNELS <= _summed(spec) < (_LONG_VECTOR if plain else math.inf):
        return on_tensor_cores
    return min(on_tensor_cores, _float32(spec, ceilings))


def _on_tensor_cores(spec: ConvSpec, ceilings: Ceilings) -> tuple[float, str]:
    """cuDNN's time on tensor cores, with the conversions that they need."""
    rate = {
        Precision.FLOAT16: ceilings.fp16_TFLOPs,
        Precision.BFLOAT16: ceilings.bf16_TFLOPs,
    }.get(spec.precision, ceilings.tf32_TFLOPs)
    compute_ms = spec.operations / 1e9 / (_tensor_core_share(spec) * rate)
    traffic_ms = spec.bytes_moved / (_traffic_share(spec) * ceilings.copy_TBps * 1e9)
    kernel_ms = max(traffic_ms, compute_ms)
    if _is_converted(spec):
        how = "cuDNN on tensor cores, converted to channels_last and back"
        return kernel_ms + _conversion_ms(spec, ceilings), how
    return kernel_ms + _begins_ms(spec), "cuDNN on tensor cores"


def _float32(spec: ConvSpec, ceilings: Ceilings) -> tuple[float, str]:
    """cuDNN's time on the float32 units."""
    share, algorithm = _cudnn_float32_share(spec)
    compute_ms = spec.operations / 1e9 / (share * ceilings.fp32_TFLOPs)
    traffic_ms = spec.bytes_moved / (ceilings.copy_TBps * 1e9)
    return max(traffic_ms, compute_ms) + _begins_ms(spec), f"cuDNN, {algorithm}"


def _begins_ms(spec: ConvSpec) -> float:
    """What a convolution without conversions takes however small it is."""
    return _BEGINS_MS[spec.direction] if spec.groups == 1 else _GROUPED_BEGINS_MS


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
        if channels >= TENSOR_CORE_CHANNELS:
            return _BEST_SHARE
        return (0.005 if spec.groups > 1 else 0.03) * channels
    filled = _filled(spec)
    if spec.direction is Direction.GRAD_WEIGHT:
        if spec.groups > 1:
            return min(0.0045 * filled, 0.5)
        share = min(0.06 + 0.004 * filled, 0.36 + 0.0003 * filled)
        share *= _LEFT_OF_HALF_A_TILE if spec.out_channels <= _HALF_A_TILE else 1
        return share * (_LEFT_OF_DILATED_WEIGHT_GRADIENT if spec.dilation != (1, 1) else 1)
    width, taps = _resulting(spec), math.prod(spec.kernel_size)
    if spec.groups > 1:
        return min(0.005 * width, _BEST_SHARE)
    if taps == 1:
        return _BEST_SHARE
    share = min(width / _MANY_CHANNELS, 0.5 + 0.2 * math.log2(max(width, 64) / 64), 0.95)
    least = _LEAST_SHARE
    if spec.stride != (1, 1) and _is_grad_input(spec):
        share *= _LEFT_OF_STRIDED_INPUT_GRADIENT
        least = min(least, 0.015 * math.prod(spec.stride))
    if _summed(spec) < TENSOR_CORE_CHANNELS:
        most = _FEW_CHANNELS_SHARE if taps <= _NINE_TAPS else _FEW_CHANNELS_OF_MANY_TAPS_SHARE
        share = min(share, most)
    return max(share, least)


def _traffic_share(spec: ConvSpec) -> float:
    """Of the copy rate, the best that is reached where traffic takes longest.

    Less was measured of gradients of one tap: of the input where strided, and of weights where
    planes are large or channels are few.
    """
    if math.prod(spec.kernel_size) > 1:
        return 1
    if _is_grad_input(spec) and spec.stride != (1, 1) and spec.groups == 1:
        return _STRIDED_MATRIX_TRAFFIC_SHARE
    if spec.direction is not Direction.GRAD_WEIGHT:
        return 1
    if spec.groups == 1 and min(spec.in_channels, spec.out_channels) < _NARROW_MATRIX:
        return _NARROW_MATRIX_TRAFFIC_SHARE
    return _LARGE_PLANE_TRAFFIC_SHARE if math.prod(spec.output_size) >= _LARGE_PLANE else 1


def _is_converted(spec: ConvSpec) -> bool:
    """Whether tensors come as NCHW to a kernel of channels_last, which one of one tap is not."""
    return not spec.is_channels_last and math.prod(spec.kernel_size) > 1 and spec.groups == 1


def _conversion_ms(spec: ConvSpec, ceilings: Ceilings) -> float:
    """The time of bringing x and y to channels_last, or back: each is read and written."""
    elements = math.prod(spec.input_shape) + math.prod(spec.output_shape)
    slower = 1.0
    if spec.dtype.itemsize == 2:
        slower = 1.5 if spec.direction is Direction.GRAD_WEIGHT else 1.4
    copies_ms = slower * 2 * elements * spec.dtype.itemsize / (ceilings.copy_TBps * 1e9)
    return copies_ms + _CONVERTED_BEGINS_MS


def _depthwise_ms(spec: ConvSpec) -> float:
    """PyTorch's own depthwise kernels: a time per position and one per tap, at the least seen.

    They are bound by instructions, so they take as long in half precision, except where cuDNN has a
    kernel: 3x3 in float16, and channels_last. A weight gradient's sum of each tap goes over one
    plane after the other.
    """
    taps = math.prod(spec.kernel_size)
    positions = math.prod(spec.output_shape)
    if spec.direction is Direction.GRAD_INPUT:
        positions = math.prod(spec.input_shape)
    if spec.is_channels_last:
        per_position = (0.26 if spec.precision in _FLOAT32_CLASSES else 0.14) * taps
    elif spec.direction is Direction.GRAD_WEIGHT:
        plane = math.prod(spec.output_size)
        per_position = 4 + 1.1 * taps * (1 + _POSITIONS_OF_A_PLANE / plane)
    elif spec.precision is Precision.FLOAT16 and taps == 9:
        per_position = 2.3
    elif spec.direction is Direction.FORWARD:
        is_compiled_in = spec.kernel_size in _DEPTHWISE_KERNEL_SIZES
        per_position = (7 if is_compiled_in else 10) + 0.24 * taps
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
    if plain and taps > _NINE_TAPS and fits and not (is_forward and spec.groups > 1):
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
    few_filters = _filled_by_filters(spec)
    if spec.kernel_size == (3, 3) and plain:
        share = min(max(0.0113 * filled, 0.75), 2.8)
        return share * few_filters, "Winograd or implicit product"
    few = _summed(spec) < _FEW_CHANNELS and spec.stride != (1, 1)
    return (0.42 if few else 0.66) * few_filters, "implicit product"


def _filled_by_filters(spec: ConvSpec) -> float:
    """Of the narrowest tile in float32, at least an eighth."""
    return min(1, max(0.125, spec.out_channels / _FILTERS_OF_A_TILE))


def _float32_forward_share(spec: ConvSpec, plain: bool, taps: int) -> tuple[float, str]:
    few_filters = _filled_by_filters(spec)
    if taps == 1:
        return 0.65 if spec.stride == (1, 1) else 0.75, "a matrix product"
    if taps <= _NINE_TAPS and plain:
        return (2.05 if _is_winograd(spec) else 0.85) * few_filters, "Winograd or implicit product"
    if taps <= _NINE_TAPS:
        return 0.7, "implicit product, strided or dilated"
    left = _LEFT_OF_FEW_FILTERS
    if _summed(spec) < _FEW_CHANNELS:
        left = _LEFT_OF_FEW_FILTERS_AND_CHANNELS
    left = max(left, min(1.0, spec.out_channels / _MANY_CHANNELS))
    return _MANY_TAPS_SHARE * left * few_filters, "implicit product of more than nine taps"


def _float32_input_gradient_share(spec: ConvSpec, plain: bool, taps: int) -> tuple[float, str]:
    if taps == 1:
        few = spec.out_channels <= _MANY_CHANNELS
        many = spec.in_channels > _MANY_CHANNELS
        return 0.4 if few else 0.6 if many else 0.5, "a matrix product"
    if spec.stride != (1, 1):
        share = min(0.3 + 0.001 * spec.in_channels, 0.66) if taps <= _NINE_TAPS else 0.7
        return share, "implicit product, strided"
    if not plain:
        return 0.7 if taps <= _NINE_TAPS else 0.4, "implicit product, dilated"
    if taps > _NINE_TAPS:
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
