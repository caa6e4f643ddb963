"""The table shows every number of a row, and a wrong result's fault instead."""

from __future__ import annotations

from io import StringIO

import pytest
from rich.console import Console

from convsmith.bench.record import Record, Row
from convsmith.bench.render import print_rows, progress, summary


def shown(rows: list[Row], width: int = 200) -> str:
    """The table as plain text."""
    console = Console(file=StringIO(), width=width)
    print_rows(rows, console)
    output = console.file
    assert isinstance(output, StringIO)
    return output.getvalue()


@pytest.fixture
def row(record: Record) -> Row:
    """A row of kb55."""
    found: Row = next(row for row in record["rows"] if row["layer"] == "kb55")
    found.update(
        ms=1.7345, ms_p20=1.71, ms_p80=1.78, torch_ms=3.82, torch_channels_last_ms=1.5, floor_ms=1.4
    )
    found["extra_bytes"] = 3 * 2**20
    return found


def test_a_line_has_the_numbers_of_its_row(row: Row) -> None:
    line = next(line for line in shown([row]).splitlines() if line.startswith("kb55"))
    for text in ("forward", "tf32", "direct", "1.734 (1.71-1.78)", "3.82", "0.81", "2.20", "0.86"):
        assert text in line
    for text in ("1.0e-07 / 2.0e-07", "5.0e-07 / 5.0e-07", "3 / 0"):
        assert text in line


def test_a_wrong_result_shows_its_fault_and_no_time(row: Row) -> None:
    row["fault"] = "wide: rms error nan, at most 1e-07"
    text = " ".join(shown([row]).split())
    assert "WRONG" in text
    assert "at most" in text
    assert "1.734" not in text


def test_columns_of_peers_that_were_not_timed_are_left_out(row: Row) -> None:
    del row["torch_channels_last_ms"]
    heading = shown([row]).splitlines()[0]
    assert "channels last" not in heading
    assert "compile" not in heading
    row["torch_compile_ms"] = 3.7
    assert "compile" in shown([row]).splitlines()[0]


def test_the_summary_counts_what_is_slower_and_names_the_worst(record: Record) -> None:
    rows = record["rows"]
    for row in rows:
        row["kernel"] = "direct"
    first, second, third = rows[0], rows[1], rows[2]
    first.update(torch_ms=0.9 * first["ms"], kernel="torch")
    second.update(torch_ms=0.7 * second["ms"], layout="nhwc")
    third["fault"] = "randn: rms error nan, at most 1e-07"
    rows[-1]["torch_channels_last_ms"] = 0.5 * rows[-1]["ms"]
    rows[180]["torch_ms"] = 2.5 * rows[180]["ms"]
    del rows[180]["torch_channels_last_ms"]
    console = Console(file=StringIO(), width=200)
    console.print(summary(rows))
    output = console.file
    assert isinstance(output, StringIO)
    core, depthwise, dense = (" ".join(line.split()) for line in output.getvalue().splitlines()[1:])
    assert core == (
        "core 197 2 (1 on PyTorch's kernel) kb50 forward float32 nhwc 0.70 "
        "1 convnext_dw7 grad_weight bfloat16 0.50"
    )
    assert depthwise.startswith("depthwise 144 0 dw_b64_c64_112_k3_s2 forward float32 2.50 0 ")
    assert dense.startswith("dense 384 0 c_b")


def test_the_summary_ends_what_is_shown(row: Row) -> None:
    last = shown([row]).splitlines()[-1].split()
    assert last[:3] == ["core", "1", "0"]
    row["fault"] = "wide: rms error nan, at most 1e-07"
    assert "core" not in shown([row])
    del row["fault"], row["torch_channels_last_ms"]
    assert shown([row]).splitlines()[-1].split()[-1] == "2.20"


def test_a_narrow_terminal_loses_no_number(row: Row) -> None:
    text = shown([row], width=100)
    assert "…" not in text


def test_nothing_measured_shows_nothing() -> None:
    assert shown([]) == ""


def test_the_bar_advances_with_each_row(row: Row) -> None:
    console = Console(file=StringIO(), force_terminal=True, width=100)
    with progress(2, console) as observe:
        observe(row)
        observe(row)
    output = console.file
    assert isinstance(output, StringIO)
    assert "2/2" in output.getvalue()
    assert "kb55 forward tf32" in output.getvalue()
