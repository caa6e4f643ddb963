"""Phases of an input gradient, in the implicit_gemm family (see implicit_gemm_phases.cuh)."""

from __future__ import annotations

import math
from dataclasses import dataclass

from convsmith.spec import ConvSpec, Pair, Shape

MOST_PHASES = 1024  # of rows and columns together
MOST_APART = 32  # kMostApart of implicit_gemm_problem.cuh
STAGED_FILTERS = 8  # that a warp stores at once


@dataclass(frozen=True)
class PhaseTaps:
    """The taps of one axis, as a convolution of dy has them for the phases of x.

    Args:
        before: padding of dy, from its first row to the first one that a tap meets.
        reach: from there to the last one.
        step: between neighbouring taps.
        count: of taps; where phases are apart, of the largest.
        counts: of each phase, of those that are its own.
    """

    before: int
    reach: int
    step: int
    count: int
    counts: tuple[int, ...]


def phase_taps(spec: ConvSpec, axis: int, apart: bool) -> PhaseTaps:
    """The taps of ``axis``: of all phases together, or of phases apart.

    Phase ``a`` of x, rows ``stride * i + a``, meets row ``i + n`` of dy with filter row ``r``
    where ``a + padding - dilation * r`` is ``n * stride``.
    """
    stride, dilation, padding = spec.stride[axis], spec.dilation[axis], spec.padding[axis]
    met = [
        [
            (phase + padding - dilation * index) // stride
            for index in range(spec.weight_shape[2 + axis])
            if (phase + padding - dilation * index) % stride == 0
        ]
        for phase in range(stride)
    ]
    first = min(min(places) for places in met if places)
    reach = max(max(places) for places in met if places) - first
    step = dilation // math.gcd(stride, dilation)
    if not apart and dilation % stride != 0:
        step = 1  # phases fall between each other's taps
    counts = tuple(map(len, met))
    return PhaseTaps(-first, reach, step, max(counts) if apart else reach // step + 1, counts)


@dataclass(frozen=True)
class Phases:
    """What an input gradient has beside the convolution of dy that computes it.

    Args:
        channels: of a group of x.
        x_size, kernel, stride, padding, dilation: of the convolution whose gradient it is.
        x_strides: of dx, in elements.
        apart: row phases whose filters have blocks of their own: all, or 1.
        most_taps: of an element of x.
    """

    channels: int
    x_size: Pair
    kernel: Pair
    stride: Pair
    padding: Pair
    dilation: Pair
    x_strides: Shape
    apart: int
    most_taps: int

    @property
    def together(self) -> int:
        """Column phases, which are neighbours, that a thread stores at once."""
        return math.gcd(self.stride[1], STAGED_FILTERS)

    @property
    def are_neighbours(self) -> bool:
        """Whether the columns of dx are, in memory."""
        return self.x_strides[3] == 1

    @property
    def fill_rows(self) -> bool:
        """Whether they leave no gaps, or of whole sectors."""
        return self.are_neighbours and self.together in (self.stride[1], STAGED_FILTERS)

    @property
    def rows_are_sectors(self) -> bool:
        """Whether eight neighbours in a row of dx lie in one sector of memory."""
        return all(step % 8 == 0 for step in self.x_strides[:3])

    @property
    def stores_vectors(self) -> bool:
        """Whether it stores them as a vector, of which rows of dx are whole numbers."""
        sizes = (*self.x_strides[:3], self.x_size[1])
        return self.are_neighbours and all(size % self.together == 0 for size in sizes)

    def numbers(self, phase_filters: int) -> tuple[int, ...]:
        """OutPhases of implicit_gemm_problem.cuh; ``phase_filters`` are of a row phase."""
        return (
            *(self.channels, *self.x_size, *self.kernel),
            *(*self.stride, *self.padding, *self.dilation, *self.x_strides[2:]),
            *(phase_filters, self.apart, self.stores_vectors),
        )


def no_phases() -> tuple[int, ...]:
    """OutPhases of what has none: one row phase, that of all blocks, and zeros."""
    return (*(0 for _ in range(14)), 1, 0)
