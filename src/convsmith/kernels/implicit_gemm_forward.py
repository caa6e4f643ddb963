"""What the implicit_gemm family computes: a forward convolution, also for an input gradient."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, replace

from convsmith.kernels.implicit_gemm_cut import DOUBLE_SHAPES, HALF
from convsmith.kernels.implicit_gemm_phases import MOST_APART, Phases, phase_taps
from convsmith.spec import ConvSpec, Direction, Pair, Shape

LEAST_GROUP_CHANNELS = 8  # of a group that is not unfolded
SECTOR_BYTES = 32  # memory reads one that is to be written in part
MOST_TILE_ROWS = 2 * max(shape.rows for shape in DOUBLE_SHAPES)  # of two warpgroups together


@dataclass(frozen=True)
class Forward:
    """The forward convolution that computes a ConvSpec. Pairs are (rows, columns).

    Args:
        itemsize: bytes of an element.
        batch, groups: images; channels and filters are of a group.
        in_size, out_size, kernel, stride, padding, dilation: its geometry.
        reach: from what the first tap meets to what the last one does.
        in_strides, out_strides: in elements.
        weight_strides: of groups, filters, channels, rows and columns of taps.
        first_weight: where the first tap lies.
        phases: of an input gradient of a stride. Its filters are x's channels in every phase;
            those of one row phase, where these are apart.
        tap_counts: of each kind of filters; row phases that are apart are kinds.
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
    reach: Pair
    in_strides: Shape
    out_strides: Shape
    weight_strides: tuple[int, int, int, int, int]
    first_weight: int
    phases: Phases | None
    tap_counts: tuple[int, ...]

    @property
    def terms(self) -> int:
        """Of a sum."""
        taps = math.prod(self.kernel) if self.phases is None else self.phases.most_taps
        return self.channels * taps

    @property
    def unfolds(self) -> bool:
        """Whether channels are few: each with each column of the filter is one of its own."""
        return self.channels < LEAST_GROUP_CHANNELS

    @property
    def sector(self) -> int:
        """Elements of a sector of memory."""
        return SECTOR_BYTES // self.itemsize

    @property
    def run(self) -> int:
        """Elements of 16 bytes."""
        return 16 // self.itemsize

    def out_rows_begin_at_multiples_of(self, elements: int) -> bool:
        """Whether those of all images and filters do, counted from the first one."""
        return all(step % elements == 0 for step in self.out_strides[:3])


@functools.cache
def forwards_of(spec: ConvSpec) -> tuple[Forward, ...]:
    """The forward convolutions that compute ``spec``, each in another way.

    Of an input gradient, of stride 1, that of dy with the filters turned around; and with 1x1
    filters that of planes whose rows are joined. Of others, that of dy with a filter for each
    phase of x, whose row phases share blocks, or are apart.
    """
    if spec.direction is Direction.GRAD_INPUT and spec.stride != (1, 1):
        ways = (False, True) if 1 < spec.stride[0] <= MOST_APART else (False,)
        return tuple(phased_forward_of(spec, apart) for apart in ways)
    first = plain_forward_of(spec)
    return (first, with_joined_rows(first)) if can_join_rows(first) else (first,)


def can_join_rows(forward: Forward) -> bool:
    """Whether planes may be single rows, and are longer than a tile's.

    Rows have to follow one another. A tile then reaches over an image for each of its rows, and
    all of these have to be within 32 bits.
    """
    geometry = (forward.kernel, forward.stride, forward.padding)
    rows, columns = forward.in_size
    if geometry != ((1, 1), (1, 1), (0, 0)) or rows * columns <= HALF or rows == 1:
        return False
    images = min(forward.batch, MOST_TILE_ROWS)
    return all(
        of_row == columns * of_column and images * of_image < 2**31
        for of_image, _, of_row, of_column in (forward.in_strides, forward.out_strides)
    )


def with_joined_rows(forward: Forward) -> Forward:
    """``forward`` on planes of a single row, which 1x1 filters do not tell from others."""
    (of_image, of_plane, _, step), (to_image, to_plane, _, out_step) = (
        forward.in_strides,
        forward.out_strides,
    )
    pixels = math.prod(forward.in_size)
    return replace(
        forward,
        in_size=(1, pixels),
        out_size=(1, pixels),
        in_strides=(of_image, of_plane, pixels * step, step),
        out_strides=(to_image, to_plane, pixels * out_step, out_step),
    )


def plain_forward_of(spec: ConvSpec) -> Forward:
    """The forward convolution that computes ``spec``, a forward or a gradient of stride 1."""
    batch, _, *in_size = spec.input_shape
    out_channels, channels, *kernel = spec.weight_shape
    filters = out_channels // spec.groups
    of_filter, of_channel, of_row, of_column = spec.weight_strides
    steps = zip(spec.dilation, kernel, strict=True)
    rows, columns = (step * (taps - 1) for step, taps in steps)
    if spec.direction is Direction.FORWARD:
        return Forward(
            *(spec.dtype.itemsize, batch, spec.groups, channels, filters),
            *((in_size[0], in_size[1]), spec.output_size, (kernel[0], kernel[1])),
            *(spec.stride, spec.padding, spec.dilation, (rows, columns)),
            *(spec.input_strides, spec.output_strides),
            (filters * of_filter, of_filter, of_channel, of_row, of_column),
            first_weight=0,
            phases=None,
            tap_counts=(kernel[0] * kernel[1],),
        )
    return Forward(
        *(spec.dtype.itemsize, batch, spec.groups, filters, channels),
        *(spec.output_size, (in_size[0], in_size[1]), (kernel[0], kernel[1])),
        *(spec.stride, (rows - spec.padding[0], columns - spec.padding[1])),
        *(spec.dilation, (rows, columns)),
        *(spec.output_strides, spec.input_strides),
        (filters * of_filter, of_channel, of_filter, -of_row, -of_column),
        (kernel[0] - 1) * of_row + (kernel[1] - 1) * of_column,
        phases=None,
        tap_counts=(kernel[0] * kernel[1],),
    )


def phased_forward_of(spec: ConvSpec, apart: bool) -> Forward:
    """The forward convolution that computes ``spec``, an input gradient of a stride."""
    batch, _, height, width = spec.input_shape
    out_channels, channels, *kernel = spec.weight_shape
    filters = out_channels // spec.groups
    of_filter, of_channel, of_row, of_column = spec.weight_strides
    of_image, of_plane, *of_place = spec.input_strides
    rows, columns = phase_taps(spec, 0, apart), phase_taps(spec, 1, False)
    down, across = spec.stride
    phases = Phases(
        *(channels, (height, width), (kernel[0], kernel[1])),
        *(spec.stride, spec.padding, spec.dilation),
        x_strides=spec.input_strides,
        apart=down if apart else 1,
        most_taps=max(rows.counts) * max(columns.counts),
    )
    tap_rows = rows.counts if apart else (rows.count,)
    return Forward(
        *(spec.dtype.itemsize, batch, spec.groups, filters),
        channels * across * (1 if apart else down),
        *(spec.output_size, (-(-height // down), -(-width // across))),
        *((rows.count, columns.count), (1, 1), (rows.before, columns.before)),
        *((rows.step, columns.step), (rows.reach, columns.reach)),
        *(spec.output_strides, (of_image, of_plane, down * of_place[0], across * of_place[1])),
        (filters * of_filter, of_channel, of_filter, of_row, of_column),
        first_weight=0,
        phases=phases,
        tap_counts=tuple(count * columns.count for count in tap_rows),
    )
