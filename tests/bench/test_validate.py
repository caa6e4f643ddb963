"""A right record has no faults; each kind of damage is found and named."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest

from convsmith.bench.record import Record, key_of
from convsmith.bench.validate import faults, required_rows, staleness

Damage = Callable[[Any], None]


def test_a_complete_right_record_has_no_faults(record: Record) -> None:
    assert faults(record) == []


def test_every_row_of_a_record_is_required(record: Record) -> None:
    assert required_rows() == {key_of(row) for row in record["rows"]}
    assert len(required_rows()) == 726


def drop(*path: Any) -> Damage:
    """Remove what ``path`` leads to."""

    def damage(record: Any) -> None:
        for step in path[:-1]:
            record = record[step]
        del record[path[-1]]

    return damage


def put(value: Any, *path: Any) -> Damage:
    """Put ``value`` where ``path`` leads."""

    def damage(record: Any) -> None:
        for step in path[:-1]:
            record = record[step]
        record[path[-1]] = value

    return damage


def both(*damages: Damage) -> Damage:
    def damage(record: Any) -> None:
        for one in damages:
            one(record)

    return damage


NAN = float("nan")
ROW = ("rows", 0)  # kb50 forward tf32
FLOAT32_ROW = ("rows", 1)
SWEEP_ROW = ("rows", 174)
HALF_ROW = ("rows", -1)  # convnext_dw7 grad_weight bfloat16
DAMAGE: dict[str, tuple[Damage, str]] = {
    "no GPU": (drop("gpu"), "gpu must be a name"),
    "no torch": (put("", "torch"), "torch must be a name"),
    "cudnn as text": (put("9.19", "cudnn"), "cudnn must be a version number"),
    "no date": (drop("date"), "date must be YYYY-MM-DD"),
    "other date": (put("31.1.2026", "date"), "date must be YYYY-MM-DD"),
    "digest cut": (put("abc", "kernel_digest"), "kernel_digest must be a SHA-256"),
    "no ceilings": (drop("ceilings"), "ceilings must have"),
    "a ceiling less": (drop("ceilings", "copy_TBps"), "ceilings must have"),
    "ceiling of zero": (put(0, "ceilings", "fp32_TFLOPs"), "ceilings must be positive"),
    "no runs": (put([], "runs"), "runs must name at least one run"),
    "run's ceiling": (put(NAN, "runs", 0, "ceilings", "copy_TBps"), "runs[0].ceilings"),
    "no tests": (drop("tests"), "tests must count"),
    "tests failed": (put(1, "tests", "failed"), "100 passed, 1 failed"),
    "tests not run": (put(0, "tests", "passed"), "0 passed"),
    "no sanitizer": (drop("sanitizer"), "memcheck must find 0 errors, it found None"),
    "a race": (put(2, "sanitizer", "racecheck"), "racecheck must find 0 errors, it found 2"),
    "no start-up": (drop("start_up"), "start_up must hold"),
    "row missing": (drop(*ROW), "core kb50 forward tf32 nchw: not measured"),
    "row of the sweep missing": (drop(*SWEEP_ROW), "depthwise dw_b1_c32_112_k3 forward float32"),
    "half row missing": (drop(*HALF_ROW), "core convnext_dw7 grad_weight bfloat16 nchw: not"),
    "row twice": (
        lambda record: record["rows"].append(copy.deepcopy(record["rows"][0])),
        "core kb50 forward tf32 nchw: there are 2 such rows",
    ),
    "row wrong": (put("randn: rms error nan, at most 1e-07", *ROW, "fault"), "wrong: randn"),
    "wrong with a time": (put("nan", *ROW, "fault"), "a wrong result has no time"),
    "time missing": (drop(*ROW, "ms"), "ms must be positive"),
    "time of zero": (put(0.0, *ROW, "torch_ms"), "torch_ms must be positive"),
    "time negative": (put(-1.0, *ROW, "ms_p20"), "ms_p20 must be positive"),
    "time NaN": (put(NAN, *ROW, "ms"), "ms must be positive"),
    "time as text": (put("1 ms", *ROW, "ms"), "ms must be positive"),
    "no channels_last": (drop(*ROW, "torch_channels_last_ms"), "torch_channels_last_ms must be"),
    "memory as a fraction": (put(0.5, *ROW, "extra_bytes"), "extra_bytes must be"),
    "ratio by hand": (put(3.1, *ROW, "ratio"), "ratio 3.1 is not torch_ms / ms"),
    "spread": (put(1e-9, *ROW, "ms_p80"), "ms is not between"),
    "kernel": (put("magic", *ROW, "kernel"), "unknown kernel 'magic'"),
    "run of a row": (put(7, *ROW, "run"), "no such measurement"),
    "direction": (put("sideways", *ROW, "direction"), "no such measurement"),
    "layer": (put("kb51", *ROW, "layer"), "no such measurement"),
    "floor": (put(1e-3, *ROW, "floor_ms"), "does not follow from the run's ceilings"),
    "too fast": (
        lambda record: record["rows"][0].update(
            ms=1e-3, ms_p20=1e-3, ms_p80=1e-3, ratio=record["rows"][0]["torch_ms"] / 1e-3
        ),
        "less than this GPU can need",
    ),
    "distribution": (drop(*ROW, "errors", "wide"), "errors must be measured on rand, wide, randn"),
    "main errors": (put(1e-8, *ROW, "rms_error"), "its errors are not those on randn"),
    "float32 rms": (
        put(2.1e-7, *FLOAT32_ROW, "errors", "wide", "rms_error"),
        "wrong on wide: rms error 2.1e-07, at most 2e-07",
    ),
    "float32 largest": (
        put(5.1e-7, *FLOAT32_ROW, "errors", "rand", "max_error"),
        "wrong on rand: largest error",
    ),
    "tf32 rms": (put(8e-4, *ROW, "errors", "rand", "rms_error"), "wrong on rand: rms error"),
    "NaN error": (put(NAN, *ROW, "errors", "wide", "max_error"), "wrong on wide"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_found_and_named(name: str, record: Record) -> None:
    damage, text = DAMAGE[name]
    damage(record)
    found = faults(record)
    assert any(text in fault for fault in found), found
    # Damage to a run is damage to each of its rows; damage to a row is nobody else's.
    assert len(found) <= 3 or name in ("no runs", "run's ceiling")


def test_every_fault_is_reported_at_once(record: Record) -> None:
    for name in ("tests failed", "a race", "ratio by hand"):
        DAMAGE[name][0](record)
    assert len(faults(record)) == 3


def test_pytorchs_own_convolution_may_differ_from_itself(record: Record) -> None:
    row = record["rows"][1]
    row["errors"]["wide"]["rms_error"] = 2.1e-7
    row["kernel"] = "torch"
    assert faults(record) == []


def test_tf32_is_judged_as_tf32(record: Record) -> None:
    """Errors of the class are right where PyTorch computed exactly, on a depthwise layer say."""
    record["rows"][0]["errors"]["rand"]["rms_error"] = 3e-4
    assert faults(record) == []


def test_a_record_of_these_kernels_is_not_stale(record: Record) -> None:
    assert staleness(record) is None


def test_a_stale_record_names_the_remedy(record: Record) -> None:
    record["kernel_digest"] = "0" * 64
    assert "run `make gpu-record`" in str(staleness(record))
