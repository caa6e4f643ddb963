"""What the implicit_gemm family computes: a forward convolution, also for an input gradient."""

from __future__ import annotations

from dataclasses import dataclass

from convsmith.spec import ConvSpec, Direction, Pair, Shape


@dataclass(frozen=True)
class Forward:
    """The forward convolution that computes a ConvSpec. Pairs are (rows, columns).

    Args:
        itemsize: bytes of an element.
        batch, groups: images; channels and filters are of a group.
        in_size, out_size, kernel, stride, padding, dilation: its geometry.
        in_strides, out_strides: in elements.
        weight_strides: of groups, filters, channels, rows and columns of taps.
        first_weight: where the first tap lies.
    """

    itemsize: int
    batch: int
    groups: int
    channels: int
    filters: int
    in_size: Pair
    out_size: Pair
    kernel: Pair
    stride: Pair
    padding: Pair
    dilation: Pair
    in_strides: Shape
    out_strides: Shape
    weight_strides: tuple[int, int, int, int, int]
    first_weight: int

    @property
    def terms(self) -> int:
        """Of a sum."""
        return self.channels * self.kernel[0] * self.kernel[1]


def forward_of(spec: ConvSpec) -> Forward:
    """The forward convolution that computes ``spec``.

    Of an input gradient, of stride 1, that of dy with the filters turned around.
    """
    batch, _, *in_size = spec.input_shape
    out_channels, channels, *kernel = spec.weight_shape
    filters = out_channels // spec.groups
    of_filter, of_channel, of_row, of_column = spec.weight_strides
    if spec.direction is Direction.FORWARD:
        return Forward(
            *(spec.dtype.itemsize, batch, spec.groups, channels, filters),
            *((in_size[0], in_size[1]), spec.output_size, (kernel[0], kernel[1])),
            *(spec.stride, spec.padding, spec.dilation),
            *(spec.input_strides, spec.output_strides),
            (filters * of_filter, of_filter, of_channel, of_row, of_column),
            0,
        )
    rows, columns = (
        step * (taps - 1) - before
        for step, taps, before in zip(spec.dilation, kernel, spec.padding, strict=True)
    )
    return Forward(
        *(spec.dtype.itemsize, batch, spec.groups, filters, channels),
        *(spec.output_size, (in_size[0], in_size[1]), (kernel[0], kernel[1])),
        *(spec.stride, (rows, columns), spec.dilation),
        *(spec.output_strides, spec.input_strides),
        (filters * of_filter, of_channel, of_filter, -of_row, -of_column),
        (kernel[0] - 1) * of_row + (kernel[1] - 1) * of_column,
    )
