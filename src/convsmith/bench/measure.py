"""One layer in one direction, measured: checked against float64, then timed, in one run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from convsmith import choice, planner, roofline, timing
from convsmith.bench import accuracy, contestants, memory, reference
from convsmith.bench.accuracy import MAIN, Distribution, ErrorSums
from convsmith.bench.contestants import Convolution, Operands, Peer
from convsmith.bench.record import Row
from convsmith.bench.rows import Pair, enter_times, judged_row
from convsmith.bench.suites import DTYPE, Layer, Layout
from convsmith.bench.switches import cudnn_autotuning, precision_class
from convsmith.planner import Plan
from convsmith.roofline import Ceilings
from convsmith.spec import Direction, Precision


@dataclass(frozen=True)
class Conditions:
    """What holds for every measurement of a run.

    Args:
        suite: its name in the rows.
        device: the GPU.
        ceilings: as measured on it in this run.
        against: whom to time; PyTorch's own NCHW convolution is always among them.
        kernel: a family to insist on, instead of ConvSmith's choice.
    """

    suite: str
    device: torch.device
    ceilings: Ceilings
    against: tuple[Peer, ...] = (Peer.TORCH, Peer.CHANNELS_LAST)
    kernel: str | None = None


def measure(
    layer: Layer,
    direction: Direction,
    precisions: Sequence[Precision],
    layout: Layout,
    conditions: Conditions,
) -> list[Row]:
    """A row for each of ``precisions``, which share operands and float64 references."""
    rows: list[Row] = []
    with cudnn_autotuning():
        for dtype in dict.fromkeys(DTYPE[precision] for precision in precisions):
            classes = [precision for precision in precisions if DTYPE[precision] is dtype]
            rows += _Measurement(layer, direction, layout, conditions).rows(classes, dtype)
    return rows


class _Measurement:
    def __init__(
        self, layer: Layer, direction: Direction, layout: Layout, conditions: Conditions
    ) -> None:
        self._layer = layer
        self._direction = direction
        self._layout = layout
        self._conditions = conditions
        self._device = conditions.device

    def rows(self, classes: list[Precision], dtype: torch.dtype) -> list[Row]:
        """The rows of the precision classes of one dtype."""
        errors: dict[Precision, dict[str, Pair]] = {one: {} for one in classes}
        for distribution in accuracy.distributions(dtype):
            operands = self._draw(distribution, dtype)
            for precision, pair in self._errors(classes, operands).items():
                errors[precision][distribution.value] = pair
        # The operands of the last check, of MAIN, are also what is timed.
        return [self._row(one, operands, errors[one]) for one in classes]

    def _draw(self, distribution: Distribution, dtype: torch.dtype) -> Operands:
        drawn = Operands.draw(self._layer, distribution, dtype, self._device)
        return drawn.to(self._layout)

    def _errors(self, classes: list[Precision], operands: Operands) -> dict[Precision, Pair]:
        """Both results' errors on ``operands`` in each class, against one float64 reference."""
        results = {one: self._results(one, operands) for one in classes}
        sums = {one: (ErrorSums(self._device), ErrorSums(self._device)) for one in classes}
        spec = self._layer.spec(self._direction, classes[0], self._layout)
        for where, exact in reference.stream(spec, *operands.read_by(self._direction)):
            for one in classes:
                for result, total in zip(results[one], sums[one], strict=True):
                    total.add(result[where], exact)
        return {one: Pair(ours.errors(), theirs.errors()) for one, (ours, theirs) in sums.items()}

    def _results(self, precision: Precision, operands: Operands) -> tuple[Tensor, Tensor]:
        """Ours and PyTorch's, ours in memory that was full of NaN."""
        shape = {
            Direction.FORWARD: self._layer.output_shape,
            Direction.GRAD_INPUT: self._layer.input_shape,
            Direction.GRAD_WEIGHT: self._layer.weight_shape,
        }[self._direction]
        with self._as_planned(precision):
            theirs = self._pytorch(operands)()
            accuracy.poison(shape, operands.image.dtype, self._device)
            return self._ours(operands)(), theirs

    def _plan(self, precision: Precision) -> Plan:
        """What runs when its kernel is asked for by name, as is done here: see `_as_planned`."""
        spec = self._layer.spec(self._direction, precision, self._layout)
        with precision_class(precision):
            wanted = self._conditions.kernel
            kernel = wanted or choice.chosen_plan(spec, self._device).kernel
            return choice.chosen_plan(spec, self._device, kernel)

    @contextmanager
    def _as_planned(self, precision: Precision) -> Iterator[None]:
        """Precision class and kernel set. A kernel that cannot be had is an error.

        Elsewhere PyTorch would silently run in its place.
        """
        with precision_class(precision), planner.use_kernel(self._plan(precision).kernel):
            yield

    def _ours(self, operands: Operands) -> Convolution:
        return contestants.ours(self._layer, self._direction, operands)

    def _pytorch(self, operands: Operands) -> Convolution:
        return contestants.pytorch(self._layer, self._direction, operands)

    def _row(self, precision: Precision, operands: Operands, errors: dict[str, Pair]) -> Row:
        plan = self._plan(precision)
        key = (
            self._conditions.suite,
            self._layer.name,
            self._direction.value,
            precision.value,
            self._layout.value,
        )
        floor_ms = roofline.floor_ms(plan.spec, self._conditions.ceilings)
        row = judged_row(key, plan.kernel, floor_ms, plan.predicted_ms, errors, MAIN.value)
        if "fault" in row:
            return row
        with self._as_planned(precision):
            calls = self._calls(operands)
            times = timing.alternate(calls, timing.CudaClock(self._device))
            row["extra_bytes"] = memory.extra_bytes(calls["ms"], self._device)
            row["torch_extra_bytes"] = memory.extra_bytes(calls["torch_ms"], self._device)
        enter_times(row, times)
        return row

    def _calls(self, operands: Operands) -> dict[str, Convolution]:
        """What is timed, by the names of the record's columns."""
        calls = {"ms": self._ours(operands), "torch_ms": self._pytorch(operands)}
        if Peer.CHANNELS_LAST in self._conditions.against:
            calls["torch_channels_last_ms"] = self._pytorch(operands.to(Layout.NHWC))
        if Peer.COMPILE in self._conditions.against:
            calls["torch_compile_ms"] = contestants.compiled(self._layer, self._direction, operands)
        return calls
