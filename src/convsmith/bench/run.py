"""Suites, measured row by row into a record that is on disk whole at any moment."""

from __future__ import annotations

import dataclasses
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

import torch

from convsmith import choice
from convsmith.bench import ceilings, record
from convsmith.bench.contestants import Peer
from convsmith.bench.digest import kernel_digest
from convsmith.bench.measure import Conditions, measure
from convsmith.bench.record import Record, Row, RowKey
from convsmith.bench.selections import Selection
from convsmith.bench.suites import Layer, Layout
from convsmith.errors import ConvSmithError
from convsmith.launch import compile_ahead
from convsmith.roofline import Ceilings
from convsmith.spec import ConvSpec, Direction, Precision

Observer = Callable[[Row], None]


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


def open_rows(selections: Sequence[Selection], whole: Record | None) -> list[RowKey]:
    """The rows of ``selections`` that ``whole`` does not hold, or holds as wrong."""
    rows = whole["rows"] if whole else []
    done = {record.key_of(row) for row in rows if "fault" not in row}
    return [key for one in selections for key in one.row_keys() if key not in done]


def fill(
    whole: Record,
    selections: Sequence[Selection],
    device: torch.device,
    *,
    output: Path | None = None,
    against: Sequence[Peer] = (Peer.TORCH, Peer.CHANNELS_LAST),
    kernel: str | None = None,
    seconds: float | None = None,
    observe: Observer = lambda row: None,
) -> None:
    """Measure what ``whole`` lacks of ``selections``, in turn, as part of its last run.

    Args:
        whole: from `begin`; it gets the rows.
        selections: the rows wanted.
        device: the GPU.
        output: where ``whole`` is written, anew after every layer and direction.
        against: whom to time beside ConvSmith.
        kernel: a family to insist on, instead of ConvSmith's choice.
        seconds: no layer is begun after this time.
        observe: is called with each row as it is measured.
    """
    started = time.monotonic()
    rates = Ceilings(**whole["runs"][-1]["ceilings"])
    parts = _open_parts(selections, whole)
    specs = [spec for part in parts for spec in part.specs()]
    plans = [plan for spec in specs for plan in choice.plans_in_question(spec, device, kernel)]
    compile_ahead(plans, device)
    for part in parts:
        if seconds is not None and time.monotonic() - started > seconds:
            break
        conditions = Conditions(part.suite, device, rates, tuple(against), kernel)
        for row in _measure_if_it_fits(part, conditions):
            record.enter(whole, row)
            observe(row)
        if output is not None:
            record.save(whole, output)
        torch.cuda.empty_cache()


@dataclass(frozen=True)
class _Part:
    """What is measured together, because it shares operands and references."""

    suite: str
    layer: Layer
    direction: Direction
    layout: Layout
    precisions: tuple[Precision, ...]

    def specs(self) -> list[ConvSpec]:
        return [self.layer.spec(self.direction, one, self.layout) for one in self.precisions]


def _open_parts(selections: Sequence[Selection], whole: Record) -> list[_Part]:
    wanted = set(open_rows(selections, whole))
    parts = []
    for selection in selections:
        for layer, direction, layout in selection.groups():
            precisions = tuple(
                one
                for one in selection.precisions
                if selection.key(layer, direction, one, layout) in wanted
            )
            if precisions:
                parts.append(_Part(selection.suite, layer, direction, layout, precisions))
    return parts


def _measure_if_it_fits(part: _Part, conditions: Conditions) -> list[Row]:
    try:
        return measure(part.layer, part.direction, part.precisions, part.layout, conditions)
    except torch.cuda.OutOfMemoryError:
        warnings.warn(
            f"{part.layer.name} {part.direction.value} is not measured: this GPU's memory is too "
            "small",
            stacklevel=3,
        )
        return []
