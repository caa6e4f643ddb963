"""The README's picture is drawn from any record, partial ones included."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

from convsmith.bench.record import Record

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "plot_ratios.py"


@pytest.mark.parametrize("rows", [174, 40])
def test_a_picture_is_drawn(record: Record, rows: int, tmp_path: Path) -> None:
    record["rows"] = record["rows"][:rows]
    record["rows"][0]["fault"] = "rms error"
    del record["rows"][0]["ratio"]
    output = tmp_path / "images" / "ratios.png"
    runpy.run_path(str(SCRIPT))["draw"](record, output)
    assert output.read_bytes().startswith(b"\x89PNG")
    assert output.stat().st_size > 20_000
