"""A suite, measured row by row into a record that is on disk whole at any moment."""

from __future__ import annotations

import dataclasses
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

import torch

from convsmith.bench import ceilings, record
from convsmith.bench.contestants import Peer
from convsmith.bench.digest import kernel_digest
from convsmith.bench.measure import Conditions, measure
from convsmith.bench.record import Record, Row, RowKey
from convsmith.bench.suites import DIRECTIONS, DTYPE, PRECISIONS, SUITES, Layer, Layout
from convsmith.errors import ConvSmithError
from convsmith.roofline import Ceilings
from convsmith.spec import Direction, Precision

Observer = Callable[[Row], None]


@dataclass(frozen=True)
class Selection:
    """Which rows of a suite are measured: all combinations of these."""

    suite: str = "core"
    layers: tuple[str, ...] = ()  # every layer of the suite where empty
    directions: tuple[Direction, ...] = DIRECTIONS
    precisions: tuple[Precision, ...] = PRECISIONS
    layouts: tuple[Layout, ...] = (Layout.NCHW,)

    def __post_init__(self) -> None:
        if self.suite not in SUITES:
            raise ConvSmithError(f"no suite {self.suite!r}; there is {', '.join(SUITES)}")
        known = [layer.name for layer in SUITES[self.suite]]
        unknown = [name for name in self.layers if name not in known]
        if unknown:
            raise ConvSmithError(
                f"suite {self.suite} has no layer {', '.join(unknown)}; it has {', '.join(known)}"
            )
        require_known(self.precisions)

    def groups(self) -> Iterator[tuple[Layer, Direction, Layout]]:
        """What is measured together; each in all the selection's precisions."""
        for layer in SUITES[self.suite]:
            if not self.layers or layer.name in self.layers:
                for direction in self.directions:
                    for layout in self.layouts:
                        yield layer, direction, layout

    def row_keys(self) -> list[RowKey]:
        """The keys of all its rows."""
        return [
            self.key(layer, direction, precision, layout)
            for layer, direction, layout in self.groups()
            for precision in self.precisions
        ]

    def key(
        self, layer: Layer, direction: Direction, precision: Precision, layout: Layout
    ) -> RowKey:
        """The key of one row."""
        return (self.suite, layer.name, direction.value, precision.value, layout.value)


def require_known(precisions: Sequence[Precision]) -> None:
    """Refuse a class that nothing is measured in.

    Raises:
        ConvSmithError: there is one.
    """
    unknown = [one.value for one in precisions if one not in DTYPE]
    if unknown:
        known = ", ".join(one.value for one in DTYPE)
        raise ConvSmithError(f"nothing is measured in {', '.join(unknown)}, only in {known}")


def require_gpu() -> torch.device:
    """The current CUDA device.

    Raises:
        ConvSmithError: there is none.
    """
    if not torch.cuda.is_available():
        raise ConvSmithError(
            "a benchmark needs an NVIDIA GPU, and PyTorch sees none: `convsmith doctor` says why"
        )
    return torch.device("cuda", torch.cuda.current_device())


def begin(device: torch.device, earlier: Record | None = None) -> Record:
    """``earlier`` with one more run, just started; or a record of that run alone.

    It measures the GPU's ceilings, which takes about two seconds.

    Raises:
        ConvSmithError: ``earlier`` is of another GPU, other software or other kernels.
    """
    now = datetime.now(timezone.utc)
    seed = torch.seed()
    measured = dataclasses.asdict(ceilings.measure(device))
    own: Record = {
        "gpu": torch.cuda.get_device_name(device),
        "torch": torch.__version__,
        "cuda": str(torch.version.cuda),
        "cudnn": torch.backends.cudnn.version() or 0,  # type: ignore[no-untyped-call]
        "date": now.date().isoformat(),
        "kernel_digest": kernel_digest(),
        "ceilings": measured,
        "runs": [
            {"started": now.isoformat(timespec="seconds"), "seed": seed, "ceilings": measured}
        ],
        "rows": [],
    }
    return own if earlier is None else record.merge(earlier, own)


def open_rows(selection: Selection, whole: Record | None) -> list[RowKey]:
    """The rows of ``selection`` that ``whole`` does not hold, or holds as wrong."""
    rows = whole["rows"] if whole else []
    done = {record.key_of(row) for row in rows if "fault" not in row}
    return [key for key in selection.row_keys() if key not in done]


def fill(
    whole: Record,
    selection: Selection,
    device: torch.device,
    *,
    output: Path | None = None,
    against: Sequence[Peer] = (Peer.TORCH, Peer.CHANNELS_LAST),
    kernel: str | None = None,
    seconds: float | None = None,
    observe: Observer = lambda row: None,
) -> None:
    """Measure what ``whole`` lacks of ``selection``, as part of its last run.

    Args:
        whole: from `begin`; it gets the rows.
        selection: the rows wanted.
        device: the GPU.
        output: where ``whole`` is written, anew after every layer and direction.
        against: whom to time beside ConvSmith.
        kernel: a family to insist on, instead of the planner's choice.
        seconds: no layer is begun after this time.
        observe: is called with each row as it is measured.
    """
    started = time.monotonic()
    rates = Ceilings(**whole["runs"][-1]["ceilings"])
    conditions = Conditions(selection.suite, device, rates, tuple(against), kernel)
    wanted = set(open_rows(selection, whole))
    for layer, direction, layout in selection.groups():
        precisions = [
            one
            for one in selection.precisions
            if selection.key(layer, direction, one, layout) in wanted
        ]
        if not precisions:
            continue
        if seconds is not None and time.monotonic() - started > seconds:
            break
        for row in _measure_if_it_fits(layer, direction, precisions, layout, conditions):
            record.enter(whole, row)
            observe(row)
        if output is not None:
            record.save(whole, output)
        torch.cuda.empty_cache()


def _measure_if_it_fits(
    layer: Layer,
    direction: Direction,
    precisions: Sequence[Precision],
    layout: Layout,
    conditions: Conditions,
) -> list[Row]:
    try:
        return measure(layer, direction, precisions, layout, conditions)
    except torch.cuda.OutOfMemoryError:
        warnings.warn(
            f"{layer.name} {direction.value} is not measured: this GPU's memory is too small",
            stacklevel=3,
        )
        return []
