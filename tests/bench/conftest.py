"""A benchmark without a GPU: a clock of invented times, ceilings out of the air."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from clocks import InventedClock

from convsmith import timing
from convsmith.bench import accuracy, ceilings, digest, memory
from convsmith.bench.record import Record, Row
from convsmith.bench.selections import RECORDED
from convsmith.bench.suites import DTYPE, SUITES, Layer, Layout
from convsmith.roofline import Ceilings, floor_ms
from convsmith.spec import Direction, Precision

RATES = Ceilings(4.0, 50.0, 400.0, 750.0, 780.0)

# Small enough for the CPU, and one of each kind.
TINY = (
    Layer("dense", (2, 8, 9, 8), 4, (3, 3), stride=(2, 1), padding=(1, 0)),
    Layer("depthwise", (2, 6, 8, 6), 6, (2, 3), groups=6),
)


def extra_bytes(call: Callable[[], object], device: torch.device) -> int:
    """A count that tells that ``call`` was called."""
    call()
    return 4096


@pytest.fixture
def bench_on_cpu(monkeypatch: pytest.MonkeyPatch) -> torch.device:
    """The device of a machine whose clock, memory and ceilings are invented; suite ``tiny``."""
    monkeypatch.setattr(timing, "CudaClock", InventedClock)
    monkeypatch.setattr(memory, "extra_bytes", extra_bytes)
    monkeypatch.setattr(ceilings, "measure", lambda device: RATES)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "An Invented GPU")
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setitem(SUITES, "tiny", TINY)
    return torch.device("cpu")


def invented_row(suite: str, layer: Layer, direction: Direction, precision: Precision) -> Row:
    """A right row, as if it had been measured."""
    floor = floor_ms(layer.spec(direction, precision, Layout.NCHW), RATES)
    ms = 2 * floor
    errors: Any = {
        "rms_error": 1e-7,
        "torch_rms_error": 2e-7,
        "max_error": 5e-7,
        "torch_max_error": 5e-7,
    }
    return {
        "suite": suite,
        "layer": layer.name,
        "direction": direction.value,
        "precision": precision.value,
        "layout": "nchw",
        "kernel": "direct",
        "run": 0,
        "floor_ms": floor,
        "predicted_ms": 1.5 * floor,
        "errors": {one.value: dict(errors) for one in accuracy.distributions(DTYPE[precision])},
        **errors,
        "ms": ms,
        "ms_p20": 0.9 * ms,
        "ms_p80": 1.1 * ms,
        "torch_ms": 3 * ms,
        "torch_ms_p20": 2.9 * ms,
        "torch_ms_p80": 3.1 * ms,
        "torch_channels_last_ms": 1.5 * ms,
        "ratio": 3.0,
        "extra_bytes": 0,
        "torch_extra_bytes": 1024,
    }


@pytest.fixture
def record() -> Record:
    """A complete, right record with invented numbers."""
    return {
        "gpu": "An Invented GPU",
        "torch": "2.13.0",
        "cuda": "13.0",
        "cudnn": 91900,
        "date": "2026-01-31",
        "kernel_digest": digest.kernel_digest(),
        "ceilings": dataclasses.asdict(RATES),
        "runs": [
            {
                "started": "2026-01-31T12:00:00+00:00",
                "seed": 1,
                "ceilings": dataclasses.asdict(RATES),
            }
        ],
        "tests": {"passed": 100, "failed": 0, "skipped": 3},
        "sanitizer": {"memcheck": 0, "racecheck": 0, "synccheck": 0},
        "start_up": {"first_call_s": {"direct": 4.0}},
        "rows": [
            invented_row(selection.suite, layer, direction, precision)
            for selection in RECORDED
            for layer, direction, _ in selection.groups()
            for precision in selection.precisions
        ],
    }
