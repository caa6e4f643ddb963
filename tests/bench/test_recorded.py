"""What is in benchmarks/results/: complete, right, and of the kernels as they are now.

None of it needs a GPU. A failure here means that something was changed and not measured again: run
`make gpu-record` on the GPU in question and commit what it writes.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from convsmith.bench import record
from convsmith.bench.validate import faults, staleness

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
RECORDS = sorted({*RESULTS.glob("*.json"), RESULTS / "h200.json"})


@pytest.mark.parametrize("path", RECORDS, ids=lambda path: path.stem)
def test_the_record_is_of_these_kernels(path: Path) -> None:
    reason = staleness(record.load(path))
    assert reason is None, reason


@pytest.mark.parametrize("path", RECORDS, ids=lambda path: path.stem)
def test_the_record_is_complete_and_right(path: Path) -> None:
    assert faults(record.load(path)) == []


@pytest.mark.parametrize("path", RECORDS, ids=lambda path: path.stem)
def test_what_was_wrong_before_was_so_by_chance(path: Path) -> None:
    """Errors in rms are no chance: a row that has been wrong in them is not to be right later.

    A largest error is of one element, and chance. Where results are one product or two, cuDNN's own
    is little more than a rounding.
    """
    rows = record.load(path)["rows"]
    before = [fault for row in rows for fault in row.get("earlier_faults", ())]
    assert all("largest error" in fault for fault in before)
    assert len(before) < 0.03 * len(rows)
