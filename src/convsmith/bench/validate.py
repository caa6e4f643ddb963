"""What is wrong with a benchmark record, in sentences; an empty list means that it is evidence."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import fields
from datetime import date
from typing import Any, Literal

from convsmith.bench import accuracy, sanitizer, selections
from convsmith.bench.accuracy import MAIN, Errors
from convsmith.bench.digest import kernel_digest
from convsmith.bench.record import Record, Row, RowKey, key_of
from convsmith.bench.suites import DTYPE, SUITES, Layout
from convsmith.planner import KERNELS, TORCH
from convsmith.roofline import Ceilings, floor_ms
from convsmith.spec import Direction, Precision

_ErrorName = Literal["rms_error", "torch_rms_error", "max_error", "torch_max_error"]

# How far two numbers of a row may be apart that are computed from one another.
_AGREEMENT = 1e-6
# TF32 work done by half-precision products may take half of what the floor says.
_LARGEST_SHARE_OF_FLOOR = 2.0

_POSITIVE = (
    "floor_ms",
    "ms",
    "ms_p20",
    "ms_p80",
    "torch_ms",
    "torch_ms_p20",
    "torch_ms_p80",
    "torch_channels_last_ms",
    "ratio",
)
_COUNTS = ("extra_bytes", "torch_extra_bytes")
_ERRORS: tuple[_ErrorName, ...] = (
    "rms_error",
    "torch_rms_error",
    "max_error",
    "torch_max_error",
)


def faults(record: Record) -> list[str]:
    """Everything that keeps ``record`` from being complete and right."""
    return [*_faults_of_head(record), *_faults_of_evidence(record), *_faults_of_rows(record)]


def staleness(record: Record) -> str | None:
    """Why ``record`` says nothing of the kernels as they are now, and what to do; or None."""
    if record["kernel_digest"] == kernel_digest():
        return None
    return (
        f"kernels, their launch or the planner changed after the record of {record['gpu']} was "
        f"taken on {record['date']}: run `make gpu-record` on that GPU and commit what it writes"
    )


def required_rows() -> set[RowKey]:
    """What a complete record holds."""
    return {key for selection in selections.RECORDED for key in selection.row_keys()}


def _is_positive(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < math.inf


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _faults_of_head(record: Record) -> Iterator[str]:
    for name in ("gpu", "torch", "cuda"):
        if not (isinstance(record.get(name), str) and record.get(name)):
            yield f"{name} must be a name, it is {record.get(name)!r}"
    if not _is_count(record.get("cudnn")):
        yield f"cudnn must be a version number, it is {record.get('cudnn')!r}"
    try:
        date.fromisoformat(record["date"])
    except (KeyError, TypeError, ValueError):
        yield f"date must be YYYY-MM-DD, it is {record.get('date')!r}"
    if not re.fullmatch(r"[0-9a-f]{64}", str(record.get("kernel_digest"))):
        yield f"kernel_digest must be a SHA-256, it is {record.get('kernel_digest')!r}"
    yield from _faults_of_ceilings("ceilings", record.get("ceilings"))
    if not record.get("runs"):
        yield "runs must name at least one run"
    for place, run in enumerate(record.get("runs", [])):
        yield from _faults_of_ceilings(f"runs[{place}].ceilings", run.get("ceilings"))


def _faults_of_ceilings(name: str, ceilings: Any) -> Iterator[str]:
    names = {field.name for field in fields(Ceilings)}
    if not isinstance(ceilings, dict) or set(ceilings) != names:
        yield f"{name} must have {', '.join(sorted(names))}"
    elif not all(map(_is_positive, ceilings.values())):
        yield f"{name} must be positive, they are {ceilings}"


def _faults_of_evidence(record: Record) -> Iterator[str]:
    tests = record.get("tests")
    if tests is None or not all(_is_count(tests.get(n)) for n in ("passed", "failed", "skipped")):
        yield "tests must count passed, failed and skipped GPU tests"
    elif tests["failed"] or not tests["passed"]:
        yield f"GPU tests: {tests['passed']} passed, {tests['failed']} failed"
    found = record.get("sanitizer", {})
    for tool in sanitizer.TOOLS:
        if found.get(tool) != 0:
            yield f"compute-sanitizer's {tool} must find 0 errors, it found {found.get(tool)}"
    if not record.get("start_up"):
        yield "start_up must hold the times of first call, warm start and host overhead"


def _faults_of_rows(record: Record) -> Iterator[str]:
    rows = record.get("rows", [])
    keys = [key_of(row) for row in rows]
    for key, count in Counter(keys).items():
        if count > 1:
            yield f"{' '.join(key)}: there are {count} such rows"
    for key in sorted(required_rows() - set(keys)):
        yield f"{' '.join(key)}: not measured"
    for key, row in zip(keys, rows, strict=True):
        check = _faults_of_wrong_row if "fault" in row else _faults_of_row
        for fault in check(record, row):
            yield f"{' '.join(key)}: {fault}"


def _faults_of_wrong_row(record: Record, row: Row) -> Iterator[str]:
    yield f"wrong: {row['fault']}"
    if "ms" in row:
        yield "a wrong result has no time"


def _faults_of_row(record: Record, row: Row) -> Iterator[str]:
    values: dict[str, Any] = dict(row)
    bad = [name for name in _POSITIVE if not _is_positive(values.get(name))]
    bad += [name for name in _COUNTS if not _is_count(values.get(name))]
    if bad:
        yield f"{', '.join(bad)} must be positive numbers"
        return
    if not math.isclose(row["ratio"], row["torch_ms"] / row["ms"], rel_tol=_AGREEMENT):
        yield f"ratio {row['ratio']} is not torch_ms / ms"
    for name in ("ms", "torch_ms"):
        if not values[f"{name}_p20"] <= values[name] <= values[f"{name}_p80"]:
            yield f"{name} is not between its 20th and 80th percentile"
    if row["kernel"] not in KERNELS:
        yield f"unknown kernel {row['kernel']!r}"
    yield from _faults_of_floor(record, row)
    yield from _faults_of_errors(row)


def _faults_of_floor(record: Record, row: Row) -> Iterator[str]:
    layers = {layer.name: layer for layer in SUITES.get(row["suite"], ())}
    try:
        spec = layers[row["layer"]].spec(
            Direction(row["direction"]), Precision(row["precision"]), Layout(row["layout"])
        )
        ceilings = Ceilings(**record["runs"][row["run"]]["ceilings"])
    except (KeyError, ValueError, IndexError) as error:
        yield f"no such measurement: {error}"
        return
    floor = floor_ms(spec, ceilings)
    if not math.isclose(row["floor_ms"], floor, rel_tol=_AGREEMENT):
        yield f"floor_ms {row['floor_ms']} does not follow from the run's ceilings, {floor} does"
    if floor > _LARGEST_SHARE_OF_FLOOR * row["ms"]:
        yield f"{row['ms']} ms is less than this GPU can need: its floor is {floor} ms"


def _faults_of_errors(row: Row) -> Iterator[str]:
    precision = Precision(row["precision"])
    expected = {one.value: one for one in accuracy.distributions(DTYPE[precision])}
    if set(row["errors"]) != set(expected):
        yield f"errors must be measured on {', '.join(expected)}"
        return
    if any(row["errors"][MAIN.value][name] != row[name] for name in _ERRORS):
        yield f"its errors are not those on {MAIN.value}"
    for name, errors in row["errors"].items():
        fault = accuracy.fault(
            precision,
            Errors(errors["rms_error"], errors["max_error"]),
            Errors(errors["torch_rms_error"], errors["torch_max_error"]),
            same_function=row["kernel"] == TORCH,
        )
        if fault is not None:
            yield f"wrong on {name}: {fault}"
