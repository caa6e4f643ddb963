"""Rows of a record, from errors and times."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from convsmith.bench import accuracy
from convsmith.bench.accuracy import Errors
from convsmith.bench.record import ErrorFields, Row, RowKey
from convsmith.planner import TORCH
from convsmith.spec import Precision
from convsmith.timing import Timing


@dataclass(frozen=True)
class Pair:
    """Errors of both on the same input; and what rounding operands to TF32 makes, if known."""

    ours: Errors
    theirs: Errors
    rounded: Errors | None = None

    def fields(self) -> ErrorFields:
        """As the record names them."""
        return {
            "rms_error": self.ours.rms,
            "torch_rms_error": self.theirs.rms,
            "max_error": self.ours.largest,
            "torch_max_error": self.theirs.largest,
        }


def judged_row(
    key: RowKey,
    kernel: str,
    floor_ms: float,
    predicted_ms: float | None,
    errors: Mapping[str, Pair],
    main: str,
) -> Row:
    """A row without times, with a fault where a result is wrong.

    Args:
        key: suite, layer, direction, precision, layout.
        kernel: what ran.
        floor_ms, predicted_ms: what the GPU and the planner say of its time.
        errors: by what the input was.
        main: the input whose errors are the row's own.
    """
    suite, layer, direction, precision, layout = key
    row: Row = {
        "suite": suite,
        "layer": layer,
        "direction": direction,
        "precision": precision,
        "layout": layout,
        "kernel": kernel,
        "run": 0,  # the record that takes the row numbers its runs
        "floor_ms": floor_ms,
        "predicted_ms": predicted_ms,
        "rms_error": errors[main].ours.rms,
        "torch_rms_error": errors[main].theirs.rms,
        "max_error": errors[main].ours.largest,
        "torch_max_error": errors[main].theirs.largest,
        "errors": {name: pair.fields() for name, pair in errors.items()},
    }
    for name, pair in errors.items():
        fault = accuracy.fault(
            Precision(precision),
            pair.ours,
            pair.theirs,
            same_function=kernel == TORCH,
            rounded=pair.rounded,
        )
        if fault is not None:
            row["fault"] = f"{name}: {fault}"
            break
    return row


def enter_times(row: Row, times: Mapping[str, Timing]) -> None:
    """Enter the times of the calls that the record's columns are named after, and the ratio."""
    ours, theirs = times["ms"], times["torch_ms"]
    row["ms"] = ours.median
    row["ms_p20"] = ours.percentile_20
    row["ms_p80"] = ours.percentile_80
    row["torch_ms"] = theirs.median
    row["torch_ms_p20"] = theirs.percentile_20
    row["torch_ms_p80"] = theirs.percentile_80
    if "torch_channels_last_ms" in times:
        row["torch_channels_last_ms"] = times["torch_channels_last_ms"].median
    if "torch_compile_ms" in times:
        row["torch_compile_ms"] = times["torch_compile_ms"].median
    row["ratio"] = theirs.median / ours.median
