"""The README's picture is drawn from any record, partial ones included."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import pytest

from convsmith.bench.record import Record
from convsmith.bench.selections import Selection

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "plot_ratios.py"


@pytest.fixture(scope="module")
def script() -> dict[str, Any]:
    """The names that the script defines."""
    return runpy.run_path(str(SCRIPT))


@pytest.mark.parametrize("rows", [330, 40])
def test_a_picture_is_drawn(
    script: dict[str, Any], record: Record, rows: int, tmp_path: Path
) -> None:
    record["rows"] = record["rows"][:rows]
    record["rows"][0]["fault"] = "rms error"
    del record["rows"][0]["ratio"]
    output = tmp_path / "images" / "ratios.png"
    script["draw"](record, output)
    assert output.read_bytes().startswith(b"\x89PNG")
    assert output.stat().st_size > 20_000


def test_it_is_of_the_core_suite_in_float32(script: dict[str, Any], record: Record) -> None:
    record["rows"][0]["layout"] = "nhwc"
    record["rows"][1]["fault"] = "rms error"
    del record["rows"][1]["ratio"]
    drawn = [row for row in record["rows"] if script["is_drawn"](row)]
    assert len(drawn) == len(Selection("core").row_keys()) - 2
    assert {row["suite"] for row in drawn} == {"core"}
    assert {row["precision"] for row in drawn} == {"tf32", "float32"}
