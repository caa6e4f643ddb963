"""Benchmark records: what `make gpu-record` writes and `benchmarks/results/` holds.

A record is one JSON object; docs/benchmark.md describes every key. It grows row by row, is on disk
whole at any moment, and a run that was cut short is continued by the next one.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypedDict

from convsmith.errors import ConvSmithError

RowKey = tuple[str, str, str, str, str]

# What two records must share for one to go on where the other stopped.
IDENTITY = ("gpu", "torch", "cuda", "cudnn", "kernel_digest")


class ErrorFields(TypedDict):
    """Errors against float64 of ours and of PyTorch's result; docs/benchmark.md defines them."""

    rms_error: float
    torch_rms_error: float
    max_error: float
    torch_max_error: float


class _Times(TypedDict, total=False):
    """What only a right result has, in milliseconds and bytes; and what a wrong one has instead."""

    ms: float
    ms_p20: float
    ms_p80: float
    torch_ms: float
    torch_ms_p20: float
    torch_ms_p80: float
    torch_channels_last_ms: float
    torch_compile_ms: float
    ratio: float
    extra_bytes: int
    torch_extra_bytes: int
    fault: str
    earlier_faults: list[str]


class Row(_Times, ErrorFields):
    """One layer, direction, precision class and layout."""

    suite: str
    layer: str
    direction: str
    precision: str
    layout: str
    kernel: str
    run: int
    floor_ms: float
    predicted_ms: float | None
    errors: dict[str, ErrorFields]


class Run(TypedDict):
    """One process that measured rows; a row's ``run`` is its place among a record's runs."""

    started: str
    seed: int
    ceilings: dict[str, float]


class Tests(TypedDict):
    """The outcome of the GPU tests."""

    passed: int
    failed: int
    skipped: int


class _Evidence(TypedDict, total=False):
    tests: Tests
    sanitizer: dict[str, int]
    start_up: dict[str, Any]


class Record(_Evidence):
    """Everything measured of one set of kernels on one kind of GPU."""

    gpu: str
    torch: str
    cuda: str
    cudnn: int
    date: str
    kernel_digest: str
    ceilings: dict[str, float]
    runs: list[Run]
    rows: list[Row]


def key_of(row: Row) -> RowKey:
    """What no two rows of a record share."""
    return (row["suite"], row["layer"], row["direction"], row["precision"], row["layout"])


def enter(record: Record, row: Row) -> None:
    """Add a row that the record's last run measured, in place of an earlier one of its key."""
    row["run"] = len(record["runs"]) - 1
    rows = {key_of(one): one for one in record["rows"]}
    _remember_faults(row, rows.get(key_of(row)))
    rows[key_of(row)] = row
    record["rows"] = list(rows.values())


def _remember_faults(row: Row, before: Row | None) -> None:
    """Keep in ``row`` what was wrong when it was measured before: it may be right by chance."""
    if before is None:
        return
    faults = [*before.get("earlier_faults", ()), *row.get("earlier_faults", ())]
    if "fault" in before and before["fault"] != row.get("fault"):
        faults.append(before["fault"])
    if faults:
        row["earlier_faults"] = list(dict.fromkeys(faults))


def merge(earlier: Record, later: Record) -> Record:
    """One record of both; where both have a row, the one of the run that was begun last counts,
    with what was wrong before, and of other evidence the later record's.

    Raises:
        ConvSmithError: they are of different GPUs, software or kernels.
    """
    for name in IDENTITY:
        if earlier[name] != later[name]:  # type: ignore[literal-required]
            raise ConvSmithError(
                f"cannot merge records of different {name}: "
                f"{earlier[name]} and {later[name]}; measure again, into another file"  # type: ignore[literal-required]
            )
    # Both may have gone on from the same record: its runs are not entered twice.
    runs = list(earlier["runs"])
    runs += [run for run in later["runs"] if run not in runs]
    rows = {key_of(row): row for row in earlier["rows"]}
    for row in later["rows"]:
        known = rows.get(key_of(row))
        if known is None or _begun(earlier, known) <= _begun(later, row):
            moved = row.copy()
            moved["run"] = runs.index(later["runs"][row["run"]])
            _remember_faults(moved, known)
            rows[key_of(row)] = moved
    merged: Record = {**earlier, **later}
    merged["runs"] = runs
    merged["rows"] = list(rows.values())
    return merged


def _begun(record: Record, row: Row) -> str:
    """When the run of a row was begun: ISO times order like their texts."""
    return record["runs"][row["run"]]["started"]


def merge_all(records: Iterable[Record]) -> Record | None:
    """One record of all, or None where there is none."""
    merged: Record | None = None
    for record in records:
        merged = record if merged is None else merge(merged, record)
    return merged


def load(path: Path) -> Record:
    """The record in a file.

    Raises:
        ConvSmithError: it cannot be read, or is not a record.
    """
    try:
        record: Any = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ConvSmithError(f"{path} cannot be read as a benchmark record: {error}") from error
    missing = [name for name in (*IDENTITY, "runs", "rows") if name not in record]
    if missing:
        raise ConvSmithError(f"{path} is not a benchmark record: it has no {', '.join(missing)}")
    loaded: Record = record
    return loaded


def save(record: Record, path: Path) -> None:
    """Write a record, whole or not at all: one line for each row, so that changes can be read."""
    rows = [json.dumps(row) for row in record["rows"]]
    head = {name: value for name, value in record.items() if name != "rows"}
    text = json.dumps(head, indent=1).removesuffix("\n}")
    text += ',\n "rows": [\n  ' + ",\n  ".join(rows) + "\n ]\n}\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(text)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
