"""Float64 references of the three convolutions, summed tap by tap as matrix products.

For each tap (r, s) of the filter, with x[r, s] the input positions that it meets,

    forward          y          += w[:, :, r, s] @ x[r, s]
    input gradient   dx[r, s]   += w[:, :, r, s]^T @ dy
    weight gradient  dw[r, s]    = dy @ x[r, s]^T

A float64 matrix product runs near a GPU's float64 rate, where PyTorch's float64 convolution falls
short of it by orders of magnitude on some layers; and a reference of its own shares no fault with
what it judges. Batches are taken in parts, so that float64 copies of large tensors need not fit.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from convsmith.spec import ConvSpec, Direction

# The largest float64 tensor of a part, in elements: 1 GiB.
PART_ELEMENTS = 2**27


def stream(spec: ConvSpec, first: Tensor, second: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """The float64 result of ``spec``, in parts: (where it lies along the first axis, the part).

    Args:
        spec: what is computed; its tensors' strides do not matter here.
        first, second: forward (input, weight); input gradient (upstream gradient, weight); weight
            gradient (upstream gradient, input). Any floating dtype.
    """
    if spec.direction is Direction.GRAD_WEIGHT:
        parts = [
            _weight_gradient(spec, first[images].double(), second[images].double())
            for images in image_parts(spec)
        ]
        yield slice(None), torch.stack(parts).sum(0)
        return
    compute = _forward if spec.direction is Direction.FORWARD else _input_gradient
    weight = second.double()
    for images in image_parts(spec):
        yield images, compute(spec, first[images].double(), weight)


def compute(spec: ConvSpec, first: Tensor, second: Tensor) -> Tensor:
    """The float64 result of ``spec`` in one tensor; arguments as for `stream`."""
    result = torch.empty(spec.result_shape, dtype=torch.float64, device=first.device)
    for where, part in stream(spec, first, second):
        result[where] = part
    return result


def image_parts(spec: ConvSpec) -> Iterator[slice]:
    """The batch cut into parts whose tensors hold at most PART_ELEMENTS, one image at least."""
    _, channels, height, width = spec.input_shape
    padded = (height + 2 * spec.padding[0]) * (width + 2 * spec.padding[1])
    image = max(channels * padded, math.prod(spec.output_shape[1:]))
    if spec.direction is Direction.GRAD_WEIGHT:
        image = max(image, _row_products(spec))
    step = max(1, PART_ELEMENTS // image)
    for start in range(0, spec.batch, step):
        yield slice(start, start + step)


def _row_products(spec: ConvSpec) -> int:
    """Elements that the weight gradient's products of one tap take for one image."""
    if _channels_per_group(spec) == 1:
        return math.prod(spec.output_shape[1:])
    return spec.output_size[0] * spec.out_channels * _channels_per_group(spec)


def _channels_per_group(spec: ConvSpec) -> int:
    return spec.in_channels // spec.groups


def _taps(spec: ConvSpec) -> Iterator[tuple[int, int]]:
    for row in range(spec.kernel_size[0]):
        for column in range(spec.kernel_size[1]):
            yield row, column


def _by_group(spec: ConvSpec, tensor: Tensor, axis: int) -> Tensor:
    """``tensor`` with the channels along ``axis`` split into (group, channel of the group)."""
    shape = (*tensor.shape[:axis], spec.groups, -1, *tensor.shape[axis + 1 :])
    return tensor.reshape(shape)


def _pad(spec: ConvSpec, images: Tensor) -> Tensor:
    vertical, horizontal = spec.padding
    return F.pad(images, (horizontal, horizontal, vertical, vertical))


def _met_by(spec: ConvSpec, padded: Tensor, tap: tuple[int, int]) -> Tensor:
    """The view (image, group, channel, P, Q) of ``padded`` that ``tap`` is multiplied with."""
    vertical, horizontal = (
        slice(place * dilation, place * dilation + (count - 1) * stride + 1, stride)
        for place, dilation, count, stride in zip(
            tap, spec.dilation, spec.output_size, spec.stride, strict=True
        )
    )
    return _by_group(spec, padded, 1)[..., vertical, horizontal]


def _forward(spec: ConvSpec, images: Tensor, weight: Tensor) -> Tensor:
    padded = _pad(spec, images)
    grouped = _by_group(spec, weight, 0)  # group, filter, channel, R, S
    filters = spec.out_channels // spec.groups
    shape = (len(images), spec.groups, filters, *spec.output_size)
    total = images.new_zeros(shape)
    for tap in _taps(spec):
        met = _met_by(spec, padded, tap)
        factor = grouped[:, :, :, tap[0], tap[1]]
        if _channels_per_group(spec) == 1:
            total.addcmul_(factor[..., None], met)
        else:
            total += (factor @ met.flatten(3)).view(shape)
    return total.flatten(1, 2)


def _input_gradient(spec: ConvSpec, upstream: Tensor, weight: Tensor) -> Tensor:
    vertical, horizontal = spec.padding
    height, width = spec.height + 2 * vertical, spec.width + 2 * horizontal
    padded = upstream.new_zeros(len(upstream), spec.in_channels, height, width)
    grouped = _by_group(spec, weight, 0).transpose(1, 2)  # group, channel, filter
    gradient = _by_group(spec, upstream, 1)
    filters = spec.out_channels // spec.groups
    for tap in _taps(spec):
        met = _met_by(spec, padded, tap)
        factor = grouped[..., tap[0], tap[1]]
        if _channels_per_group(spec) == filters == 1:
            met.addcmul_(factor[..., None], gradient)
        else:
            met += (factor @ gradient.flatten(3)).view(met.shape)
    return padded[..., vertical : vertical + spec.height, horizontal : horizontal + spec.width]


def _weight_gradient(spec: ConvSpec, upstream: Tensor, images: Tensor) -> Tensor:
    padded = _pad(spec, images)
    gradient = _by_group(spec, upstream, 1)
    # One product for each image and output row: a single one over all pixels would leave most of
    # a GPU idle, its result being so small.
    rows = gradient.permute(0, 3, 1, 2, 4).contiguous()  # image, P, group, filter, Q
    filters = spec.out_channels // spec.groups
    total = images.new_empty(spec.groups, filters, *spec.weight_shape[1:])
    for tap in _taps(spec):
        met = _met_by(spec, padded, tap)
        if _channels_per_group(spec) == 1:
            products = (gradient * met).sum((0, 3, 4)).unsqueeze(-1)
        else:
            met_rows = met.permute(0, 3, 1, 2, 4).contiguous()
            products = (rows @ met_rows.transpose(-1, -2)).sum((0, 1))
        total[..., tap[0], tap[1]] = products
    return total.flatten(0, 1)
